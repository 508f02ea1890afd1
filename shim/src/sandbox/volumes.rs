//! The mounts of a spec as a guest gets them: folders and files, never the kernel (pure).

use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::mount::MountFlags;
use serde::{Deserialize, Serialize};

use crate::sys::mounts::KERNEL_FILE_SYSTEMS;

/// One mount inside the container's root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub destination: PathBuf,
    pub kind: Kind,
    /// `MS_*` flags of mount(2); `MS_NODEV` is always among them.
    pub flags: u32,
    /// Every mount below is read-only too (`rro`).
    pub read_only_recursive: bool,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Bind { source: PathBuf, recursive: bool },
    Tmpfs { data: String },
}

/// Which mount is refused and why.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    #[error("the mount at {destination:?} has type {kind:?}, which wasm containers do not support: use bind or tmpfs")]
    Type { destination: PathBuf, kind: String },
    #[error("the mount at {destination:?} has no source")]
    NoSource { destination: PathBuf },
    #[error(
        "the mount at {destination:?} asks for propagation {option:?}: use mountPropagation: None, since a later mount could bring the kernel's files into the wasm container"
    )]
    Propagation { destination: PathBuf, option: String },
    #[error("the mount at {destination:?} has the option {option:?}, which wasm containers do not support: remove it")]
    Option { destination: PathBuf, option: String },
}

/// The volumes of a spec, in its order; kernel file systems are left out by their type.
///
/// # Errors
///
/// Names the mount's destination and what about it is refused.
pub fn volumes(mounts: &[Mount]) -> Result<Vec<Volume>, VolumeError> {
    mounts.iter().filter_map(|mount| volume(mount).transpose()).collect()
}

fn volume(mount: &Mount) -> Result<Option<Volume>, VolumeError> {
    let destination = mount.destination().clone();
    let options = mount.options().as_deref().unwrap_or_default();
    let has = |names: &[&str]| options.iter().any(|option| names.contains(&option.as_str()));
    let kind = mount.typ().as_deref().unwrap_or_default();
    if [mount.uid_mappings(), mount.gid_mappings()]
        .into_iter()
        .flatten()
        .any(|mappings| !mappings.is_empty())
    {
        return Err(VolumeError::Option {
            destination,
            option: "uidMappings".to_owned(),
        });
    }
    // The spec's type of a bind mount may be anything as long as an option says bind (OCI runtime spec, config.md).
    if has(&["bind", "rbind"]) || kind == "bind" {
        let source = mount.source().clone().ok_or(VolumeError::NoSource {
            destination: destination.clone(),
        })?;
        let recursive = !options.iter().any(|option| option == "bind");
        let (flags, read_only_recursive, data) = parse(&destination, options)?;
        if let Some(option) = data.first() {
            return Err(VolumeError::Option {
                destination,
                option: option.clone(),
            });
        }
        return Ok(Some(Volume {
            destination,
            kind: Kind::Bind { source, recursive },
            flags: flags.bits(),
            read_only_recursive,
        }));
    }
    if KERNEL_FILE_SYSTEMS.contains(&kind) {
        return Ok(None);
    }
    if kind != "tmpfs" {
        return Err(VolumeError::Type {
            destination,
            kind: kind.to_owned(),
        });
    }
    let (flags, read_only_recursive, data) = parse(&destination, options)?;
    Ok(Some(Volume {
        destination,
        kind: Kind::Tmpfs { data: data.join(",") },
        flags: flags.bits(),
        read_only_recursive,
    }))
}

/// The flags, whether `rro` is among them, and the options that are for the file system itself.
fn parse(destination: &Path, options: &[String]) -> Result<(MountFlags, bool, Vec<String>), VolumeError> {
    let (mut flags, mut recursive, mut data) = (MountFlags::NODEV, false, Vec::new());
    for option in options {
        match option.as_str() {
            // nodev and nosuid cannot be taken back: nothing in a wasm container opens a device or executes a file.
            "bind" | "rbind" | "defaults" | "rw" | "dev" | "nodev" | "suid" | "exec" | "async" | "atime"
            | "diratime" | "norelatime" | "private" | "rprivate" => {}
            "ro" => flags |= MountFlags::RDONLY,
            "rro" => {
                flags |= MountFlags::RDONLY;
                recursive = true;
            }
            "nosuid" => flags |= MountFlags::NOSUID,
            "noexec" => flags |= MountFlags::NOEXEC,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "dirsync" => flags |= MountFlags::DIRSYNC,
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "strictatime" => flags |= MountFlags::STRICTATIME,
            "shared" | "rshared" | "slave" | "rslave" | "unbindable" | "runbindable" => {
                return Err(VolumeError::Propagation {
                    destination: destination.into(),
                    option: option.clone(),
                });
            }
            "idmap" | "ridmap" | "tmpcopyup" => {
                return Err(VolumeError::Option {
                    destination: destination.into(),
                    option: option.clone(),
                });
            }
            other => data.push(other.to_owned()),
        }
    }
    Ok((flags, recursive, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(json: &str) -> Result<Option<Volume>, VolumeError> {
        volume(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn kernel_file_systems_are_left_out_by_type() {
        for kind in ["proc", "sysfs", "cgroup", "mqueue", "devpts"] {
            let json = format!(r#"{{"destination":"/x","type":"{kind}","source":"{kind}"}}"#);
            assert_eq!(one(&json).unwrap(), None);
        }
    }

    #[test]
    fn a_read_only_bind_mount_keeps_its_flags_and_never_has_devices() {
        let json = r#"{"destination":"/d","type":"bind","source":"/s","options":["rbind","ro","rprivate","nosuid"]}"#;
        let volume = one(json).unwrap().unwrap();
        assert_eq!(
            volume.kind,
            Kind::Bind {
                source: "/s".into(),
                recursive: true
            }
        );
        let flags = MountFlags::from_bits_retain(volume.flags);
        assert_eq!(flags, MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV);
    }

    #[test]
    fn propagation_into_a_wasm_container_is_refused_by_name() {
        let json = r#"{"destination":"/d","type":"bind","source":"/s","options":["rbind","rslave"]}"#;
        let error = one(json).unwrap_err().to_string();
        assert!(
            error.contains("/d") && error.contains("rslave") && error.contains("mountPropagation"),
            "{error}"
        );
    }

    #[test]
    fn options_of_a_tmpfs_reach_the_file_system() {
        let json =
            r#"{"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["nosuid","mode=755","size=65536k"]}"#;
        assert_eq!(
            one(json).unwrap().unwrap().kind,
            Kind::Tmpfs {
                data: "mode=755,size=65536k".into()
            }
        );
    }

    #[test]
    fn an_unknown_option_of_a_bind_mount_is_refused_by_name() {
        let json = r#"{"destination":"/d","type":"bind","source":"/s","options":["idmap"]}"#;
        assert!(one(json).unwrap_err().to_string().contains("idmap"));
    }

    #[test]
    fn a_type_that_is_not_supported_is_named() {
        let json = r#"{"destination":"/d","type":"nfs","source":"h:/s"}"#;
        assert!(one(json).unwrap_err().to_string().contains("nfs"));
    }
}
