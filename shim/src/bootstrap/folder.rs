//! Where a server lives: its key, its folder under /run/kubewasi, its lock and its settings.
//!
//! ```text
//! /run/kubewasi/<key>/lock           held while the server is looked for, spawned or ended
//!                     server.json    what `serve` is to be, written by the `start` that spawns it
//!                     control.sock   reserve, delete, status
//!                     metrics.sock   Prometheus text by HTTP
//! /run/containerd/s/<key>.<tag>      the task API, one socket a containerd namespace (or in socket_dir)
//! ```

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use kubewasi_options::{Options, Scope};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// All servers' folders.
pub const ROOT: &str = "/run/kubewasi";

/// Where containerd's own shims have their sockets.
pub const SOCKETS: &str = "/run/containerd/s";

/// `sockaddr_un.sun_path` with its final zero byte (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// How many hex digits tell one namespace's socket from another's.
const TAG: usize = 8;

/// What a server is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// containerd's gRPC socket.
    pub address: PathBuf,
    /// containerd's ttrpc socket, for events.
    pub ttrpc_address: String,
    /// Where the task API is served, without the namespace's tag; see [`socket`].
    pub socket: PathBuf,
    pub options: Options,
    /// containerd logs at debug level.
    pub debug: bool,
}

/// What makes two containers share a server: everything in it must be equal.
#[derive(Debug)]
pub struct Grouping<'a> {
    pub address: &'a str,
    /// Which build this binary is.
    pub build: &'a str,
    /// Handlers with different options do not share a server, or one's options would silently be the other's.
    pub options: &'a Options,
    pub namespace: &'a str,
    /// The pod's sandbox, or the container itself.
    pub pod: &'a str,
}

/// The name of the server of `grouping`: 32 hex digits, short enough for a socket's path.
pub fn key(grouping: &Grouping<'_>) -> Result<String, serde_json::Error> {
    let (namespace, pod) = match grouping.options.scope {
        Scope::Node => ("", ""),
        Scope::Namespace => (grouping.namespace, ""),
        Scope::Pod => (grouping.namespace, grouping.pod),
    };
    let parts = serde_json::to_vec(&(grouping.address, grouping.build, grouping.options, namespace, pod))?;
    Ok(hex(&Sha256::digest(parts)).take(32).collect())
}

fn hex(bytes: &[u8]) -> impl Iterator<Item = char> {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
}

/// Which build the running binary is, without reading it: its version, and the file's identity and time.
pub fn build() -> io::Result<String> {
    let exe = fs::metadata("/proc/self/exe")?;
    Ok(format!(
        "{}-{}:{}:{}:{}.{}",
        env!("CARGO_PKG_VERSION"),
        exe.dev(),
        exe.ino(),
        exe.size(),
        exe.mtime(),
        exe.mtime_nsec()
    ))
}

/// The task API's sockets, without the tag: in `dir` when their path is short enough, else in the server's own `folder`.
pub fn sockets(dir: &Path, folder: &Path, key: &str) -> PathBuf {
    let sockets = dir.join(key);
    if sockets.as_os_str().len() + 1 + TAG <= SOCKET_PATH_MAX {
        sockets
    } else {
        folder.join("task")
    }
}

/// The task API's socket for the containers of `namespace`: containerd 1.6 does not say the namespace in its requests.
pub fn socket(sockets: &Path, namespace: &str) -> PathBuf {
    let tag: String = hex(&Sha256::digest(namespace)).take(TAG).collect();
    sockets.with_extension(tag)
}

/// The control socket of the server in `folder`.
pub fn control(folder: &Path) -> PathBuf {
    folder.join("control.sock")
}

/// The metrics socket of the server in `folder`.
pub fn metrics(folder: &Path) -> PathBuf {
    folder.join("metrics.sock")
}

/// The folder of the server that serves the task API at `address`, a `unix://` URL, by the name of its socket.
pub fn of_address(address: &str) -> Option<PathBuf> {
    let sockets = Path::new(address.strip_prefix("unix://")?).with_extension("");
    match sockets.file_name()?.to_str()? {
        "task" => sockets.parent().map(Path::to_owned),
        key => Some(Path::new(ROOT).join(key)),
    }
}

/// All sockets, one a namespace, of the server whose sockets are `sockets` without the tag.
pub fn sockets_of(sockets: &Path) -> Vec<PathBuf> {
    let Some(entries) = sockets.parent().and_then(|dir| fs::read_dir(dir).ok()) else {
        return Vec::new();
    };
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    paths
        .filter(|path| path.file_stem() == sockets.file_name() && path.extension().is_some())
        .collect()
}

