//! Files that are wholly there or not at all, also after a power cut.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
use rustix::io::Errno;

/// What could not be written, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot {act} {path}: {cause}{mend}", path = path.display(), mend = mend(cause))]
pub struct WriteError {
    act: &'static str,
    path: PathBuf,
    #[source]
    cause: io::Error,
}

impl WriteError {
    /// Whether there was no room.
    pub fn is_full(&self) -> bool {
        matches!(
            self.cause.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }

    /// Makes one of an operating system's error, for `map_err`.
    pub fn of(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WriteError {
        let path = path.to_owned();
        move |cause| WriteError { act, path, cause }
    }
}

fn mend(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; make room there",
        io::ErrorKind::ReadOnlyFilesystem => "; mount it read-write",
        _ => "",
    }
}

/// Puts `bytes` at `path` in one step: written beside it, synced, renamed. What was there stays until then.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), WriteError> {
    let beside = beside(path);
    let written = write_new(&beside, bytes, mode).and_then(|()| rename(&beside, path));
    if written.is_err() {
        // A full disk is not to be filled by attempts; that there is nothing to remove is no second error.
        let _ = fs::remove_file(&beside);
    }
    written
}

/// As [`write`], with the owner, group, mode and extended attributes of the file that is there; a new one gets `mode`.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), WriteError> {
    let Ok(present) = File::open(path) else {
        return write(path, bytes, mode);
    };
    let beside = beside(path);
    let written = write_new(&beside, bytes, 0o600)
        .and_then(|()| copy_metadata(&present, &beside).map_err(WriteError::of("copy the attributes to", &beside)))
        .and_then(|()| rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

fn copy_metadata(from: &File, to: &Path) -> io::Result<()> {
    let (found, to) = (from.metadata()?, File::open(to)?);
    fchown(&to, Some(found.uid()), Some(found.gid()))?;
    // After the owner: changing that clears the set-id bits.
    to.set_permissions(fs::Permissions::from_mode(found.permissions().mode() & 0o7777))?;
    let mut names = vec![0; 0x10000];
    let length = match flistxattr(from, &mut names[..]) {
        // A file system without any.
        Err(Errno::NOTSUP) => 0,
        length => length?,
    };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 0x10000];
        let length = fgetxattr(from, name, &mut value[..])?;
        fsetxattr(&to, name, &value[..length], XattrFlags::empty())?;
    }
    to.sync_all()
}

/// As [`write`], unless that is what is there: a step that is done needs no room.
pub fn ensure(path: &Path, bytes: &[u8], mode: u32) -> Result<(), WriteError> {
    let is_there = fs::read(path).is_ok_and(|found| found == bytes)
        && fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o7777 == mode);
    if is_there { Ok(()) } else { write(path, bytes, mode) }
}

/// Puts `bytes` into a file that is there, where no room is left for another one beside it: neither wholly there nor not
/// at all is worse than what it had, so this is for what is worse already.
pub fn overwrite(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    let write = || {
        let mut file = File::options().write(true).truncate(true).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(WriteError::of("overwrite", path))
}

/// Writes a file that nobody looks at yet, and syncs it.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), WriteError> {
    let write = || {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(path)?;
        // The mask of the process, and a file that an earlier attempt left.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(WriteError::of("write", path))
}

/// Renames within a folder, and syncs it.
pub fn rename(from: &Path, to: &Path) -> Result<(), WriteError> {
    fs::rename(from, to).map_err(WriteError::of("rename a file to", to))?;
    sync_folder(to)
}

/// Makes the symlink `path` lead to `target`, in one step; what it led to before it does until then.
pub fn link(target: &Path, path: &Path) -> Result<(), WriteError> {
    let beside = beside(path);
    // Left by one that was killed here.
    remove(&beside)?;
    symlink(target, &beside).map_err(WriteError::of("link", &beside))?;
    rename(&beside, path)
}

/// Removes a file; one that is gone is fine.
pub fn remove(path: &Path) -> Result<(), WriteError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(WriteError::of("remove", path)(error)),
        Err(_) => Ok(()),
        Ok(()) => sync_folder(path),
    }
}

/// Removes a folder and everything in it; one that is gone is fine.
pub fn remove_folder(path: &Path) -> Result<(), WriteError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(WriteError::of("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Makes a folder and those above it, for root alone to write.
pub fn make_folder(path: &Path) -> Result<(), WriteError> {
    fs::create_dir_all(path).map_err(WriteError::of("make the folder", path))
}

/// Makes what was renamed or removed in the folder of `path` outlast a power cut.
fn sync_folder(path: &Path) -> Result<(), WriteError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(WriteError::of("sync the folder", folder))
}

/// The name under which a file is written before it is renamed. No glob for `*.toml` finds it.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_with_its_mode_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&path, b"one", 0o644).unwrap();
        write(&path, b"two", 0o755).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o755);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_is_switched_also_after_an_attempt_that_was_killed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("link");
        symlink("half", folder.path().join(".link.new")).unwrap();
        for target in ["a", "b"] {
            link(Path::new(target), &path).unwrap();
            assert_eq!(fs::read_link(&path).unwrap(), Path::new(target));
        }
    }

    #[test]
    fn what_cannot_be_written_is_named_and_the_old_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gone/file");
        let error = write(&path, b"", 0o644).unwrap_err().to_string();
        assert!(error.contains("gone/.file.new"), "{error}");
        assert!(
            remove(folder.path())
                .unwrap_err()
                .to_string()
                .starts_with("cannot remove /")
        );
        remove(&path).unwrap();
    }

    #[test]
    fn a_full_disk_says_what_to_mend() {
        let error = write_new(Path::new("/dev/full"), b"more", 0o644)
            .unwrap_err()
            .to_string();
        assert!(error.contains("make room there"), "{error}");
    }
}
