//! Finds a file in a root filesystem's layers as the kernel's overlay would show it, without mounting anything.
//!
//! A folder of the merged view is a stack of folders, one a layer, topmost first. Each component is opened alone with
//! O_PATH and O_NOFOLLOW, symbolic links are walked by hand, so no name in an image leads out of its layers.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::rootfs::{Layer, View};

/// What a path of the merged view is.
#[derive(Debug)]
pub enum Entry {
    File(Found),
    Directory,
    /// A device, socket or fifo.
    Special,
    Missing,
}

/// A regular file of one layer.
#[derive(Debug)]
pub struct Found {
    /// Open for reading.
    pub file: File,
    pub stat: Stat,
    /// Where the file is on the node, in its layer.
    pub backing: PathBuf,
    /// Whether its layer is committed ([`Layer::committed`]).
    pub committed: bool,
}

/// Why a path could not be looked up.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    #[error("reading {path:?} in the root filesystem failed: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path:?} leads through more than {MAX_LINKS} symbolic links")]
    Loop { path: PathBuf },
    #[error(
        "{path:?} was moved or copied up without its data in the overlay (redirect or metacopy), which cannot be read without mounting"
    )]
    Redirected { path: PathBuf },
    #[error(
        "{path:?} leads more than {MAX_DEPTH} folders deep, or through more than {MAX_OPEN} of all layers together"
    )]
    Deep { path: PathBuf },
    #[error("{path:?} was exchanged while it was being opened")]
    Raced { path: PathBuf },
}

/// As many as the kernel follows (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// So deep may a path lead, links followed: each folder is held open in each layer that has it.
const MAX_DEPTH: usize = 255;

/// So many folders of all layers are held open at once for one path.
const MAX_OPEN: usize = 4096;

/// A folder of one layer in the merged view.
struct Open {
    fd: OwnedFd,
    layer: usize,
}

/// A folder of the merged view: one open folder a layer that has it, topmost first.
type Merged = Rc<Vec<Open>>;

/// Walks `path` through `view`. The path is absolute or taken from the root; `.` and `..` are followed as the kernel
/// does, `..` of the root being the root.
pub fn lookup(view: &View, path: &Path) -> Result<Entry, LookupError> {
    let walk = Walk { view, path };
    let root: Merged = Rc::new(walk.roots()?);
    let mut folders: Vec<(OsString, Merged)> = Vec::new();
    let mut rest: VecDeque<OsString> = VecDeque::new();
    push_front(&mut rest, path);
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        if name == "/" {
            folders.clear();
            continue;
        }
        if name == ".." {
            folders.pop();
            continue;
        }
        let here = folders
            .last()
            .map_or_else(|| root.clone(), |(_, folder)| folder.clone());
        match walk.step(&here, &name)? {
            Step::Missing => return Ok(Entry::Missing),
            Step::Directory(merged) => {
                let open: usize = folders.iter().map(|(_, folder)| folder.len()).sum();
                if folders.len() >= MAX_DEPTH || open + merged.len() > MAX_OPEN {
                    return Err(LookupError::Deep { path: path.to_owned() });
                }
                folders.push((name, Rc::new(merged)));
            }
            Step::Link(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(LookupError::Loop { path: path.to_owned() });
                }
                push_front(&mut rest, &target);
            }
            // Something that is no folder has nothing below it.
            Step::File { .. } | Step::Special if !rest.is_empty() => return Ok(Entry::Missing),
            Step::Special => return Ok(Entry::Special),
            Step::File { folder, stat } => {
                let folder = &here[folder];
                let layer = &view.layers[folder.layer];
                let file = walk.open_file(folder, &name, &stat)?;
                let mut backing = layer.folder.clone();
                backing.extend(folders.iter().map(|(name, _)| name));
                backing.push(&name);
                return Ok(Entry::File(Found {
                    file,
                    stat,
                    backing,
                    committed: layer.committed,
                }));
            }
        }
    }
    Ok(Entry::Directory)
}

/// Puts the components of `path` before what is still to be walked; a leading `/` goes back to the root.
fn push_front(rest: &mut VecDeque<OsString>, path: &Path) {
    let mut parts: Vec<OsString> = Vec::new();
    for component in path.components() {
        match component {
            Component::CurDir | Component::Prefix(_) => {}
            Component::RootDir => parts.push("/".into()),
            Component::ParentDir => parts.push("..".into()),
            Component::Normal(name) => parts.push(name.to_owned()),
        }
    }
    parts.into_iter().rev().for_each(|part| rest.push_front(part));
}

