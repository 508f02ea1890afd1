//! The mounts of a spec as a guest gets them: folders and files, never the kernel (pure).

use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::mount::MountFlags;
use serde::{Deserialize, Serialize};

use super::users;
use crate::sys::mounts::KERNEL_FILE_SYSTEMS;
use crate::sys::user_namespace::Mappings;

/// One mount inside the container's root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub destination: PathBuf,
    pub kind: Kind,
    /// `MS_*` flags of mount(2); `MS_NODEV` is always among them.
    pub flags: u32,
    /// Every mount below is read-only too (`rro`).
    pub read_only_recursive: bool,
    /// How its files show their owners.
    pub map: Option<Map>,
}

/// An id-mapped mount (mount_setattr(2)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Map {
    pub mappings: Mappings,
    /// Every mount below is mapped too (`ridmap`).
    pub recursive: bool,
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
    #[error("the mount at {destination:?} is to be id-mapped and says not how: set its uidMappings and gidMappings")]
    NoMappings { destination: PathBuf },
    #[error(
        "the tmpfs at {destination:?} has the option {option:?}, an id that the container's user namespace has not"
    )]
    Owner { destination: PathBuf, option: String },
}

/// The volumes of a spec, in its order; kernel file systems are left out by their type. `user` are the mappings of the
/// container's user namespace, when it has one, `label` is the SELinux context of its files.
///
/// # Errors
///
/// Names the mount's destination and what about it is refused.
pub fn volumes(mounts: &[Mount], user: Option<&Mappings>, label: Option<&str>) -> Result<Vec<Volume>, VolumeError> {
    mounts
        .iter()
        .filter_map(|mount| volume(mount, user, label).transpose())
        .collect()
}

