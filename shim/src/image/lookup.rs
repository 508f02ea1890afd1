//! Finds a file as a container sees it, without mounting anything: in the layers of its root filesystem as the kernel's
//! overlay would show them, beneath what the spec mounts there.
//!
//! A folder of the merged view is a stack of folders, one a layer, topmost first. Each component is opened alone with
//! O_PATH and O_NOFOLLOW, symbolic links are walked by hand, so no name in an image or volume leads out of the root.
//! A mount is known by the path of its mount point without links, which no other mount point of the container has but
//! those that it hides or is hidden by.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::rootfs::{Layer, View};
use super::volume::{Content, Volume};

/// What a path of the merged view is.
#[derive(Debug)]
pub enum Entry {
    File(Found),
    Directory,
    /// A device, socket or fifo.
    Special,
    Missing,
    /// The path leads into a mount whose files cannot be known ([`Content::Unknown`]).
    Unknown,
    /// The path may lead into a volume, and volumes were not to be opened.
    Volume,
}

/// A regular file of one layer or volume.
#[derive(Debug)]
pub struct Found {
    /// Open for reading.
    pub file: File,
    pub stat: Stat,
    /// Where the file is on the node, in its layer or volume.
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
    #[error("opening {from:?}, which is mounted at {destination:?}, failed: {cause}")]
    Source {
        from: PathBuf,
        destination: PathBuf,
        cause: io::Error,
    },
    #[error("{path:?} was exchanged while it was being opened")]
    Raced { path: PathBuf },
}

/// As many as the kernel follows (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// So deep may a path lead, links followed: each folder is held open in each layer that has it.
const MAX_DEPTH: usize = 255;

/// So many folders of all layers are held open at once for one path.
const MAX_OPEN: usize = 4096;

/// Limits of a listing of files: its depth, the names that it looks at, and the directories that it holds open.
const MAX_LISTED_DEPTH: usize = 8;
const MAX_LISTED_NAMES: usize = 20_000;
const MAX_LISTED_FOLDERS: usize = 1000;

/// A directory of one layer, or of a volume, in the merged view.
struct Open {
    fd: OwnedFd,
    /// The index of its layer; `None` in a volume, which no overlay is made of.
    layer: Option<usize>,
}

/// A directory of the merged view: an open directory for each layer that has it, topmost first. Empty where a runtime makes a
/// mount point.
type Merged = Rc<Vec<Open>>;

/// A directory on the way from the root.
struct Folder {
    name: OsString,
    merged: Merged,
    mount: Mounted,
}

/// In which mount a directory is.
#[derive(Clone, Copy)]
struct Mounted {
    /// 0 in the root filesystem, else one more than the volume's index: a mount covers those before it.
    order: usize,
    /// How many directories lead to its root.
    depth: usize,
}

const ROOT: Mounted = Mounted { order: 0, depth: 0 };

/// Where a walk has ended.
struct Reached {
    /// The path without links, also of what is not there.
    path: Vec<OsString>,
    /// How many of its last components were not walked.
    left: usize,
    entry: Entry,
}

/// Looks paths up in one container.
pub struct Lookup<'a> {
    view: &'a View,
    volumes: &'a [Volume],
    root: Merged,
    /// Whether volumes are opened; a server that hangs makes that wait.
    opens_volumes: bool,
    /// The mount points of the volumes, without links.
    points: Vec<Vec<OsString>>,
}