enum Step {
    Directory(Vec<Open>),
    Link(PathBuf),
    /// The file of the folder at this index of the merged one.
    File {
        folder: usize,
        stat: Stat,
    },
    Special,
    Missing,
}

struct Walk<'a> {
    view: &'a View,
    /// The whole path, as messages name it.
    path: &'a Path,
}

impl Walk<'_> {
    fn roots(&self) -> Result<Vec<Open>, LookupError> {
        let open = |(layer, Layer { folder, .. }): (usize, &Layer)| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            match rustix::fs::openat(CWD, folder, flags, Mode::empty()) {
                Ok(fd) => Ok(Open { fd, layer }),
                Err(errno) => Err(LookupError::Read {
                    path: folder.clone(),
                    source: errno.into(),
                }),
            }
        };
        self.view.layers.iter().enumerate().map(open).collect()
    }

    /// What `name` is in the folder `here`, by the overlay's rules: the topmost layer that has it decides, a whiteout
    /// hides it, folders merge down to the first opaque one or the first that is no folder.
    fn step(&self, here: &[Open], name: &OsStr) -> Result<Step, LookupError> {
        let mut merged: Vec<Open> = Vec::new();
        for (folder, open) in here.iter().enumerate() {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = match rustix::fs::openat(&open.fd, name, flags, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NAMETOOLONG) => continue,
                Err(errno) => return Err(self.read(errno)),
            };
            let stat = rustix::fs::fstat(&fd).map_err(|errno| self.read(errno))?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            match kind {
                FileType::Directory => {
                    if self.marked(&fd, "trusted.overlay.redirect")? || self.marked(&fd, "user.overlay.redirect")? {
                        return Err(LookupError::Redirected {
                            path: self.path.to_owned(),
                        });
                    }
                    let opaque = self.marked(&fd, self.view.opaque)?;
                    merged.push(Open { fd, layer: open.layer });
                    if opaque {
                        break;
                    }
                }
                // A folder above hides whatever else is below.
                _ if !merged.is_empty() => break,
                FileType::CharacterDevice if stat.st_rdev == 0 => return Ok(Step::Missing),
                FileType::Symlink => return self.link(&fd),
                FileType::RegularFile => return Ok(Step::File { folder, stat }),
                _ => return Ok(Step::Special),
            }
        }
        Ok(match merged.is_empty() {
            true => Step::Missing,
            false => Step::Directory(merged),
        })
    }

    fn link(&self, fd: &OwnedFd) -> Result<Step, LookupError> {
        let target = rustix::fs::readlinkat(fd, "", Vec::new()).map_err(|errno| self.read(errno))?;
        Ok(Step::Link(PathBuf::from(OsString::from_vec(target.into_bytes()))))
    }

    /// Opens the file that `stat` describes for reading; never waits on a fifo that took its place.
    fn open_file(&self, folder: &Open, name: &OsStr, stat: &Stat) -> Result<File, LookupError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&folder.fd, name, flags, Mode::empty()).map_err(|errno| self.read(errno))?;
        let opened = rustix::fs::fstat(&fd).map_err(|errno| self.read(errno))?;
        if (opened.st_dev, opened.st_ino) != (stat.st_dev, stat.st_ino) {
            return Err(LookupError::Raced {
                path: self.path.to_owned(),
            });
        }
        if self.marked(&fd, "trusted.overlay.metacopy")? || self.marked(&fd, "user.overlay.metacopy")? {
            return Err(LookupError::Redirected {
                path: self.path.to_owned(),
            });
        }
        Ok(File::from(fd))
    }

    /// Whether the xattr is there; for opaque marks, whether it is `y`.
    fn marked(&self, fd: impl AsFd, xattr: &str) -> Result<bool, LookupError> {
        // An fd opened with O_PATH has no fgetxattr(2): its name under /proc is the same inode.
        let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd()));
        let mut value = [0_u8; 1];
        match rustix::fs::getxattr(name, xattr, &mut value[..]) {
            Ok(length) => Ok(!xattr.ends_with(".opaque") || (length == 1 && value == *b"y")),
            // A value longer than one byte is there, and is not `y`.
            Err(Errno::RANGE) => Ok(!xattr.ends_with(".opaque")),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
            Err(errno) => Err(self.read(errno)),
        }
    }

    fn read(&self, errno: Errno) -> LookupError {
        LookupError::Read {
            path: self.path.to_owned(),
            source: errno.into(),
        }
    }
}

#[cfg(test)]
mod tests;
