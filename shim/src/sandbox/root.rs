//! The root file system of a process: made in a mount namespace of its own, from trees that are restricted before they
//! are attached, then pivoted to.
//!
//! Nothing is looked up twice: an image's symlinks and a volume's contents decide where a path leads, so a second look
//! may lead elsewhere.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{MountAttrFlags, MountFlags};

use super::failure::{Failure, step};
use super::plan::Root;
use super::users::Users;
use super::volumes::{Kind, Volume};
use super::working_directory;
use crate::image::Mount;
use crate::sys::mounts;

/// No device is ever opened from a container's file system.
const NODEV: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;
const READ_ONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;

/// What goes into the root.
pub struct Contents<'a> {
    pub volumes: &'a [Volume],
    pub masked: &'a [PathBuf],
    pub read_only: &'a [PathBuf],
    /// Made where it is missing.
    pub working_directory: &'a Path,
}

/// Makes the root file system with everything in it and moves into it.
pub fn settle(root: &Root, contents: &Contents<'_>, users: &Users) -> Result<(), Failure> {
    mounts::make_private().map_err(step("cut off the mount namespace"))?;
    let handle = mount_root(root, users)?;
    for volume in contents.volumes {
        place(handle.as_fd(), volume, root.owner, users)?;
    }
    refuse_kernel_mounts(handle.as_fd())?;
    // Before anything becomes read-only, as runc has it.
    working_directory::make(handle.as_fd(), contents.working_directory, root.owner)?;
    restrict_paths(handle.as_fd(), contents.read_only, contents.masked, &root.folder)?;
    if root.read_only {
        mounts::restrict(handle.as_fd(), READ_ONLY, false).map_err(step("make the root filesystem read-only"))?;
    }
    mounts::pivot(handle.as_fd()).map_err(step("pivot to the root filesystem"))
}

/// Makes paths below `root` read-only and hides others. The bundle, where `folder` is, is covered by what hides files.
pub fn restrict_paths(
    root: BorrowedFd<'_>,
    read_only: &[PathBuf],
    masked: &[PathBuf],
    folder: &Path,
) -> Result<(), Failure> {
    for path in read_only {
        protect(root, path)?;
    }
    let mut blank = None;
    for path in masked {
        mask(root, path, folder, &mut blank)?;
    }
    Ok(())
}

/// Moves into an empty, read-only root: what a holder sees.
pub fn settle_nowhere(root: &Root) -> Result<(), Failure> {
    mounts::make_private().map_err(step("cut off the mount namespace"))?;
    let point = mounts::open_directory(&root.folder).map_err(step("open the root filesystem"))?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    mounts::mount_new("tmpfs", point.as_fd(), flags, "size=4k,mode=555").map_err(step("mount an empty root"))?;
    let handle = mounts::open_directory(&root.folder).map_err(step("open the empty root"))?;
    mounts::pivot(handle.as_fd()).map_err(step("pivot to an empty root"))
}

fn mount_root(root: &Root, users: &Users) -> Result<OwnedFd, Failure> {
    let map = root.map.as_ref().map(|mappings| users.map(mappings)).transpose()?;
    match root.mounts.as_slice() {
        [] => bind_root(&root.folder, &root.folder, NODEV, map),
        [mount] => mount_snapshot(root, mount, map),
        mounts => Err(step("mount the root filesystem")(format!(
            "it comes in {} mounts, which is not supported: use overlayfs or native",
            mounts.len()
        ))),
    }
}

