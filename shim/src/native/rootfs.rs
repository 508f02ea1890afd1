//! Mounts a native container's root filesystem at the bundle's `rootfs`, where its runtime looks for it.
//!
//! The options are read as containerd's own runc shim reads them (containerd, core/mount/mount_linux.go).

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::MountFlags;

use crate::image::Mount;
use crate::sys::mounts;
use crate::sys::user_namespace::Mappings;

/// Why there is no root filesystem.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    #[error("cannot make the root filesystem's folder {}: {cause}", folder.display())]
    Folder { folder: PathBuf, cause: io::Error },
    #[error("cannot mount the root filesystem ({kind} {source_name}): {cause}")]
    Mount {
        kind: String,
        source_name: String,
        cause: io::Error,
    },
    #[error(
        "the root filesystem has the option \"loop\", which is not supported: use the overlayfs or native snapshotter"
    )]
    Loop,
    #[error(
        "the root filesystem's owners are to be {options}, which are not the users of the container's user namespace (linux.uidMappings, linux.gidMappings, and its path): make them the same"
    )]
    Owners { options: String },
}

/// The user namespace that a container joins, and what it maps: it also says how the files of its image show their owners.
pub struct Users {
    pub path: PathBuf,
    pub mappings: Mappings,
}

/// One mount(2), read from its options (pure).
#[derive(Debug, PartialEq, Eq)]
struct Call {
    flags: MountFlags,
    /// What the file system itself is told.
    data: Vec<String>,
    /// How owners are to be shown: `uidmap=` and `gidmap=`, as snapshotters write them.
    owners: Vec<String>,
}

/// The flags that options set, or with `false` clear.
const FLAGS: [(&str, bool, MountFlags); 21] = [
    ("async", false, MountFlags::SYNCHRONOUS),
    ("atime", false, MountFlags::NOATIME),
    ("bind", true, MountFlags::BIND),
    ("dev", false, MountFlags::NODEV),
    ("diratime", false, MountFlags::NODIRATIME),
    ("dirsync", true, MountFlags::DIRSYNC),
    ("exec", false, MountFlags::NOEXEC),
    ("noatime", true, MountFlags::NOATIME),
    ("nodev", true, MountFlags::NODEV),
    ("nodiratime", true, MountFlags::NODIRATIME),
    ("noexec", true, MountFlags::NOEXEC),
    ("norelatime", false, MountFlags::RELATIME),
    ("nostrictatime", false, MountFlags::STRICTATIME),
    ("nosuid", true, MountFlags::NOSUID),
    ("rbind", true, MountFlags::BIND.union(MountFlags::REC)),
    ("relatime", true, MountFlags::RELATIME),
    ("ro", true, MountFlags::RDONLY),
    ("rw", false, MountFlags::RDONLY),
    ("strictatime", true, MountFlags::STRICTATIME),
    ("suid", false, MountFlags::NOSUID),
    ("sync", true, MountFlags::SYNCHRONOUS),
];

fn call(options: &[String]) -> Result<Call, RootfsError> {
    let mut call = Call {
        flags: MountFlags::empty(),
        data: Vec::new(),
        owners: Vec::new(),
    };
    for option in options {
        match FLAGS.iter().find(|(name, ..)| name == option) {
            Some((_, set, flags)) => call.flags.set(*flags, *set),
            None if option == "loop" => return Err(RootfsError::Loop),
            None if ["uidmap=", "gidmap="].iter().any(|name| option.starts_with(name)) => {
                call.owners.push(option.clone());
            }
            None => call.data.push(option.clone()),
        }
    }
    Ok(call)
}

impl Call {
    /// The users whose namespace maps the owners; `None` when they are shown as they are.
    fn map<'a>(&self, users: Option<&'a Users>) -> Result<Option<&'a Users>, RootfsError> {
        if self.owners.is_empty() {
            return Ok(None);
        }
        let text = |name: &str| self.owners.iter().find_map(|option| option.strip_prefix(name));
        let wanted = Mappings::parse(text("uidmap=").unwrap_or_default(), text("gidmap=").unwrap_or_default());
        let theirs = users.filter(|users| wanted.as_ref() == Some(&users.mappings));
        theirs.map(Some).ok_or_else(|| RootfsError::Owners {
            options: self.owners.join(","),
        })
    }
}

/// Mounts what containerd sent at the `rootfs` of `bundle`, in order; nothing when it sent nothing. Blocks. What was
/// mounted before an error stays, see [`unmount`].
///
/// # Errors
///
/// Names the mount that failed, or the option that is not supported.
pub fn mount(mounts: &[Mount], bundle: &Path, users: Option<&Users>) -> Result<(), RootfsError> {
    if mounts.is_empty() {
        return Ok(());
    }
    let folder = folder(bundle);
    make(&folder).map_err(|cause| RootfsError::Folder {
        folder: folder.clone(),
        cause,
    })?;
    for mount in mounts {
        let call = call(&mount.options)?;
        let users = call.map(users)?;
        perform(mount, &call, bundle, users).map_err(|cause| RootfsError::Mount {
            kind: mount.kind.clone(),
            source_name: mount.source.clone(),
            cause,
        })?;
    }
    Ok(())
}

/// Unmounts the root filesystem in `bundle`, and what an interrupted [`mount`] has left.
///
/// # Errors
///
/// What umount(2) and rmdir(2) say.
pub fn unmount(bundle: &Path) -> io::Result<()> {
    mounts::unmount_all(&folder(bundle)).and(drop_layers(&layers(bundle)))
}

