//! The user namespaces of a process: which ones its spec asks for, and the fds by which it enters one and maps mounts.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};
use serde::{Deserialize, Serialize};

use super::failure::{Failure, step};
use super::plan::{Confinement, Role};
use crate::image;
use crate::sys::credentials::Ids;
use crate::sys::user_namespace::{self, Mappings, Range};

/// The user namespace that a process enters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Where it is; `None` when it is to be made.
    pub path: Option<PathBuf>,
    pub mappings: Mappings,
}

/// What of a user namespace is wrong.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    #[error("linux.uidMappings or linux.gidMappings is set without a user namespace: add one to linux.namespaces")]
    NoNamespace,
    #[error("the user namespace has no {0}: a namespace without ids can run nothing")]
    NoMappings(&'static str),
    #[error("{field} {id} is not valid: {mappings} has no such id")]
    Unmapped {
        field: &'static str,
        id: u32,
        mappings: &'static str,
    },
    #[error(
        "the root filesystem's mount option {0:?} is not valid: it must be uidmap and gidmap with container:host:size"
    )]
    Option(String),
}

/// Mappings of the OCI runtime spec.
pub fn mappings(uids: Option<&[LinuxIdMapping]>, gids: Option<&[LinuxIdMapping]>) -> Mappings {
    let ranges = |list: Option<&[LinuxIdMapping]>| {
        let range = |mapping: &LinuxIdMapping| Range {
            inside: mapping.container_id(),
            outside: mapping.host_id(),
            size: mapping.size(),
        };
        list.unwrap_or_default().iter().map(range).collect()
    };
    Mappings {
        uids: ranges(uids),
        gids: ranges(gids),
    }
}

/// The user namespace that `spec` asks for, whose mappings must have the process's `ids`.
///
/// # Errors
///
/// Names the field that is missing or does not fit.
pub fn user(spec: &Spec, ids: &Ids) -> Result<Option<User>, UserError> {
    let Some(linux) = spec.linux() else { return Ok(None) };
    let mappings = mappings(linux.uid_mappings().as_deref(), linux.gid_mappings().as_deref());
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    let Some(namespace) = namespaces.iter().find(|one| one.typ() == LinuxNamespaceType::User) else {
        return match mappings == Mappings::default() {
            true => Ok(None),
            false => Err(UserError::NoNamespace),
        };
    };
    if mappings.uids.is_empty() {
        return Err(UserError::NoMappings("linux.uidMappings"));
    }
    if mappings.gids.is_empty() {
        return Err(UserError::NoMappings("linux.gidMappings"));
    }
    let unmapped = |field, id, mappings| UserError::Unmapped { field, id, mappings };
    // The root's owns what is made in the container.
    for (field, id) in [("process.user.uid", ids.uid), ("the root's uid", 0)] {
        mappings.uid(id).ok_or(unmapped(field, id, "linux.uidMappings"))?;
    }
    let groups = ids.groups.iter().map(|gid| ("process.user.additionalGids", *gid));
    for (field, id) in groups.chain([("process.user.gid", ids.gid), ("the root's gid", 0)]) {
        mappings.gid(id).ok_or(unmapped(field, id, "linux.gidMappings"))?;
    }
    Ok(Some(User {
        path: namespace.path().clone(),
        mappings,
    }))
}

/// How the snapshotter wants the layers of a root filesystem to show their owners; the options that say so are for us,
/// not for the file system.
///
/// # Errors
///
/// Names the option that is no mapping, or one without the other.
pub fn snapshot(mounts: &mut [image::Mount]) -> Result<Option<Mappings>, UserError> {
    let mut taken = Vec::new();
    for mount in mounts {
        let ours = |option: &mut String| option.starts_with("uidmap=") || option.starts_with("gidmap=");
        taken.extend(mount.options.extract_if(.., ours));
    }
    let text = |name: &str| taken.iter().find_map(|option| option.strip_prefix(name));
    match (text("uidmap="), text("gidmap=")) {
        (None, None) => Ok(None),
        (uids, gids) => Mappings::parse(uids.unwrap_or_default(), gids.unwrap_or_default())
            .map(Some)
            .ok_or_else(|| UserError::Option(taken.join(","))),
    }
}

/// A holder enters its user namespace first, since what it makes is the pod's and the pod's users shall own it. A guest
/// enters last: what it mounts needs the host's rights.
pub fn enters_first(role: &Role) -> bool {
    *role == Role::Holder
}

/// The open user namespaces of a process.
pub struct Users {
    enter: Option<OwnedFd>,
    /// Those that are only looked at, to map mounts.
    maps: Vec<(Mappings, OwnedFd)>,
}