fn mount_snapshot(root: &Root, mount: &Mount, map: Option<BorrowedFd<'_>>) -> Result<OwnedFd, Failure> {
    let what = || format!("mount the root filesystem ({} {})", mount.kind, mount.source);
    let read_only = mount.options.iter().any(|option| option == "ro");
    match mount.kind.as_str() {
        "overlay" => {
            let options: Vec<String> = mount
                .options
                .iter()
                .filter(|option| !["rw", "ro"].contains(&option.as_str()))
                .cloned()
                .collect();
            if let Some(map) = map {
                map_layers(&options, map)?;
            }
            mounts::mount_overlay(&root.folder, MountFlags::NODEV, &options).map_err(step(what()))?;
            let handle = mounts::open_directory(&root.folder).map_err(step(what()))?;
            if read_only {
                mounts::restrict(handle.as_fd(), READ_ONLY, false).map_err(step(what()))?;
            }
            Ok(handle)
        }
        "bind" | "" => {
            let attributes = if read_only { NODEV | READ_ONLY } else { NODEV };
            bind_root(Path::new(&mount.source), &root.folder, attributes, map)
        }
        other => Err(step(what())(format!(
            "snapshots of type {other} are not supported: use overlayfs or native"
        ))),
    }
}

/// Covers the lower layers of an overlay, in this mount namespace, with themselves as the mapped users see them: an
/// overlay's own mount cannot be id-mapped, its layers can. The upper layer has its owners right.
fn map_layers(options: &[String], map: BorrowedFd<'_>) -> Result<(), Failure> {
    let lower = options.iter().find_map(|option| option.strip_prefix("lowerdir="));
    for layer in lower.unwrap_or_default().split(':').map(Path::new) {
        let what = || format!("id-map the layer {}", layer.display());
        let point = mounts::open_directory(layer).map_err(step(what()))?;
        let tree = mounts::clone_tree(point.as_fd(), Path::new(""), false).map_err(step(what()))?;
        mounts::map_owners(tree.as_fd(), map, false).map_err(step(what()))?;
        mounts::attach(tree.as_fd(), point.as_fd()).map_err(step(what()))?;
    }
    Ok(())
}

fn bind_root(
    source: &Path,
    folder: &Path,
    attributes: MountAttrFlags,
    map: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, Failure> {
    let what = || format!("bind the root filesystem {}", source.display());
    let point = mounts::open_directory(folder).map_err(step(what()))?;
    let tree = mounts::clone_tree(CWD, source, true).map_err(step(what()))?;
    if let Some(map) = map {
        mounts::map_owners(tree.as_fd(), map, false).map_err(step(what()))?;
    }
    mounts::restrict(tree.as_fd(), attributes, true).map_err(step(what()))?;
    mounts::attach(tree.as_fd(), point.as_fd()).map_err(step(what()))?;
    Ok(tree)
}

/// Makes the mount point of a volume, which is never the root itself, whatever an image's symlinks say.
fn point(
    root: BorrowedFd<'_>,
    destination: &Path,
    directory: bool,
    owner: Option<(u32, u32)>,
) -> Result<OwnedFd, Failure> {
    let what = || format!("make the mount point {}", destination.display());
    let point = mounts::open_mount_point(root, destination, directory, owner).map_err(step(what()))?;
    if mounts::same_place(root, point.as_fd()).map_err(step(what()))? {
        return Err(step(what())(
            "it leads to the container's root, where nothing can be mounted: use another path",
        ));
    }
    Ok(point)
}

fn place(root: BorrowedFd<'_>, volume: &Volume, owner: Option<(u32, u32)>, users: &Users) -> Result<(), Failure> {
    let at = volume.destination.display();
    let flags = MountFlags::from_bits_retain(volume.flags);
    let (source, recursive) = match &volume.kind {
        Kind::Tmpfs { data } => {
            let point = point(root, &volume.destination, true, owner)?;
            return mounts::mount_new("tmpfs", point.as_fd(), flags, data)
                .map_err(step(format!("mount a tmpfs at {at}")));
        }
        Kind::Bind { source, recursive } => (source, *recursive),
    };
    let what = || format!("mount {} at {at}", source.display());
    let tree = mounts::clone_tree(CWD, source, recursive).map_err(step(what()))?;
    let kind = mounts::file_type(tree.as_fd()).map_err(step(what()))?;
    if matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
        return Err(step(what())(
            "it is a device, which a wasm container may not see: remove the mount",
        ));
    }
    if let Some(map) = &volume.map {
        let what = || format!("id-map the mount of {} at {at}", source.display());
        mounts::map_owners(tree.as_fd(), users.map(&map.mappings)?, map.recursive).map_err(step(what()))?;
    }
    mounts::restrict(tree.as_fd(), mounts::attributes(flags), false).map_err(step(what()))?;
    let below = if volume.read_only_recursive {
        NODEV | READ_ONLY
    } else {
        NODEV
    };
    mounts::restrict(tree.as_fd(), below, true).map_err(step(what()))?;
    let point = point(root, &volume.destination, kind == FileType::Directory, owner)?;
    mounts::attach(tree.as_fd(), point.as_fd()).map_err(step(what()))
}

