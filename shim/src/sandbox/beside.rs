//! Entering a container that runs: the namespaces of its first process, and its root with them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

use super::failure::{Failure, step};
use super::plan::{Confinement, Role};
use super::root;
use crate::sys::mounts;
use crate::sys::namespaces::{self, Kind};

/// Where a native process looks for its procfs.
const PROC: &str = "/proc";

/// Enters what takes effect for the next fork alone.
pub fn enter_before_fork(process: BorrowedFd<'_>) -> Result<(), Failure> {
    namespaces::join_process(process, [Kind::Pid]).map_err(step("join the container's pid namespace"))
}

/// Enters everything else. A wasm process then sees what its container's does; a native one gets a copy of the mounts,
/// where it has a procfs that no wasm process ever sees.
pub fn enter(process: BorrowedFd<'_>, confinement: &Confinement) -> Result<(), Failure> {
    let native = matches!(confinement.role, Role::Native { .. });
    // Made while this is still the host: inside there may be neither the right to mount it nor anything to mask with.
    let procfs = native.then(|| procfs(confinement)).transpose()?;
    let kinds = [Kind::Mount, Kind::Uts, Kind::Ipc, Kind::Network, Kind::Cgroup];
    namespaces::join_process(process, kinds).map_err(step("join the container's namespaces"))?;
    match procfs {
        Some(procfs) => attach(procfs.as_fd()),
        None => Ok(()),
    }
}

/// A procfs of this pid namespace, masked as the spec has it, attached nowhere.
fn procfs(confinement: &Confinement) -> Result<OwnedFd, Failure> {
    let what = || step("prepare a procfs");
    namespaces::make([Kind::Mount]).map_err(step("make a mount namespace"))?;
    mounts::make_private().map_err(step("cut off the mount namespace"))?;
    let point = mounts::open_directory(Path::new(PROC)).map_err(step("open /proc"))?;
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    mounts::mount_new("proc", point.as_fd(), flags, "").map_err(step("mount a procfs"))?;
    let host = mounts::open_directory(Path::new("/")).map_err(what())?;
    let below = |paths: &[PathBuf]| -> Vec<PathBuf> {
        let mut below = paths.to_vec();
        below.retain(|path| path.starts_with(PROC));
        below
    };
    root::restrict_paths(
        host.as_fd(),
        &below(&confinement.read_only),
        &below(&confinement.masked),
        &confinement.root.folder,
    )?;
    mounts::clone_tree(host.as_fd(), Path::new("proc"), true).map_err(what())
}

/// Mounts the procfs in a copy of the container's mounts.
fn attach(procfs: BorrowedFd<'_>) -> Result<(), Failure> {
    namespaces::make([Kind::Mount]).map_err(step("copy the container's mounts"))?;
    mounts::make_private().map_err(step("cut off the copy of the container's mounts"))?;
    let root = mounts::open_directory(Path::new("/")).map_err(step("open the root"))?;
    let point = match mounts::open_mount_point(root.as_fd(), Path::new(PROC), true, None) {
        // A read-only root without a folder for it goes without.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => return Ok(()),
        point => point.map_err(step("make the mount point /proc"))?,
    };
    mounts::attach(procfs, point.as_fd()).map_err(step("attach the procfs"))
}
