//! Digests of files already read: known by the file's identity, also after a restart of the server.
//!
//! Only files of committed layers are remembered, on file systems where inode and change time vouch for their bytes.
//! The list is kept in a root-only file. A digest holds for one boot, since device numbers may mean other disks after the
//! next; that its file is still there is known for longer.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::Stat;

use super::Digest;

/// What identifies a file and its bytes as long as only the kernel sets change times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    pub dev: u64,
    pub ino: u64,
    pub size: u64,
    /// Seconds and nanoseconds of the change time.
    pub ctime: (i64, i64),
}

impl Identity {
    /// The identity in an fstat(2) reply.
    #[expect(
        clippy::useless_conversion,
        reason = "the fields' types differ between architectures"
    )]
    pub fn of(stat: &Stat) -> Identity {
        Identity {
            dev: stat.st_dev.into(),
            ino: stat.st_ino.into(),
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            ctime: (
                stat.st_ctime.into(),
                i64::try_from(stat.st_ctime_nsec).unwrap_or_default(),
            ),
        }
    }
}

/// The file systems (statfs(2)) whose kernel code alone sets change times, when a file changes: ext4, xfs, btrfs, f2fs
/// and tmpfs. Images of EROFS and the like bring their files' times along, FUSE's servers say what they like, and an
/// overlay, as containerd has below it on a node in a container, may show such files.
const VOUCHING: [u32; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994];

/// Whether the [`Identity`] of `file` vouches for its bytes.
///
/// # Errors
///
/// What fstatfs(2) says.
pub fn vouched(file: &File) -> io::Result<bool> {
    Ok(vouches(rustix::fs::fstatfs(file)?.f_type as u32))
}

/// Whether a file system of this type sets change times by itself.
fn vouches(kind: u32) -> bool {
    VOUCHING.contains(&kind)
}

/// As many files as are remembered; one takes about 250 bytes in memory and in the file.
const MOST: usize = 4096;

/// The digests, oldest first.
#[derive(Default)]
pub struct Remembered {
    entries: Mutex<Vec<Entry>>,
    /// /proc/sys/kernel/random/boot_id, empty when nothing is kept.
    boot: String,
    file: Option<PathBuf>,
}

#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct Entry {
    #[serde(flatten)]
    identity: Identity,
    digest: Digest,
    /// Where the file was: when it is no longer there, its image is gone.
    path: PathBuf,
    /// The boot in which it was read.
    boot: String,
}

impl Remembered {
    /// Remembers in `folder`/digests.json too. What is there is used when it is root's own and readable; else it is
    /// started anew, which costs one read a file.
    pub fn kept_in(folder: &Path) -> io::Result<Remembered> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let path = folder.join("digests.json");
        Ok(Remembered {
            entries: Mutex::new(load(&path).unwrap_or_default()),
            boot,
            file: Some(path),
        })
    }

    /// The digest of the file with this identity.
    pub fn get(&self, identity: &Identity) -> Option<Digest> {
        let known = |entry: &&Entry| entry.identity == *identity && entry.boot == self.boot;
        self.entries().iter().find(known).map(|entry| entry.digest)
    }

    /// Remembers a file, forgetting the oldest when there are too many.
    ///
    /// # Errors
    /// When the list could not be saved; it is remembered in memory all the same.
    pub fn insert(&self, identity: Identity, digest: Digest, path: PathBuf) -> io::Result<()> {
        let mut entries = self.entries();
        entries.retain(|entry| entry.identity != identity && entry.path != path);
        if entries.len() >= MOST {
            entries.remove(0);
        }
        entries.push(Entry {
            identity,
            digest,
            path,
            boot: self.boot.clone(),
        });
        self.save(&entries)
    }

    /// The digests whose files are still there; the others are forgotten.
    pub fn live(&self) -> io::Result<Vec<Digest>> {
        let known = self.entries().clone();
        let gone: Vec<Identity> = known
            .iter()
            .filter(|entry| !entry.is_there(&self.boot))
            .map(|entry| entry.identity)
            .collect();
        let mut entries = self.entries();
        entries.retain(|entry| !gone.contains(&entry.identity));
        if !gone.is_empty() {
            self.save(&entries)?;
        }
        Ok(entries.iter().map(|entry| entry.digest).collect())
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        // Every change leaves a list that is true, so one that a panic interrupted still is.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, entries: &[Entry]) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), |path| save(path, entries))
    }
}

impl Entry {
    fn is_there(&self, boot: &str) -> bool {
        rustix::fs::lstat(&self.path).is_ok_and(|stat| {
            let found = Identity::of(&stat);
            // A device number says nothing about another boot's.
            found == self.identity
                || (self.boot != boot
                    && Identity {
                        dev: self.identity.dev,
                        ..found
                    } == self.identity)
        })
    }
}

