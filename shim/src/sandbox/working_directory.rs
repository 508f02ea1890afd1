//! A process's working directory, made and entered as runc does it (runc, libcontainer/rootfs_linux.go `prepareRootfs` and
//! libcontainer/init_linux.go `finalizeNamespace`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::FileType;

use super::failure::{Failure, step};
use crate::sys::mounts;

/// Makes what is missing of `path` in `root`, with mode 0755: it belongs to `owner`, a uid and a gid, else to root. An exec
/// makes nothing.
///
/// # Errors
///
/// What cannot be made; a part of the path that is not a directory.
pub fn make(root: BorrowedFd<'_>, path: &Path, owner: Option<(u32, u32)>) -> Result<(), Failure> {
    let what = || format!("make the working directory {} (process.cwd)", path.display());
    let made = mounts::open_mount_point(root, path, true, owner).map_err(step(what()))?;
    match mounts::file_type(made.as_fd()).map_err(step(what()))? {
        FileType::Directory => Ok(()),
        _ => Err(step(what())("it is not a directory")),
    }
}

/// Whether a process is in its working directory.
#[derive(Debug, PartialEq, Eq)]
pub enum Entered {
    Yes,
    /// Root may not enter it; its user may.
    NotByRoot,
}

/// Enters the working directory with root's rights, which may go where the user may not.
///
/// # Errors
///
/// What chdir(2) says, but for a lack of permission.
pub fn enter_as_root(path: &str) -> Result<Entered, Failure> {
    match enter(path) {
        Ok(()) => Ok(Entered::Yes),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(Entered::NotByRoot),
        Err(error) => Err(failed(path)(error)),
    }
}

/// Enters the working directory with the user's rights, unless the process is there already, and looks whether it is in the
/// container: a link of procfs leads anywhere (CVE-2024-21626).
///
/// # Errors
///
/// What chdir(2) says.
pub fn enter_as_user(path: &str, entered: Entered) -> Result<(), Failure> {
    if entered == Entered::NotByRoot {
        enter(path).map_err(failed(path))?;
    }
    let reached = rustix::process::getcwd(Vec::new()).map_err(failed(path))?;
    match reached.to_bytes().first() {
        Some(b'/') => Ok(()),
        _ => Err(failed(path)("it is outside of the container's root")),
    }
}

fn enter(path: &str) -> io::Result<()> {
    Ok(rustix::process::chdir(path)?)
}

fn failed<E: std::fmt::Display>(path: &str) -> impl FnOnce(E) -> Failure {
    step(format!("enter the working directory {path} (process.cwd)"))
}
