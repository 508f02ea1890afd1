//! Whether what a plan writes can be written, asked before anything is: the agent writes below `/opt`, and its helper, with
//! all rights of root, replaces a file of containerd's configuration.
//!
//! Both replace files by rename(2), which takes a directory that can be written to and a file that is neither a mount point
//! nor immutable.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    Access, AtFlags, Mode, OFlags, ResolveFlags, StatVfs, StatVfsMountFlags, Statx, StatxAttributes, StatxFlags,
    accessat, fstatvfs, openat2, statx,
};

use super::config::Edit;
use super::host_path::{below, resolve};
use super::layout::Layout;
use super::refusal::Refusal;

/// Room for a shim and the helper, in bytes; they are some 35 MB and 15 MB.
const PROGRAMS: u64 = 64 << 20;
/// Room for a directory's growth and the records next to a file, in bytes.
const SLACK: u64 = 64 << 10;

/// Refuses an edit of a configuration file that could not be carried out on the host with this root.
pub fn refuse_edit(root: &Path, edit: &Edit) -> Result<(), Refusal> {
    const WHAT: &str = "containerd's configuration";
    let file = resolve(root, &edit.file).map_err(|cause| Refusal::unreadable(&edit.file, &cause))?;
    // The file that is renamed.
    let room = edit.new.as_ref().map(|new| new.len() as u64 + SLACK);
    for directory in [edit.file.parent(), file.parent()].into_iter().flatten() {
        if let Ok(place) = Place::open(root, directory) {
            place.refuse_unwritable(WHAT)?;
            place.refuse_full(room.unwrap_or(0))?;
        }
    }
    match Place::open(root, &file) {
        Ok(place) if place.has(StatxAttributes::MOUNT_ROOT) => Err(Refusal::mount_point(&place.path)),
        Ok(place) if place.is_immutable() => Err(Refusal::immutable(&place.path, WHAT)),
        // A new file, or one that can be replaced.
        _ => Ok(()),
    }
}

/// Refuses a file that a process with another root, containerd, finds to be another one.
pub fn refuse_hidden(root: &Path, other: &Path, file: &Path) -> Result<(), Refusal> {
    // A file that does not exist yet is created in its directory.
    for path in [Some(file), file.parent()].into_iter().flatten() {
        if let (Ok(here), Ok(there)) = (Place::open(root, path), Place::open(other, path)) {
            return match here.identity() == there.identity() {
                true => Ok(()),
                false => Err(Refusal::hidden(path)),
            };
        }
    }
    Ok(())
}

/// Refuses a host on which this process, as the agent, could not make the runtime's directory or no program could run from
/// it.
pub fn refuse_programs(root: &Path, layout: &Layout) -> Result<(), Refusal> {
    const WHAT: &str = "the shim";
    let directory = layout.folder();
    let directory = resolve(root, &directory).map_err(|cause| Refusal::not_writable(&directory, &cause))?;
    let ancestors = directory.ancestors();
    let Some(place) = ancestors.filter_map(|path| Place::open(root, path).ok()).next() else {
        // Nothing of it can be seen from here, so the step that writes there says why.
        return Ok(());
    };
    if !place.is_directory() {
        return Err(Refusal::not_writable(
            &place.path,
            &io::Error::from(io::ErrorKind::NotADirectory),
        ));
    }
    place.refuse_unwritable(WHAT)?;
    if place.system.f_flag.contains(StatVfsMountFlags::NOEXEC) {
        return Err(Refusal::no_exec(&place.path));
    }
    place.refuse_forbidden(root)?;
    match super::shim::current(layout) {
        // An upgrade that finds no room leaves the shim that is there.
        Some(_) => Ok(()),
        None => place.refuse_full(PROGRAMS),
    }
}

/// A file or directory, as a process with another root names it.
struct Place {
    path: PathBuf,
    status: Statx,
    system: StatVfs,
}

impl Place {
    fn open(root: &Path, path: &Path) -> io::Result<Place> {
        let root = File::open(root)?;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let file = openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
        Ok(Place {
            path: path.to_owned(),
            status: statx(file.as_fd(), "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?,
            system: fstatvfs(&file)?,
        })
    }

    fn has(&self, attribute: StatxAttributes) -> bool {
        self.status.stx_attributes.contains(attribute)
    }

    fn is_immutable(&self) -> bool {
        self.has(StatxAttributes::IMMUTABLE) || self.has(StatxAttributes::APPEND)
    }

    fn is_directory(&self) -> bool {
        rustix::fs::FileType::from_raw_mode(self.status.stx_mode.into()).is_dir()
    }

    /// The device and the number of the file on it.
    fn identity(&self) -> (u32, u32, u64) {
        (
            self.status.stx_dev_major,
            self.status.stx_dev_minor,
            self.status.stx_ino,
        )
    }

    /// Refuses a directory in which no process can write.
    fn refuse_unwritable(&self, what: &str) -> Result<(), Refusal> {
        if self.system.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Err(Refusal::read_only(&self.path, what));
        }
        match self.is_immutable() {
            true => Err(Refusal::immutable(&self.path, what)),
            false => Ok(()),
        }
    }

    /// Refuses a directory in which this process cannot write.
    fn refuse_forbidden(&self, root: &Path) -> Result<(), Refusal> {
        let directory = File::open(root).and_then(|root| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            Ok(openat2(&root, &self.path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?)
        });
        let may = directory.and_then(|directory| {
            let access = Access::WRITE_OK | Access::EXEC_OK;
            Ok(accessat(&directory, ".", access, AtFlags::EACCESS)?)
        });
        may.map_err(|cause| Refusal::not_writable(&self.path, &cause))
    }

    /// Refuses a file system without room for one more file of `bytes`. One that does not count its room has room.
    fn refuse_full(&self, bytes: u64) -> Result<(), Refusal> {
        let system = &self.system;
        let has_blocks = system.f_blocks == 0 || system.f_bfree.saturating_mul(system.f_frsize) >= bytes;
        let has_files = system.f_files == 0 || system.f_ffree > 0;
        match bytes == 0 || (has_blocks && has_files) {
            true => Ok(()),
            false => Err(Refusal::full(&self.path, bytes)),
        }
    }
}

/// What a file of the host says of who writes it: when it was last written, in seconds since the epoch, and its first line
/// that is not empty.
pub fn signature(root: &Path, file: &Path) -> Option<(i64, String)> {
    let file = below(root, &resolve(root, file).ok()?);
    let written = fs::metadata(&file).ok()?;
    let text = fs::read_to_string(&file).ok()?;
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let written = std::os::unix::fs::MetadataExt::mtime(&written);
    Some((written, line.trim().chars().take(120).collect()))
}