fn folder(bundle: &Path) -> PathBuf {
    bundle.join("rootfs")
}

/// Where layers are mounted while an overlay is made of them.
fn layers(bundle: &Path) -> PathBuf {
    bundle.join("layers")
}

fn make(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o711).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

fn perform(mount: &Mount, call: &Call, bundle: &Path, users: Option<&Users>) -> io::Result<()> {
    let folder = folder(bundle);
    let map = users.map(|users| File::open(&users.path)).transpose()?;
    match (mount.kind.as_str(), map) {
        ("overlay", None) => mounts::mount_overlay(&folder, call.flags, &call.data),
        ("overlay", Some(map)) => {
            let layers = layers(bundle);
            let data = mapped_layers(&call.data, &layers, map.as_fd())?;
            let mounted = mounts::mount_overlay(&folder, call.flags, &data);
            // The overlay has its own hold of them.
            mounted.and(drop_layers(&layers))
        }
        (_, Some(map)) => {
            let tree = mapped(Path::new(&mount.source), map.as_fd())?;
            mounts::restrict(tree.as_fd(), mounts::attributes(call.flags), false)?;
            mounts::attach(tree.as_fd(), mounts::open_directory(&folder)?.as_fd())
        }
        (kind, None) => {
            mounts::mount_source(&mount.source, &folder, kind, call.flags, &call.data.join(","))?;
            // The kernel takes no other flag in the call that binds (mount(2), "Creating a bind mount").
            if call.flags.contains(MountFlags::BIND | MountFlags::RDONLY) {
                mounts::remount(&folder, call.flags)?;
            }
            Ok(())
        }
    }
}

/// The folder `source` as a mount that shows owners by the user namespace `map`, attached nowhere yet.
fn mapped(source: &Path, map: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let tree = mounts::clone_tree(CWD, source, false)?;
    mounts::map_owners(tree.as_fd(), map, false)?;
    Ok(tree)
}

/// The options of an overlay with its lower layers replaced by id-mapped mounts of them below `folder`: an overlay's own
/// mount cannot be id-mapped, its layers can. The upper layer has its owners right.
fn mapped_layers(options: &[String], folder: &Path, map: BorrowedFd<'_>) -> io::Result<Vec<String>> {
    make(folder)?;
    let mut changed = Vec::new();
    for option in options {
        let Some(lower) = option.strip_prefix("lowerdir=") else {
            changed.push(option.clone());
            continue;
        };
        let mut names = Vec::new();
        for (number, layer) in lower.split(':').enumerate() {
            let point = folder.join(number.to_string());
            make(&point)?;
            let tree = mapped(Path::new(layer), map)?;
            mounts::attach(tree.as_fd(), mounts::open_directory(&point)?.as_fd())?;
            names.push(point.display().to_string());
        }
        changed.push(format!("lowerdir={}", names.join(":")));
    }
    Ok(changed)
}

fn drop_layers(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let point = entry?.path();
        mounts::unmount_all(&point)?;
        fs::remove_dir(point)?;
    }
    fs::remove_dir(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn an_overlays_layers_are_its_own_affair_and_devices_stay_as_they_are() {
        let call = call(&options(&["index=off", "upperdir=/u", "lowerdir=/a:/b"])).unwrap();
        assert_eq!(call.flags, MountFlags::empty());
        assert_eq!(call.data, ["index=off", "upperdir=/u", "lowerdir=/a:/b"]);
    }

    #[test]
    fn flags_are_set_and_cleared_in_order() {
        let call = call(&options(&["rbind", "ro", "nosuid", "suid", "noatime"])).unwrap();
        let flags = MountFlags::BIND | MountFlags::REC | MountFlags::RDONLY | MountFlags::NOATIME;
        assert_eq!((call.flags, call.data.len()), (flags, 0));
        assert_eq!(super::call(&options(&["ro", "rw"])).unwrap().flags, MountFlags::empty());
    }

    #[test]
    fn owners_are_mapped_by_the_containers_own_users_and_nobody_elses() {
        let users = |outside: &str| Users {
            path: "/proc/1/ns/user".into(),
            mappings: Mappings::parse(outside, outside).unwrap(),
        };
        let call = call(&options(&["uidmap=0:1000:65536", "gidmap=0:1000:65536"])).unwrap();
        assert!(call.data.is_empty());
        assert!(call.map(Some(&users("0:1000:65536"))).unwrap().is_some());
        for other in [Some(users("0:2000:65536")), None] {
            let error = call.map(other.as_ref()).map(drop).unwrap_err().to_string();
            assert!(error.contains("uidmap=0:1000:65536,gidmap=0:1000:65536"), "{error}");
        }
        assert!(super::call(&[]).unwrap().map(Some(&users("0:1:1"))).unwrap().is_none());
    }

    #[test]
    fn a_loop_device_is_refused() {
        assert!(matches!(call(&options(&["loop"])), Err(RootfsError::Loop)));
    }

    #[test]
    fn a_read_only_bind_mount_of_a_missing_folder_is_named() {
        let bundle = std::env::temp_dir().join(format!("kubewasi-rootfs-{}", std::process::id()));
        fs::create_dir_all(&bundle).unwrap();
        let missing = Mount {
            kind: "bind".to_owned(),
            source: "/nowhere/fs".to_owned(),
            options: options(&["rbind", "ro"]),
        };
        let error = mount(&[missing], &bundle, None).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot mount the root filesystem (bind /nowhere/fs): "),
            "{error}"
        );
        unmount(&bundle).unwrap();
        fs::remove_dir_all(bundle).unwrap();
    }
}