/// A bind mount may have brought a kernel file system along, itself or below: refused by name, never hidden.
fn refuse_kernel_mounts(root: BorrowedFd<'_>) -> Result<(), Failure> {
    // As the kernel names it: the bundle's path may lead through symlinks.
    let folder = fs::read_link(format!("/proc/self/fd/{}", root.as_raw_fd())).map_err(step("find the root"))?;
    // A mount of the host may have any bytes in its path.
    let table = fs::read("/proc/self/mountinfo").map_err(step("read the mount table"))?;
    match mounts::kernel_mounts_below(&String::from_utf8_lossy(&table), &folder).first() {
        None => Ok(()),
        Some((point, kind)) => {
            let inside = Path::new("/").join(point.strip_prefix(&folder).unwrap_or(point));
            Err(step(format!("check the mount at {}", inside.display()))(format!(
                "it is {kind}, the kernel's own file system, which a wasm container may not see: mount a folder without it"
            )))
        }
    }
}

/// Puts a read-only copy of what is at `path` on itself; a path that is not there needs none.
fn protect(root: BorrowedFd<'_>, path: &Path) -> Result<(), Failure> {
    let Some(target) = present(root, path)? else {
        return Ok(());
    };
    let what = || format!("make {} read-only", path.display());
    let tree = mounts::clone_tree(target.as_fd(), Path::new(""), true).map_err(step(what()))?;
    mounts::restrict(tree.as_fd(), READ_ONLY, false).map_err(step(what()))?;
    mounts::attach(tree.as_fd(), target.as_fd()).map_err(step(what()))
}

/// Hides a path: a folder under an empty read-only one, a file under one that nobody may read.
fn mask(root: BorrowedFd<'_>, path: &Path, folder: &Path, blank: &mut Option<OwnedFd>) -> Result<(), Failure> {
    let Some(target) = present(root, path)? else {
        return Ok(());
    };
    let what = || format!("mask {}", path.display());
    if mounts::file_type(target.as_fd()).map_err(step(what()))? == FileType::Directory {
        let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        return mounts::mount_new("tmpfs", target.as_fd(), flags, "size=4k").map_err(step(what()));
    }
    let file = match blank.take() {
        Some(file) => file,
        None => blank_file(folder).map_err(step(what()))?,
    };
    let tree = mounts::clone_tree(file.as_fd(), Path::new(""), false).map_err(step(what()))?;
    mounts::restrict(tree.as_fd(), READ_ONLY | NODEV, false).map_err(step(what()))?;
    mounts::attach(tree.as_fd(), target.as_fd()).map_err(step(what()))?;
    *blank = Some(file);
    Ok(())
}

/// An empty file without permissions, on a tmpfs that covers the bundle in this mount namespace and goes with the old
/// root.
fn blank_file(folder: &Path) -> io::Result<OwnedFd> {
    let bundle = folder.parent().unwrap_or(folder);
    let point = mounts::open_directory(bundle)?;
    mounts::mount_new("tmpfs", point.as_fd(), MountFlags::NODEV, "size=4k,mode=700")?;
    let name = bundle.join("blank");
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, &name, flags, Mode::empty())?;
    Ok(rustix::fs::openat(
        CWD,
        &name,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

fn present(root: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>, Failure> {
    match mounts::open_in_root(root, path) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) => Ok(None),
        Err(error) => Err(step(format!("open {}", path.display()))(error)),
    }
}