impl<'a> Lookup<'a> {
    /// For a container with the root filesystem `view`, in which `volumes` are mounted one after another.
    ///
    /// # Errors
    ///
    /// When a layer, or the way to a mount point, cannot be read.
    pub fn new(view: &'a View, volumes: &'a [Volume], opens_volumes: bool) -> Result<Lookup<'a>, LookupError> {
        let mut lookup = Lookup {
            view,
            volumes,
            root: Rc::new(roots(view)?),
            opens_volumes,
            points: Vec::new(),
        };
        for volume in volumes {
            let point = match volume.content {
                // Runtimes mount those of the kernel through no links.
                Content::Unknown => plain(&volume.destination),
                Content::Bind { .. } | Content::Empty => {
                    let reached = lookup.walk(&volume.destination)?;
                    // On another mount's own root it is known without opening that.
                    if matches!(reached.entry, Entry::Volume) && reached.left > 0 {
                        break;
                    }
                    reached.path
                }
            };
            lookup.points.push(point);
        }
        Ok(lookup)
    }

    /// What `path` is. It is absolute or taken from the root; `.` and `..` are followed as the kernel does, `..` of the
    /// root being the root.
    ///
    /// # Errors
    ///
    /// When something on the way cannot be read, or the way is too long.
    pub fn find(&self, path: &Path) -> Result<Entry, LookupError> {
        match self.points.len() == self.volumes.len() {
            true => Ok(self.walk(path)?.entry),
            false => Ok(Entry::Volume),
        }
    }

    /// The paths of files of the root filesystem whose names end with `suffix`, at most `most`. Of a large root
    /// filesystem not everything is looked at.
    ///
    /// # Errors
    ///
    /// When a directory cannot be read.
    pub fn files(&self, suffix: &str, most: usize) -> Result<Vec<String>, LookupError> {
        let (mut found, mut seen) = (Vec::new(), 0);
        let mut folders = VecDeque::from([(PathBuf::from("/"), self.root.clone())]);
        while let Some((path, folder)) = folders.pop_front() {
            for name in names(&path, &folder)? {
                seen += 1;
                let path = path.join(&name);
                match self.step(&path, &folder, &name)? {
                    Step::Directory(merged) if path.components().count() <= MAX_LISTED_DEPTH => {
                        folders.push_back((path, Rc::new(merged)));
                    }
                    Step::File { .. } if name.as_encoded_bytes().ends_with(suffix.as_bytes()) => {
                        found.push(path.display().to_string());
                    }
                    _ => {}
                }
                if found.len() >= most || seen >= MAX_LISTED_NAMES || folders.len() >= MAX_LISTED_FOLDERS {
                    return Ok(found);
                }
            }
        }
        Ok(found)
    }

    fn walk(&self, path: &Path) -> Result<Reached, LookupError> {
        let mut folders: Vec<Folder> = Vec::new();
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
            let (here, mount) = folders
                .last()
                .map_or((&self.root, ROOT), |folder| (&folder.merged, folder.mount));
            let here = here.clone();
            let mut at: Vec<OsString> = folders.iter().map(|folder| folder.name.clone()).collect();
            at.push(name.clone());
            let reached = |entry| {
                let mut path = at.clone();
                rest.iter().for_each(|name| step_plainly(&mut path, name));
                let left = rest.len();
                Ok(Reached { path, left, entry })
            };
            if let Some(index) = self.covering(&at, mount.order) {
                let mount = Mounted {
                    order: index + 1,
                    depth: at.len(),
                };
                let merged = match &self.volumes[index].content {
                    Content::Unknown => return reached(Entry::Unknown),
                    Content::Empty => Vec::new(),
                    Content::Bind { .. } if !self.opens_volumes => return reached(Entry::Volume),
                    Content::Bind { source, recursive } => match self.open_volume(index, source, *recursive)? {
                        Step::Directory(merged) => merged,
                        _ if !rest.is_empty() => return reached(Entry::Missing),
                        Step::Opened { file, stat } => {
                            return reached(Entry::File(Found {
                                file,
                                stat,
                                backing: source.clone(),
                                committed: false,
                            }));
                        }
                        _ => return reached(Entry::Special),
                    },
                };
                folders.push(self.entered(path, &folders, name, merged, mount)?);
                continue;
            }
            match self.step(path, &here, &name)? {
                Step::Missing if self.leads_to_a_mount(&at, mount.order) => {
                    folders.push(self.entered(path, &folders, name, Vec::new(), mount)?);
                }
                Step::Missing => return reached(Entry::Missing),
                Step::Directory(merged) => folders.push(self.entered(path, &folders, name, merged, mount)?),
                Step::Link(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(LookupError::Loop { path: path.to_owned() });
                    }
                    push_front(&mut rest, &target);
                }
                // Something that is no directory has nothing below it.
                Step::File { .. } | Step::Special | Step::Opened { .. } if !rest.is_empty() => {
                    return reached(Entry::Missing);
                }
                Step::Special | Step::Opened { .. } => return reached(Entry::Special),
                Step::File { folder, stat } => {
                    let file = self.open_file(path, &here[folder], &name, &stat)?;
                    let (base, committed) = self.base(here[folder].layer, mount);
                    let mut backing = base.to_owned();
                    backing.extend(&at[mount.depth..]);
                    return reached(Entry::File(Found {
                        file,
                        stat,
                        backing,
                        committed,
                    }));
                }
            }
        }
        Ok(Reached {
            path: folders.into_iter().map(|folder| folder.name).collect(),
            left: 0,
            entry: Entry::Directory,
        })
    }

    /// A directory that is entered from the last one of `folders`.
    fn entered(
        &self,
        path: &Path,
        folders: &[Folder],
        name: OsString,
        merged: Vec<Open>,
        mount: Mounted,
    ) -> Result<Folder, LookupError> {
        let open: usize = folders.iter().map(|folder| folder.merged.len()).sum();
        if folders.len() >= MAX_DEPTH || open + merged.len() > MAX_OPEN {
            return Err(LookupError::Deep { path: path.to_owned() });
        }
        Ok(Folder {
            name,
            merged: Rc::new(merged),
            mount,
        })
    }

    /// The volume that is seen at `path` from within the mount `order`: the last one that was mounted there, unless that
    /// was before this mount covered it.
    fn covering(&self, path: &[OsString], order: usize) -> Option<usize> {
        let later = self.points.iter().enumerate().skip(order);
        later.rev().find(|(_, point)| *point == path).map(|(index, _)| index)
    }

    /// Whether a mount point lies below `path`, so that a runtime makes that.
    fn leads_to_a_mount(&self, path: &[OsString], order: usize) -> bool {
        self.points.iter().skip(order).any(|point| point.starts_with(path))
    }

    /// Where on the node the files of a layer or mount are, and whether they are committed.
    fn base(&self, layer: Option<usize>, mount: Mounted) -> (&Path, bool) {
        match layer {
            Some(layer) => (&self.view.layers[layer].folder, self.view.layers[layer].committed),
            None => match mount.order.checked_sub(1).map(|index| &self.volumes[index].content) {
                Some(Content::Bind { source, .. }) => (source, false),
                _ => (Path::new("/"), false),
            },
        }
    }

    /// Opens what is mounted as a volume, as the runtime will: without what is mounted below it, unless it is recursive.
    fn open_volume(&self, index: usize, source: &Path, recursive: bool) -> Result<Step, LookupError> {
        let failed = |errno: Errno| LookupError::Source {
            from: source.to_owned(),
            destination: self.volumes[index].destination.clone(),
            cause: errno.into(),
        };
        let plain = || rustix::fs::openat(CWD, source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let cloned = || {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            match open_tree(CWD, source, flags) {
                // Only a test runs without the privilege to mount.
                Err(Errno::PERM) => plain(),
                tree => tree,
            }
        };
        let fd = if recursive { plain() } else { cloned() }.map_err(failed)?;
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Step::Directory(vec![Open { fd, layer: None }]),
            FileType::RegularFile => {
                // The same file, whatever is at its path by now.
                let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = rustix::fs::openat(CWD, name, flags, Mode::empty()).map_err(failed)?;
                Step::Opened {
                    file: file.into(),
                    stat,
                }
            }
            _ => Step::Special,
        })
    }

    /// What `name` is in the folder `here`, by the overlay's rules: the topmost layer that has it decides, a whiteout
    /// hides it, folders merge down to the first opaque one or the first that is no folder.
    fn step(&self, path: &Path, here: &[Open], name: &OsStr) -> Result<Step, LookupError> {
        let mut merged: Vec<Open> = Vec::new();
        for (folder, open) in here.iter().enumerate() {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = match rustix::fs::openat(&open.fd, name, flags, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NAMETOOLONG) => continue,
                Err(errno) => return Err(read_error(path, errno)),
            };
            let stat = rustix::fs::fstat(&fd).map_err(|errno| read_error(path, errno))?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            match kind {
                FileType::Directory => {
                    let opaque = open.layer.is_some() && self.is_opaque(path, &fd)?;
                    merged.push(Open { fd, layer: open.layer });
                    if opaque {
                        break;
                    }
                }
                // A folder above hides whatever else is below.
                _ if !merged.is_empty() => break,
                FileType::CharacterDevice if stat.st_rdev == 0 && open.layer.is_some() => return Ok(Step::Missing),
                FileType::Symlink => return link(path, &fd),
                FileType::RegularFile => return Ok(Step::File { folder, stat }),
                _ => return Ok(Step::Special),
            }
        }
        Ok(match merged.is_empty() {
            true => Step::Missing,
            false => Step::Directory(merged),
        })
    }

    /// Whether a directory of a layer hides those below.
    fn is_opaque(&self, path: &Path, fd: &OwnedFd) -> Result<bool, LookupError> {
        if marked(path, fd, "trusted.overlay.redirect")? || marked(path, fd, "user.overlay.redirect")? {
            return Err(LookupError::Redirected { path: path.to_owned() });
        }
        marked(path, fd, self.view.opaque)
    }

    /// Opens the file that `stat` describes for reading; never waits on a fifo that took its place.
    fn open_file(&self, path: &Path, folder: &Open, name: &OsStr, stat: &Stat) -> Result<File, LookupError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&folder.fd, name, flags, Mode::empty()).map_err(|errno| read_error(path, errno))?;
        let opened = rustix::fs::fstat(&fd).map_err(|errno| read_error(path, errno))?;
        if (opened.st_dev, opened.st_ino) != (stat.st_dev, stat.st_ino) {
            return Err(LookupError::Raced { path: path.to_owned() });
        }
        let is_of_overlay = folder.layer.is_some();
        if is_of_overlay
            && (marked(path, &fd, "trusted.overlay.metacopy")? || marked(path, &fd, "user.overlay.metacopy")?)
        {
            return Err(LookupError::Redirected { path: path.to_owned() });
        }
        Ok(File::from(fd))
    }
}

