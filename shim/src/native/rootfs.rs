//! Mounts a native container's root filesystem at the bundle's `rootfs`, where its runtime looks for it.
//!
//! The options are read as containerd's own runc shim reads them (containerd, core/mount/mount_linux.go).

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

use crate::image::Mount;
use crate::sys::mounts;

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
        "the root filesystem has the option {option:?}, which native containers of a wasi pod do not support yet: {mend}"
    )]
    Option { option: String, mend: &'static str },
}

/// One mount(2), read from its options (pure).
#[derive(Debug, PartialEq, Eq)]
struct Call {
    flags: MountFlags,
    /// What the file system itself is told.
    data: Vec<String>,
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
    };
    for option in options {
        let refused = |mend| RootfsError::Option {
            option: option.clone(),
            mend,
        };
        match FLAGS.iter().find(|(name, ..)| name == option) {
            Some((_, set, flags)) => call.flags.set(*flags, *set),
            None if option == "loop" => return Err(refused("use the overlayfs or native snapshotter")),
            None if ["uidmap=", "gidmap="].iter().any(|name| option.starts_with(name)) => {
                return Err(refused(
                    "leave hostUsers unset, or use the pod's ordinary runtime class",
                ));
            }
            None => call.data.push(option.clone()),
        }
    }
    Ok(call)
}

/// Mounts what containerd sent on `folder`, in order; nothing when it sent nothing. Blocks. What was mounted before an
/// error stays: see [`mounts::unmount_all`].
///
/// # Errors
///
/// Names the mount that failed, or the option that is not supported.
pub fn mount(mounts: &[Mount], folder: &Path) -> Result<(), RootfsError> {
    if mounts.is_empty() {
        return Ok(());
    }
    match DirBuilder::new().mode(0o711).create(folder) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
            return Err(RootfsError::Folder {
                folder: folder.to_owned(),
                cause,
            });
        }
        _ => {}
    }
    for mount in mounts {
        let call = call(&mount.options)?;
        perform(mount, &call, folder).map_err(|cause| RootfsError::Mount {
            kind: mount.kind.clone(),
            source_name: mount.source.clone(),
            cause,
        })?;
    }
    Ok(())
}

fn perform(mount: &Mount, call: &Call, folder: &Path) -> io::Result<()> {
    if mount.kind == "overlay" {
        return mounts::mount_overlay(folder, call.flags, &call.data);
    }
    mounts::mount_source(&mount.source, folder, &mount.kind, call.flags, &call.data.join(","))?;
    // The kernel takes no other flag in the call that binds (mount(2), "Creating a bind mount").
    if call.flags.contains(MountFlags::BIND | MountFlags::RDONLY) {
        mounts::remount(folder, call.flags)?;
    }
    Ok(())
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
    fn what_would_give_files_another_owner_or_device_is_refused_by_name() {
        for option in ["uidmap=0:1000:65536", "gidmap=0:1000:65536", "loop"] {
            let error = call(&options(&[option])).unwrap_err().to_string();
            assert!(error.contains(option), "{error}");
        }
    }

    #[test]
    fn a_read_only_bind_mount_of_a_missing_folder_is_named() {
        let folder = std::env::temp_dir().join(format!("kubewasi-rootfs-{}", std::process::id()));
        let missing = Mount {
            kind: "bind".to_owned(),
            source: "/nowhere/fs".to_owned(),
            options: options(&["rbind", "ro"]),
        };
        let error = mount(&[missing], &folder).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot mount the root filesystem (bind /nowhere/fs): "),
            "{error}"
        );
        std::fs::remove_dir(folder).unwrap();
    }
}
