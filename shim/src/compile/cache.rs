//! Artifacts on disk: a root-only folder, content checked before it is trusted, bounded, safe against crashes.
//!
//! Each artifact is two files: `<key>.cwasm`, and `<key>.json` with its length and sha256. wasmtime checks a header and
//! runs whatever follows, so a file is trusted only when it is our own, has that length and had that sha256 when this
//! server first saw this very inode in this state. Anything else is removed and compiled again.

use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatVfsMountFlags, Timestamps};

use super::Worlds;
use super::key::Key;
use crate::image::{Digest, Identity};
use crate::sys::mounts;

/// What stands beside an artifact.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Index {
    /// In bytes.
    pub length: u64,
    pub sha256: Digest,
    #[serde(flatten)]
    pub worlds: Worlds,
    /// The wasm it was compiled from.
    pub wasm: Digest,
    /// Whether the wasm came from an image, so that it goes when no image holds it.
    pub from_image: bool,
}

/// Why a folder cannot hold the cache.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("making the cache folder {path:?} failed: {source}")]
    Make { path: PathBuf, source: io::Error },
    #[error(
        "the cache folder {path:?} is not a folder of our own that nobody else can write (owner {owner}, mode {mode:o}): remove it or set the option cache_dir"
    )]
    Foreign { path: PathBuf, owner: u32, mode: u32 },
    #[error(
        "the cache folder {path:?} is mounted noexec, which forbids mapping code from it: set the option cache_dir"
    )]
    NoExec { path: PathBuf },
}

/// A folder of artifacts.
pub struct Cache {
    folder: PathBuf,
    /// The folder, read-only for everybody: guests hold artifacts open that are opened from here.
    view: OwnedFd,
    /// The most bytes of artifacts that are kept.
    size: u64,
    /// The artifacts whose content this server has checked, and when their use was last noted.
    checked: Mutex<HashMap<Key, Checked>>,
    temporaries: AtomicU64,
}

#[derive(Clone, Copy)]
struct Checked {
    identity: Identity,
    worlds: Worlds,
    noted: Option<SystemTime>,
}

/// Files without a partner, and temporary ones, are somebody's work in progress for so long.
const ABANDONED: Duration = Duration::from_secs(3600);

/// The order of last use need not be finer.
const NOTED_EVERY: Duration = Duration::from_secs(60);

impl Cache {
    /// Opens the folder, making it when it is missing, and removes what crashes left there.
    pub fn open(folder: &Path, size: u64) -> Result<Cache, FolderError> {
        let make_error = |source| FolderError::Make {
            path: folder.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(make_error)?;
        let metadata = fs::symlink_metadata(folder).map_err(make_error)?;
        let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
        if !metadata.is_dir() || !is_own_folder(owner, mode, own_user()) {
            return Err(FolderError::Foreign {
                path: folder.to_owned(),
                owner,
                mode,
            });
        }
        let flags = rustix::fs::statvfs(folder)
            .map_err(|errno| make_error(errno.into()))?
            .f_flag;
        if flags.contains(StatVfsMountFlags::NOEXEC) {
            return Err(FolderError::NoExec {
                path: folder.to_owned(),
            });
        }
        let cache = Cache {
            folder: folder.to_owned(),
            view: mounts::open_read_only(folder).map_err(make_error)?,
            size,
            checked: Mutex::default(),
            temporaries: AtomicU64::new(0),
        };
        // What cannot be cleaned costs space only; a folder that cannot be written is told when it is written.
        if let Err(error) = cache.remove_abandoned() {
            tracing::warn!(folder = %folder.display(), %error, "the cache folder could not be cleaned");
        }
        Ok(cache)
    }

    /// The artifact of `key`, open for reading, when it is there and is what was stored.
    pub fn get(&self, key: Key) -> Option<(File, Worlds)> {
        let file = match self.open_artifact(key) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => return self.distrust(key, &error.to_string()),
        };
        match self.check(key, &file) {
            Ok(worlds) => Some((file, worlds)),
            Err(reason) => self.distrust(key, &reason),
        }
    }