/// Whether the xattr is there; for opaque marks, whether it is `y`.
fn marked(path: &Path, fd: impl AsFd, xattr: &str) -> Result<bool, LookupError> {
    // An fd opened with O_PATH has no fgetxattr(2): its name under /proc is the same inode.
    let name = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let mut value = [0_u8; 1];
    match rustix::fs::getxattr(name, xattr, &mut value[..]) {
        Ok(length) => Ok(!xattr.ends_with(".opaque") || (length == 1 && value == *b"y")),
        // A value longer than one byte is there, and is not `y`.
        Err(Errno::RANGE) => Ok(!xattr.ends_with(".opaque")),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(errno) => Err(read_error(path, errno)),
    }
}

fn link(path: &Path, fd: &OwnedFd) -> Result<Step, LookupError> {
    let target = rustix::fs::readlinkat(fd, "", Vec::new()).map_err(|errno| read_error(path, errno))?;
    Ok(Step::Link(PathBuf::from(OsString::from_vec(target.into_bytes()))))
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
    /// The file of the directory at this index of the merged one.
    File {
        folder: usize,
        stat: Stat,
    },
    /// A volume that is a file.
    Opened {
        file: File,
        stat: Stat,
    },
    Special,
    Missing,
}

/// The layers of the root filesystem, open.
fn roots(view: &View) -> Result<Vec<Open>, LookupError> {
    let open = |(layer, Layer { folder, .. }): (usize, &Layer)| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat(CWD, folder, flags, Mode::empty()) {
            Ok(fd) => Ok(Open { fd, layer: Some(layer) }),
            Err(errno) => Err(LookupError::Read {
                path: folder.clone(),
                source: errno.into(),
            }),
        }
    };
    view.layers.iter().enumerate().map(open).collect()
}