impl Users {
    /// Opens or makes what `confinement` names; before any pid namespace is entered, in which `/proc` is not right.
    pub fn open(confinement: &Confinement) -> Result<Users, Failure> {
        let make = |mappings: &Mappings| user_namespace::make(mappings).map_err(step("make a user namespace"));
        let mut maps: Vec<(Mappings, OwnedFd)> = Vec::new();
        let mut enter = None;
        if let Some(user) = &confinement.user {
            let namespace = match &user.path {
                None => make(&user.mappings)?,
                Some(path) => File::open(path)
                    .map_err(step(format!("join the user namespace {}", path.display())))?
                    .into(),
            };
            let copy = namespace.try_clone().map_err(step("keep the user namespace"))?;
            maps.push((user.mappings.clone(), copy));
            enter = Some(namespace);
        }
        let volumes = confinement.volumes.iter().filter_map(|volume| volume.map.as_ref());
        for mappings in confinement.root.map.iter().chain(volumes.map(|map| &map.mappings)) {
            if !maps.iter().any(|(known, _)| known == mappings) {
                maps.push((mappings.clone(), make(mappings)?));
            }
        }
        Ok(Users { enter, maps })
    }

    /// A namespace with `mappings`, by which a mount is mapped.
    pub fn map(&self, mappings: &Mappings) -> Result<BorrowedFd<'_>, Failure> {
        self.maps
            .iter()
            .find_map(|(known, namespace)| (known == mappings).then(|| namespace.as_fd()))
            .ok_or_else(|| step("map a mount")("its user namespace was not made"))
    }

    /// Enters the user namespace, if there is one to enter and it has not been entered.
    pub fn enter(&mut self) -> Result<(), Failure> {
        match self.enter.take() {
            None => Ok(()),
            Some(namespace) => user_namespace::enter(&namespace).map_err(step("enter the user namespace")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(uid: u32, gid: u32, groups: &[u32]) -> Ids {
        Ids {
            uid,
            gid,
            groups: groups.to_vec(),
            umask: None,
        }
    }

    fn of(linux: &str, ids: &Ids) -> Result<Option<User>, UserError> {
        let json = format!(r#"{{"ociVersion":"1.1.0","root":{{"path":"rootfs"}},"linux":{{{linux}}}}}"#);
        user(&serde_json::from_str(&json).unwrap(), ids)
    }

    const MAPPINGS: &str = r#""uidMappings":[{"containerID":0,"hostID":100000,"size":1000}],
        "gidMappings":[{"containerID":0,"hostID":200000,"size":1000}]"#;

    #[test]
    fn a_namespace_comes_with_its_mappings_and_its_path() {
        let linux = format!(r#"{MAPPINGS},"namespaces":[{{"type":"user","path":"/proc/7/ns/user"}}]"#);
        let user = of(&linux, &ids(5, 6, &[7])).unwrap().unwrap();
        assert_eq!(user.path, Some("/proc/7/ns/user".into()));
        assert_eq!(
            (user.mappings.uid(0), user.mappings.gid(0)),
            (Some(100_000), Some(200_000))
        );
        assert_eq!(of("", &ids(0, 0, &[])), Ok(None));
    }

    #[test]
    fn mappings_and_namespace_need_each_other() {
        assert_eq!(of(MAPPINGS, &ids(0, 0, &[])), Err(UserError::NoNamespace));
        let bare = of(r#""namespaces":[{"type":"user"}]"#, &ids(0, 0, &[]));
        assert_eq!(bare, Err(UserError::NoMappings("linux.uidMappings")));
    }

    #[test]
    fn an_id_that_is_not_mapped_is_refused_by_its_field() {
        let linux = format!(r#"{MAPPINGS},"namespaces":[{{"type":"user"}}]"#);
        for (ids, field) in [
            (ids(1000, 0, &[]), "process.user.uid 1000"),
            (ids(0, 1000, &[]), "process.user.gid 1000"),
            (ids(0, 0, &[3, 5000]), "process.user.additionalGids 5000"),
        ] {
            let error = of(&linux, &ids).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }

    #[test]
    fn the_options_of_a_remapped_snapshot_are_taken_out_of_it() {
        let mount = |options: &[&str]| image::Mount {
            kind: "overlay".to_owned(),
            source: "overlay".to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        };
        let mut mounts = [mount(&["uidmap=0:7:10", "gidmap=0:8:10", "lowerdir=/a:/b"])];
        let mappings = snapshot(&mut mounts).unwrap().unwrap();
        assert_eq!((mappings.uid(1), mappings.gid(1)), (Some(8), Some(9)));
        assert_eq!(mounts[0].options, ["lowerdir=/a:/b"]);
        assert_eq!(snapshot(&mut mounts), Ok(None));
        let error = snapshot(&mut [mount(&["uidmap=0:7:10"])]).unwrap_err().to_string();
        assert!(error.contains("uidmap=0:7:10") && error.contains("gidmap"), "{error}");
    }
}