/// Makes a folder that only root may enter, and its parents.
pub fn make(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Tells the folders that this process moved away apart.
static ENDED: AtomicUsize = AtomicUsize::new(0);

/// Holds a server's folder: nobody else looks for, spawns or ends the server meanwhile.
#[derive(Debug)]
pub struct Lock {
    folder: PathBuf,
    /// Locked for as long as it is open.
    _file: File,
}

impl Lock {
    /// Makes the folder when it is missing and waits for its lock.
    pub fn take(folder: &Path) -> io::Result<Lock> {
        let path = folder.join("lock");
        loop {
            match make(folder) {
                Ok(()) => {}
                // It was there and was moved away before std could look what it is.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !folder.is_file() => continue,
                // The last server's end removed the folder above it in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !leads_nowhere(folder) => continue,
                Err(error) => return Err(error),
            }
            let file = match File::options().create(true).truncate(false).write(true).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            file.lock()?;
            if is_at(&file, &path)? {
                return Ok(Lock {
                    folder: folder.to_owned(),
                    _file: file,
                });
            }
        }
    }

    /// Takes the lock of a folder that is there; `None` when somebody holds it, or it is gone.
    pub fn try_take(folder: &Path) -> io::Result<Option<Lock>> {
        let path = folder.join("lock");
        let file = match File::options().write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        Ok(is_at(&file, &path)?.then(|| Lock {
            folder: folder.to_owned(),
            _file: file,
        }))
    }

    /// Writes what the server is to be.
    pub fn write(&self, settings: &Settings) -> io::Result<()> {
        fs::write(self.folder.join("server.json"), serde_json::to_vec_pretty(settings)?)
    }

    /// Removes the folder and what is in it, and the one above it when it was the last there; the lock goes with it.
    pub fn remove(self) -> io::Result<()> {
        // Moved away at one stroke: whoever waits finds a lock that is no longer in its place, and makes a new folder.
        let name = self.folder.file_name().unwrap_or_default().to_string_lossy();
        let number = ENDED.fetch_add(1, Ordering::Relaxed);
        let ended = self
            .folder
            .with_file_name(format!(".{name}.{}-{number}", std::process::id()));
        fs::rename(&self.folder, &ended)?;
        loop {
            match fs::remove_dir_all(&ended) {
                // One that was on its way to the lock made it anew; it will find the folder gone.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        // Not when other servers have theirs there, or an admin a mount.
        let _ = self.folder.parent().map(fs::remove_dir);
        Ok(())
    }
}

/// Whether the folder above `folder`, in which nothing could be made, is a symlink: no server removes one, so it is one to
/// what is not there.
fn leads_nowhere(folder: &Path) -> bool {
    folder.parent().is_some_and(Path::is_symlink)
}

/// Whether `path` is still the file that is open: a server that ended meanwhile removed the folder, and a lock on a removed
/// file keeps nobody out.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match fs::metadata(path) {
        Ok(now) => Ok((now.dev(), now.ino()) == (held.dev(), held.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads what the server in `folder` is to be.
pub fn settings(folder: &Path) -> io::Result<Settings> {
    Ok(serde_json::from_slice(&fs::read(folder.join("server.json"))?)?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("kubewasi-folder-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    fn key_of(scope: Scope, namespace: &str, pod: &str, build: &str) -> String {
        let options = Options {
            scope,
            ..Options::default()
        };
        key(&Grouping {
            address: "/run/containerd/containerd.sock",
            build,
            options: &options,
            namespace,
            pod,
        })
        .unwrap()
    }

    #[test]
    fn the_scope_decides_who_shares_a_server() {
        let key = |scope, namespace, pod| key_of(scope, namespace, pod, "1");
        assert_eq!(key(Scope::Node, "a", "p"), key(Scope::Node, "b", "q"));
        assert_eq!(key(Scope::Namespace, "a", "p"), key(Scope::Namespace, "a", "q"));
        assert_ne!(key(Scope::Namespace, "a", "p"), key(Scope::Namespace, "b", "p"));
        assert_eq!(key(Scope::Pod, "a", "p"), key(Scope::Pod, "a", "p"));
        assert_ne!(key(Scope::Pod, "a", "p"), key(Scope::Pod, "a", "q"));
        assert_ne!(key(Scope::Pod, "a", "p"), key(Scope::Pod, "b", "p"));
    }

    #[test]
    fn another_build_or_containerd_or_option_has_another_server() {
        let default = key_of(Scope::Node, "a", "p", "1");
        assert_ne!(default, key_of(Scope::Node, "a", "p", "2"));
        let options = Options::default();
        let grouping = Grouping {
            address: "/tmp/containerd.sock",
            build: "1",
            options: &options,
            namespace: "a",
            pod: "p",
        };
        assert_ne!(default, key(&grouping).unwrap());
        let options = Options {
            cache_size: 1 << 30,
            ..Options::default()
        };
        let grouping = Grouping {
            address: "/run/containerd/containerd.sock",
            options: &options,
            ..grouping
        };
        assert_ne!(default, key(&grouping).unwrap());
    }

    #[test]
    fn a_socket_path_that_is_too_long_moves_to_the_servers_folder_and_both_lead_back() {
        let key = "0123456789abcdef0123456789abcdef";
        let folder = Path::new(ROOT).join(key);
        let short = sockets(Path::new(SOCKETS), &folder, key);
        assert_eq!(short, Path::new(SOCKETS).join(key));
        let long = sockets(Path::new(&format!("/{}", "d".repeat(70))), &folder, key);
        assert!(long.starts_with(&folder));
        for sockets in [short, long] {
            let socket = socket(&sockets, "k8s.io");
            assert!(socket.as_os_str().len() <= SOCKET_PATH_MAX);
            assert_eq!(
                of_address(&format!("unix://{}", socket.display())),
                Some(folder.clone())
            );
        }
        assert_eq!(of_address("vsock://3:1024"), None);
    }

    #[test]
    fn each_namespace_has_a_socket_of_its_own() {
        let sockets = Path::new("/run/s/key");
        assert_ne!(socket(sockets, "default"), socket(sockets, "k8s.io"));
        assert_eq!(socket(sockets, "default"), socket(sockets, "default"));
    }

    #[test]
    fn a_servers_sockets_are_found_and_no_others() {
        let dir = scratch("beside");
        make(&dir).unwrap();
        let sockets = |key: &str| ["default", "k8s.io"].map(|namespace| socket(&dir.join(key), namespace));
        for path in [sockets("key"), sockets("other")].as_flattened() {
            fs::write(path, "").unwrap();
        }
        let mut found = sockets_of(&dir.join("key"));
        found.sort();
        let mut wanted = sockets("key");
        wanted.sort();
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_lock_that_is_held_or_not_there_is_not_taken() {
        let folder = scratch("try").join("key");
        assert!(Lock::try_take(&folder).unwrap().is_none());
        let lock = Lock::take(&folder).unwrap();
        assert!(Lock::try_take(&folder).unwrap().is_none());
        drop(lock);
        let lock = Lock::try_take(&folder).unwrap().unwrap();
        lock.remove().unwrap();
        assert!(!folder.exists());
    }

    #[test]
    fn settings_are_read_as_they_were_written() {
        let folder = scratch("settings").join("key");
        let lock = Lock::take(&folder).unwrap();
        let written = Settings {
            address: "/run/containerd/containerd.sock".into(),
            ttrpc_address: "/run/containerd/containerd.sock.ttrpc".into(),
            socket: "/run/containerd/s/k".into(),
            options: Options::default(),
            debug: true,
        };
        lock.write(&written).unwrap();
        assert_eq!(settings(&folder).unwrap(), written);
        lock.remove().unwrap();
        assert!(!folder.exists());
    }

    #[test]
    fn a_lock_keeps_others_out_also_when_its_holder_removes_the_folder() {
        let root = scratch("lock");
        let folder = Arc::new(root.join("key"));
        let inside = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (folder, inside) = (folder.clone(), inside.clone());
                std::thread::spawn(move || {
                    for _ in 0..50 {
                        let lock = Lock::take(&folder).unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                        lock.remove().unwrap();
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(!root.exists(), "the last one takes the folder of all with it");
    }

    #[test]
    fn the_folder_of_all_servers_stays_while_one_is_there() {
        let root = scratch("all");
        let [first, second] = ["first", "second"].map(|key| Lock::take(&root.join(key)).unwrap());
        first.remove().unwrap();
        assert!(root.join("second/lock").exists());
        second.remove().unwrap();
        assert!(!root.exists());
    }
}