/// The names in a directory of the merged view, in order.
fn names(path: &Path, folder: &[Open]) -> Result<BTreeSet<OsString>, LookupError> {
    let failed = |errno| read_error(path, errno);
    let mut names = BTreeSet::new();
    for open in folder {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&open.fd, ".", flags, Mode::empty()).map_err(failed)?;
        for entry in Dir::new(fd).map_err(failed)? {
            let name = OsString::from_vec(entry.map_err(failed)?.file_name().to_bytes().to_vec());
            if name != "." && name != ".." && names.len() < MAX_LISTED_NAMES {
                names.insert(name);
            }
        }
    }
    Ok(names)
}

/// The components of `path`, as if none was a link.
fn plain(path: &Path) -> Vec<OsString> {
    let (mut names, mut rest) = (Vec::new(), VecDeque::new());
    push_front(&mut rest, path);
    rest.iter().for_each(|name| step_plainly(&mut names, name));
    names
}

fn step_plainly(path: &mut Vec<OsString>, name: &OsStr) {
    match name.as_encoded_bytes() {
        b"/" => path.clear(),
        b".." => drop(path.pop()),
        _ => path.push(name.to_owned()),
    }
}

fn read_error(path: &Path, errno: Errno) -> LookupError {
    LookupError::Read {
        path: path.to_owned(),
        source: errno.into(),
    }
}

#[cfg(test)]
mod tests;