    /// Stores what `content` holds, and answers it from the cache, open for reading only.
    pub fn put(&self, key: Key, content: &File, worlds: Worlds, wasm: Digest, from_image: bool) -> io::Result<File> {
        let temporary = self.temporary();
        let stored = (|| {
            let mut file = create(&temporary)?;
            let (sha256, length) = Digest::of_file(content, |piece| file.write_all(piece))?;
            file.sync_all()?;
            self.forget(key);
            fs::rename(&temporary, self.artifact(key))?;
            let index = Index {
                length,
                sha256,
                worlds,
                wasm,
                from_image,
            };
            let mut file = create(&temporary)?;
            file.write_all(&serde_json::to_vec(&index)?)?;
            file.sync_all()?;
            fs::rename(&temporary, self.index(key))?;
            File::open(&self.folder)?.sync_all()?;
            self.open_artifact(key)
        })();
        if stored.is_err() {
            // The first error is the one to tell.
            let _ = fs::remove_file(&temporary);
        }
        let file = stored?;
        self.check(key, &file).map_err(io::Error::other)?;
        // The file just stored stays open, so even one larger than the whole cache is used once.
        if let Err(error) = self.shrink(key) {
            tracing::warn!(folder = %self.folder.display(), %error, "the cache folder could not be kept within its size");
        }
        Ok(file)
    }

    /// Removes the artifacts of images whose wasm is not in `live`. Processes that run one keep it mapped.
    pub fn sweep(&self, live: &HashSet<Digest>) -> io::Result<usize> {
        let mut removed = 0;
        for path in self.files()? {
            let Some(index) = path
                .extension()
                .filter(|end| *end == "json")
                .and_then(|_| read_index(&path).ok())
            else {
                continue;
            };
            if index.from_image && !live.contains(&index.wasm) {
                self.remove(&path)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Whether `file` is what was stored under `key`: the reason when not.
    fn check(&self, key: Key, file: &File) -> Result<Worlds, String> {
        let told = |error: io::Error| error.to_string();
        let stat = rustix::fs::fstat(file).map_err(|errno| told(errno.into()))?;
        if !is_own_file(stat.st_uid, stat.st_mode, own_user()) {
            return Err(format!(
                "its owner is {}, its mode {:o}",
                stat.st_uid,
                stat.st_mode & 0o7777
            ));
        }
        let identity = Identity::of(&stat);
        let known = self
            .checked()
            .get(&key)
            .copied()
            .filter(|known| known.identity == identity);
        if let Some(known) = known {
            self.note_use(key, known);
            return Ok(known.worlds);
        }
        let index = read_index(&self.index(key)).map_err(|error| format!("its index: {error}"))?;
        if index.length != identity.size {
            return Err(format!("it has {} bytes, not {}", identity.size, index.length));
        }
        let (sha256, _) = Digest::of_file(file, |_| Ok(())).map_err(told)?;
        if sha256 != index.sha256 {
            return Err(format!("its digest is {sha256}, not {}", index.sha256));
        }
        self.note_use(
            key,
            Checked {
                identity,
                worlds: index.worlds,
                noted: None,
            },
        );
        Ok(index.worlds)
    }

    /// Remembers a checked artifact, and tells the other servers of this folder through the index file's time that it
    /// was used.
    fn note_use(&self, key: Key, known: Checked) {
        let now = SystemTime::now();
        let recent = |then: SystemTime| now.duration_since(then).is_ok_and(|age| age < NOTED_EVERY);
        if known.noted.is_some_and(recent) {
            return;
        }
        self.checked().insert(
            key,
            Checked {
                noted: Some(now),
                ..known
            },
        );
        let now = rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        };
        let times = Timestamps {
            last_access: now,
            last_modification: now,
        };
        if let Err(error) = rustix::fs::utimensat(CWD, self.index(key), &times, AtFlags::SYMLINK_NOFOLLOW) {
            tracing::debug!(%key, %error, "the use of an artifact could not be noted");
        }
    }

    /// Removes an artifact that is not what was stored.
    fn distrust<T>(&self, key: Key, reason: &str) -> Option<T> {
        tracing::warn!(artifact = %self.artifact(key).display(), reason, "an artifact of the cache is not trusted: removed, and compiled again");
        self.forget(key);
        for path in [self.artifact(key), self.index(key)] {
            // What cannot be removed stays distrusted.
            let _ = fs::remove_file(path);
        }
        None
    }

    /// Removes the least recently used artifacts, except `kept`, until all are within the size; `kept` too when it
    /// alone is not.
    fn shrink(&self, kept: Key) -> io::Result<()> {
        let mut artifacts = Vec::new();
        for path in self
            .files()?
            .into_iter()
            .filter(|path| path.extension().is_some_and(|end| end == "json"))
        {
            // Another server may remove what is listed here.
            if let (Ok(index), Ok(artifact)) = (fs::metadata(&path), fs::metadata(path.with_extension("cwasm"))) {
                artifacts.push((path == self.index(kept), index.modified()?, artifact.len(), path));
            }
        }
        let mut total: u64 = artifacts.iter().map(|(_, _, length, _)| length).sum();
        artifacts.sort();
        for (_, _, length, path) in artifacts {
            if total <= self.size {
                break;
            }
            self.remove(&path)?;
            total -= length;
        }
        Ok(())
    }

    /// Removes an index, then its artifact: a crash between leaves a file without a partner, which is never used.
    fn remove(&self, index: &Path) -> io::Result<()> {
        for path in [index.to_owned(), index.with_extension("cwasm")] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn remove_abandoned(&self) -> io::Result<()> {
        for path in self.files()? {
            let temporary = path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b".tmp-"));
            let alone = path.extension().is_some_and(|end| end == "cwasm") && !path.with_extension("json").exists();
            let old = fs::metadata(&path).and_then(|metadata| metadata.modified());
            let old = old.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > ABANDONED));
            if (temporary || alone) && old {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn files(&self) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(&self.folder)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect()
    }

    fn checked(&self) -> MutexGuard<'_, HashMap<Key, Checked>> {
        // Every change leaves a map that is true, so one that a panic interrupted still is.
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, key: Key) {
        self.checked().remove(&key);
    }