fn volume(mount: &Mount, user: Option<&Mappings>, label: Option<&str>) -> Result<Option<Volume>, VolumeError> {
    let destination = mount.destination().clone();
    let options = mount.options().as_deref().unwrap_or_default();
    let has = |names: &[&str]| options.iter().any(|option| names.contains(&option.as_str()));
    let kind = mount.typ().as_deref().unwrap_or_default();
    // The spec's type of a bind mount may be anything as long as an option says bind (OCI runtime spec, config.md).
    if has(&["bind", "rbind"]) || kind == "bind" {
        let source = mount.source().clone().ok_or(VolumeError::NoSource {
            destination: destination.clone(),
        })?;
        let recursive = !options.iter().any(|option| option == "bind");
        // Where sysfs cannot be mounted, in a user namespace on the host's network, containerd binds the host's instead
        // (internal/cri, `container_create.go`): left out as sysfs is.
        if user.is_some() && source == Path::new("/sys") && destination == source {
            return Ok(None);
        }
        let parsed = parse(&destination, options)?;
        if let Some(option) = parsed.data.first() {
            return Err(VolumeError::Option {
                destination,
                option: option.clone(),
            });
        }
        return Ok(Some(Volume {
            map: map(mount, parsed.map_recursive, user)?,
            destination,
            kind: Kind::Bind { source, recursive },
            flags: parsed.flags.bits(),
            read_only_recursive: parsed.read_only_recursive,
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
    let parsed = parse(&destination, options)?;
    if parsed.map_recursive.is_some() {
        return Err(VolumeError::Option {
            destination,
            option: "idmap".to_owned(),
        });
    }
    let mut data = owned(&destination, parsed.data, user)?;
    // In quotes, since a context may have commas.
    data.extend(label.map(|label| format!("context=\"{label}\"")));
    Ok(Some(Volume {
        kind: Kind::Tmpfs { data: data.join(",") },
        destination,
        flags: parsed.flags.bits(),
        read_only_recursive: parsed.read_only_recursive,
        map: None,
    }))
}

/// How a bind mount is id-mapped: by mappings of its own, else by those of the container.
fn map(mount: &Mount, option: Option<bool>, user: Option<&Mappings>) -> Result<Option<Map>, VolumeError> {
    let own = users::mappings(mount.uid_mappings().as_deref(), mount.gid_mappings().as_deref());
    let mappings = match (own == Mappings::default(), option, user) {
        (true, None, _) => return Ok(None),
        (true, Some(_), Some(user)) => user.clone(),
        (true, Some(_), None) => Mappings::default(),
        (false, ..) => own,
    };
    if mappings.uids.is_empty() || mappings.gids.is_empty() {
        return Err(VolumeError::NoMappings {
            destination: mount.destination().clone(),
        });
    }
    Ok(Some(Map {
        mappings,
        recursive: option.unwrap_or_default(),
    }))
}

/// A tmpfs is mounted with the host's rights, so its owner is said in the host's ids: by default the container's root.
fn owned(destination: &Path, data: Vec<String>, user: Option<&Mappings>) -> Result<Vec<String>, VolumeError> {
    let Some(user) = user else { return Ok(data) };
    let owner = |name: &str, outside: &dyn Fn(u32) -> Option<u32>| {
        let given = data.iter().find(|option| option.starts_with(name));
        let inside = given.map_or(Some(0), |option| option[name.len()..].parse().ok());
        let outside = inside.and_then(outside).ok_or_else(|| VolumeError::Owner {
            destination: destination.into(),
            option: given.cloned().unwrap_or_else(|| format!("{name}0")),
        });
        outside.map(|id| format!("{name}{id}"))
    };
    let owners = [owner("uid=", &|id| user.uid(id))?, owner("gid=", &|id| user.gid(id))?];
    let others = data
        .into_iter()
        .filter(|option| !option.starts_with("uid=") && !option.starts_with("gid="));
    Ok(others.chain(owners).collect())
}

/// A mount's options, sorted.
struct Options {
    flags: MountFlags,
    /// `rro` is among them.
    read_only_recursive: bool,
    /// `idmap` or `ridmap`, the recursive one, is among them.
    map_recursive: Option<bool>,
    /// For the file system itself.
    data: Vec<String>,
}

fn parse(destination: &Path, options: &[String]) -> Result<Options, VolumeError> {
    let mut parsed = Options {
        flags: MountFlags::NODEV,
        read_only_recursive: false,
        map_recursive: None,
        data: Vec::new(),
    };
    let flags = &mut parsed.flags;
    for option in options {
        match option.as_str() {
            // nodev and nosuid cannot be taken back: nothing in a wasm container opens a device or executes a file.
            "bind" | "rbind" | "defaults" | "rw" | "dev" | "nodev" | "suid" | "exec" | "async" | "atime"
            | "diratime" | "norelatime" | "private" | "rprivate" => {}
            "ro" => *flags |= MountFlags::RDONLY,
            "rro" => {
                *flags |= MountFlags::RDONLY;
                parsed.read_only_recursive = true;
            }
            "nosuid" => *flags |= MountFlags::NOSUID,
            "noexec" => *flags |= MountFlags::NOEXEC,
            "sync" => *flags |= MountFlags::SYNCHRONOUS,
            "dirsync" => *flags |= MountFlags::DIRSYNC,
            "noatime" => *flags |= MountFlags::NOATIME,
            "nodiratime" => *flags |= MountFlags::NODIRATIME,
            "relatime" => *flags |= MountFlags::RELATIME,
            "strictatime" => *flags |= MountFlags::STRICTATIME,
            "shared" | "rshared" | "slave" | "rslave" | "unbindable" | "runbindable" => {
                return Err(VolumeError::Propagation {
                    destination: destination.into(),
                    option: option.clone(),
                });
            }
            "idmap" => parsed.map_recursive = Some(false),
            "ridmap" => parsed.map_recursive = Some(true),
            "tmpcopyup" => {
                return Err(VolumeError::Option {
                    destination: destination.into(),
                    option: option.clone(),
                });
            }
            other => parsed.data.push(other.to_owned()),
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(json: &str) -> Result<Option<Volume>, VolumeError> {
        volume(&serde_json::from_str(json).unwrap(), None, None)
    }

    /// A volume of a container with a user namespace.
    fn mapped(json: &str) -> Result<Option<Volume>, VolumeError> {
        let user = Mappings::parse("0:100000:1000", "0:200000:1000").unwrap();
        volume(&serde_json::from_str(json).unwrap(), Some(&user), None)
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
    fn a_tmpfs_bears_the_containers_label() {
        let mount = serde_json::from_str(r#"{"destination":"/t","type":"tmpfs","options":["mode=755"]}"#).unwrap();
        let volumes = volumes(&[mount], None, Some("a:b:c:s0:c1,c2")).unwrap();
        let data = r#"mode=755,context="a:b:c:s0:c1,c2""#.to_owned();
        assert_eq!(volumes[0].kind, Kind::Tmpfs { data });
    }

    #[test]
    fn an_unknown_option_of_a_bind_mount_is_refused_by_name() {
        let json = r#"{"destination":"/d","type":"bind","source":"/s","options":["tmpcopyup"]}"#;
        assert!(one(json).unwrap_err().to_string().contains("tmpcopyup"));
    }

    #[test]
    fn a_mount_is_mapped_by_its_own_ids_or_by_the_containers() {
        let own = r#"{"destination":"/d","type":"bind","source":"/s","options":["rbind"],
            "uidMappings":[{"containerID":0,"hostID":5,"size":1}],"gidMappings":[{"containerID":0,"hostID":6,"size":1}]}"#;
        let map = one(own).unwrap().unwrap().map.unwrap();
        assert_eq!(
            (map.mappings.uid(0), map.mappings.gid(0), map.recursive),
            (Some(5), Some(6), false)
        );
        let option = r#"{"destination":"/d","type":"bind","source":"/s","options":["rbind","ridmap"]}"#;
        let map = mapped(option).unwrap().unwrap().map.unwrap();
        assert_eq!((map.mappings.uid(0), map.recursive), (Some(100_000), true));
        assert!(one(option).unwrap_err().to_string().contains("uidMappings"));
    }

    #[test]
    fn what_stands_in_for_sysfs_in_a_user_namespace_is_left_out_too() {
        let json = r#"{"destination":"/sys","type":"bind","source":"/sys","options":["rbind","rro"]}"#;
        assert_eq!(mapped(json).unwrap(), None);
        assert!(
            one(json).unwrap().is_some(),
            "a user's own, which is refused when it is mounted"
        );
    }

    #[test]
    fn a_tmpfs_belongs_to_the_containers_root_or_to_whom_it_says() {
        let data = |options: &str| {
            let json = format!(r#"{{"destination":"/t","type":"tmpfs","options":["mode=755"{options}]}}"#);
            mapped(&json).map(|volume| volume.unwrap().kind)
        };
        let tmpfs = |data: &str| Ok(Kind::Tmpfs { data: data.into() });
        assert_eq!(data(""), tmpfs("mode=755,uid=100000,gid=200000"));
        assert_eq!(data(r#","gid=5""#), tmpfs("mode=755,uid=100000,gid=200005"));
        assert!(data(r#","uid=5000""#).unwrap_err().to_string().contains("uid=5000"));
    }

    #[test]
    fn a_type_that_is_not_supported_is_named() {
        let json = r#"{"destination":"/d","type":"nfs","source":"h:/s"}"#;
        assert!(one(json).unwrap_err().to_string().contains("nfs"));
    }
}