/// The entries of a file that only its owner, our own user, could have written.
fn load(path: &Path) -> Option<Vec<Entry>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .ok()?;
    let metadata = file.metadata().ok()?;
    let own = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o077 == 0;
    if !own || !metadata.is_file() {
        return None;
    }
    serde_json::from_reader(io::BufReader::new(file)).ok()
}

/// Replaces the file in one step. It is not synced: what a crash tears is not read, or is of an earlier boot.
fn save(path: &Path, entries: &[Entry]) -> io::Result<()> {
    let temporary = path.with_extension(format!("json.{}", std::process::id()));
    let write = || {
        create(&temporary)?.write_all(&serde_json::to_vec(entries)?)?;
        fs::rename(&temporary, path)
    };
    write().inspect_err(|_| {
        // The first error is the one to tell.
        let _ = fs::remove_file(&temporary);
    })
}

/// A new file; what a crash left under its name is removed, never written through.
fn create(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(path: &Path) -> Identity {
        Identity::of(&rustix::fs::stat(path).expect("stat"))
    }

    #[test]
    fn only_file_systems_that_set_change_times_by_themselves_vouch_for_files() {
        let (folder, path, ..) = with_file();
        let kind = rustix::fs::statfs(folder.path()).expect("statfs").f_type as u32;
        assert_eq!(
            vouched(&File::open(path).expect("open")).expect("fstatfs"),
            vouches(kind)
        );
        assert!(!vouched(&File::open("/proc/self/stat").expect("open")).expect("fstatfs"));
        let (ext4, erofs, fuse, overlay) = (0xef53, 0xe0f5_e1e2, 0x6573_5546, 0x794c_7630);
        assert!(vouches(ext4));
        assert!([erofs, fuse, overlay].iter().all(|kind| !vouches(*kind)));
    }

    fn with_file() -> (tempfile::TempDir, PathBuf, Identity, Digest) {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("app.wasm");
        fs::write(&path, "wasm").expect("write");
        let identity = identity(&path);
        (folder, path, identity, Digest::of(b"wasm"))
    }

    #[test]
    fn a_restarted_server_remembers_what_the_last_one_read() {
        let (folder, path, identity, digest) = with_file();
        let first = Remembered::kept_in(folder.path()).expect("open");
        assert_eq!(first.get(&identity), None);
        first.insert(identity, digest, path).expect("insert");
        let second = Remembered::kept_in(folder.path()).expect("open again");
        assert_eq!(second.get(&identity), Some(digest));
        let mode = fs::metadata(folder.path().join("digests.json"))
            .expect("metadata")
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_file_written_again_is_another_file() {
        let (folder, path, old, digest) = with_file();
        let remembered = Remembered::kept_in(folder.path()).expect("open");
        remembered.insert(old, digest, path.clone()).expect("insert");
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&path, "MASW").expect("write again");
        assert_eq!(remembered.get(&identity(&path)), None);
        assert_eq!(remembered.live().expect("live"), []);
        assert_eq!(remembered.get(&old), None);
    }

    #[test]
    fn a_list_of_another_boot_another_mode_or_no_json_is_not_used() {
        let (folder, path, identity, digest) = with_file();
        let list = folder.path().join("digests.json");
        let saved = || {
            Remembered::kept_in(folder.path())
                .expect("open")
                .insert(identity, digest, path.clone())
                .expect("insert");
            fs::read_to_string(&list).expect("read")
        };
        let get = || Remembered::kept_in(folder.path()).expect("open").get(&identity);
        let text = saved();
        assert_eq!(get(), Some(digest));
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("boot id");
        fs::write(&list, text.replace(boot.trim(), "another")).expect("write");
        assert_eq!(get(), None);
        let live = Remembered::kept_in(folder.path()).expect("open").live();
        assert_eq!(live.expect("live"), [digest], "the file of another boot is still there");
        fs::write(&list, &text[..text.len() / 2]).expect("write");
        assert_eq!(get(), None);
        fs::write(&list, &text).expect("write");
        assert_eq!(get(), Some(digest));
        fs::set_permissions(&list, std::os::unix::fs::PermissionsExt::from_mode(0o622)).expect("chmod");
        assert_eq!(get(), None);
    }

    #[test]
    fn the_oldest_are_forgotten_when_there_are_too_many() {
        let remembered = Remembered::default();
        let number = |ino| Identity {
            dev: 1,
            ino,
            size: 1,
            ctime: (1, 1),
        };
        for ino in 0..=MOST as u64 {
            remembered
                .insert(number(ino), Digest::of(b""), format!("/{ino}").into())
                .expect("insert");
        }
        assert_eq!(remembered.get(&number(0)), None);
        assert_eq!(remembered.get(&number(1)), Some(Digest::of(b"")));
        assert_eq!(remembered.entries().len(), MOST);
    }
}