    fn artifact(&self, key: Key) -> PathBuf {
        self.folder.join(format!("{key}.cwasm"))
    }

    fn index(&self, key: Key) -> PathBuf {
        self.folder.join(format!("{key}.json"))
    }

    fn open_artifact(&self, key: Key) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.view, format!("{key}.cwasm"), flags, Mode::empty())?;
        Ok(file.into())
    }

    fn temporary(&self) -> PathBuf {
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        self.folder.join(format!(".tmp-{}-{number}", std::process::id()))
    }
}

/// Whether nobody but `user` can have put something into a folder with this owner and mode.
fn is_own_folder(owner: u32, mode: u32, user: u32) -> bool {
    owner == user && mode & 0o022 == 0
}

/// Whether a file has the owner and mode that ours are made with.
fn is_own_file(owner: u32, mode: u32, user: u32) -> bool {
    owner == user && mode & 0o7777 == MODE
}

/// Nobody writes a file of the cache again. Others may read it, since a guest opens its artifact once more after it has
/// given up root; the folder keeps everybody else out.
const MODE: u32 = 0o444;

fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
}

fn create(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    // Whatever the umask is.
    file.set_permissions(fs::Permissions::from_mode(MODE))?;
    Ok(file)
}

fn read_index(path: &Path) -> io::Result<Index> {
    let file = open(path)?;
    let metadata = file.metadata()?;
    if !is_own_file(metadata.uid(), metadata.mode(), own_user()) {
        return Err(io::Error::other("it is not our own"));
    }
    Ok(serde_json::from_reader(io::BufReader::new(file))?)
}

#[cfg(test)]
mod tests;
