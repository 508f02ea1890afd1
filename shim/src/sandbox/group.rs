//! A container's cgroup and who makes it: we, or systemd, when `linux.cgroupsPath` names a scope.
//!
//! Ours is there before the process is forked. A scope needs a first process, so the process is forked before and waits
//! outside until systemd has taken it in. Either way it enters by itself, and the limits are in the cgroup's files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::resources;
use super::scope::{self, Scope};
use super::systemd::{self, SystemdError};
use crate::sys::cgroup::{Cgroup, Hierarchies};

/// What `linux.cgroupsPath` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A path below each hierarchy's root, absolute.
    Path(PathBuf),
    /// A scope of systemd's.
    Scope(Scope),
}

/// The cgroup of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub cgroup: Cgroup,
    /// The unit whose cgroup it is; nothing when it is ours.
    #[serde(default)]
    pub scope: Option<Scope>,
}

/// Why there is no cgroup for the container, or not with these limits.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    #[error("the cgroup {0} could not be made")]
    Make(PathBuf, #[source] io::Error),
    #[error("systemd could not make the scope {unit} (linux.cgroupsPath): {cause}")]
    Start { unit: String, cause: SystemdError },
    #[error("systemd made the scope {unit}, but there is no cgroup {path}: is the slice's name a kernel file's?")]
    Elsewhere { unit: String, path: PathBuf },
    #[error("the limits could not be applied to the cgroup {0}: {1}")]
    Limits(PathBuf, String),
    #[error("systemd does not take the limits of {unit}: {cause}")]
    Change { unit: String, cause: SystemdError },
}

impl Group {
    /// The cgroup at `place`; nothing is made. Where systemd does not run it has no part in a scope: the cgroup is ours
    /// to make, in the folders that would be the scope's, as runc makes one when it is not told of systemd.
    ///
    /// # Errors
    ///
    /// When it cannot be read where systemd's own cgroup is.
    pub fn at(place: &Place, hierarchies: &Hierarchies, systemd_runs: bool) -> io::Result<Group> {
        Ok(match place {
            Place::Path(path) => Group {
                cgroup: hierarchies.cgroup(path),
                scope: None,
            },
            Place::Scope(scope) if !systemd_runs => Group {
                // As in `scope_without_systemd`, which is for containers of the native runtime.
                cgroup: hierarchies.cgroup(&scope.path(Path::new("/"))),
                scope: None,
            },
            Place::Scope(scope) => Group {
                cgroup: hierarchies.cgroup(&scope.path(&scope::root(&fs::read_to_string("/proc/1/cgroup")?))),
                scope: Some(scope.clone()),
            },
        })
    }

    /// Makes a cgroup of ours with its limits. Blocks.
    ///
    /// # Errors
    ///
    /// What could not be made, or what the controller says of a limit.
    pub fn make(&self, limits: Option<&LinuxResources>) -> Result<(), GroupError> {
        let cgroup = &self.cgroup;
        cgroup
            .create()
            .map_err(|error| GroupError::Make(cgroup.path.clone(), error))?;
        match limits {
            Some(limits) => {
                resources::apply(cgroup, limits).map_err(|error| GroupError::Limits(cgroup.path.clone(), error))
            }
            None => Ok(()),
        }
    }

    /// Has systemd make the scope with the process `pid` in it, then does what is left: hierarchies that systemd does
    /// not manage, and the limits, which its properties know only in part. Blocks.
    ///
    /// # Errors
    ///
    /// As [`Group::make`], and what systemd says.
    pub fn make_scope(&self, scope: &Scope, pid: Pid, limits: Option<&LinuxResources>) -> Result<(), GroupError> {
        let version = self.cgroup.version;
        let properties = limits.map_or_else(Vec::new, |limits| scope::properties(limits, version));
        systemd::start(scope, pid.as_raw_nonzero().get().unsigned_abs(), &properties, version).map_err(|cause| {
            GroupError::Start {
                unit: scope.unit.clone(),
                cause,
            }
        })?;
        if !self.cgroup.exists() {
            return Err(GroupError::Elsewhere {
                unit: scope.unit.clone(),
                path: self.cgroup.path.clone(),
            });
        }
        self.make(limits)
    }

    /// Changes limits; what `limits` leaves out stays. Blocks.
    ///
    /// # Errors
    ///
    /// What systemd or the controller says of a limit, with the file and the value.
    pub fn update(&self, limits: &LinuxResources) -> Result<(), GroupError> {
        if let Some(scope) = &self.scope {
            systemd::change(scope, &scope::properties(limits, self.cgroup.version)).map_err(|cause| {
                GroupError::Change {
                    unit: scope.unit.clone(),
                    cause,
                }
            })?;
        }
        resources::apply(&self.cgroup, limits).map_err(|error| GroupError::Limits(self.cgroup.path.clone(), error))
    }

    /// Ends what is in the cgroup, and removes it. Blocks; idempotent.
    ///
    /// # Errors
    ///
    /// `TimedOut` when processes are left after two seconds; what rmdir(2) says.
    pub fn remove(&self) -> io::Result<()> {
        self.cgroup.kill()?;
        if let Some(scope) = &self.scope
            && let Err(error) = systemd::stop(scope)
        {
            // An empty scope ends by itself; asked for, it has ended when we return, and its name is free.
            tracing::warn!(unit = scope.unit, %error, "systemd did not stop the scope");
        }
        self.cgroup.remove()
    }
}

/// Reads `linux.cgroupsPath`; an empty one is `default`. The error is the rule that was broken.
pub fn place(path: &Path, default: impl FnOnce() -> PathBuf) -> Result<Place, &'static str> {
    use std::path::Component;
    if path.as_os_str().is_empty() {
        return Ok(Place::Path(default()));
    }
    if let Some(text) = path.to_str().filter(|text| text.contains(':')) {
        return Scope::parse(text).map(Place::Scope);
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err("it must not contain ..");
    }
    if !path.components().any(|part| matches!(part, Component::Normal(_))) {
        return Err("the root cgroup is the node's");
    }
    Ok(Place::Path(Path::new("/").join(path)))
}

/// Where the cgroup is that `linux.cgroupsPath` names as a scope, on a machine without systemd: in the directories that
/// would be the scope's (pure). Nothing for any other path.
pub fn scope_without_systemd(path: &Path) -> Option<PathBuf> {
    match place(path, PathBuf::new) {
        Ok(Place::Scope(scope)) => Some(scope.path(Path::new("/"))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_colons_is_a_scope() {
        let place = |path: &str| place(Path::new(path), || "/default".into());
        assert_eq!(place("").unwrap(), Place::Path("/default".into()));
        assert_eq!(place("pods/x").unwrap(), Place::Path("/pods/x".into()));
        let scope = place("a.slice:cri:x").unwrap();
        assert!(matches!(scope, Place::Scope(scope) if scope.unit == "cri-x.scope"));
        for path in ["/", "//", ".", "/a/../..", "a:b", "a.slice:cri:../x"] {
            assert!(place(path).is_err(), "{path}");
        }
    }

    #[test]
    fn a_scope_without_systemd_is_a_cgroup_of_ours() {
        let hierarchies = Hierarchies::find(Path::new(crate::sys::cgroup::ROOT)).unwrap();
        let place = place(Path::new("a-b.slice:cri:x"), PathBuf::new).unwrap();
        let group = Group::at(&place, &hierarchies, false).unwrap();
        assert_eq!(group.scope, None);
        assert_eq!(group.cgroup.path, Path::new("/a.slice/a-b.slice/cri-x.scope"));
        assert_eq!(
            scope_without_systemd(Path::new("a-b.slice:cri:x")),
            Some(group.cgroup.path)
        );
        assert_eq!(scope_without_systemd(Path::new("/a-b.slice/x")), None);
        assert!(Group::at(&place, &hierarchies, true).unwrap().scope.is_some());
    }
}
