//! One native container, from its root filesystem to its end.

use std::future::Future;
use std::io;
use std::path::{Component, Path};
use std::sync::Arc;

use kubewasi_options::Options;
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, LinuxResources, Process, Spec};

use super::calls::{self, Born, Calls};
use super::failure::NativeError;
use super::record::{self, Record};
use super::rootfs::{self, Users};
use crate::image::Mount;
use crate::stdio::{Console, Kept, Streams};
use crate::sys::cgroup::{self, Cgroup, Hierarchies};
use crate::sys::child::Child;
use crate::sys::children::Children;
use crate::sys::user_namespace::{Mappings, Range};
use crate::sys::{freezer, kept};

/// The node's OCI runtime, as the handler's options name it.
pub struct Runtime {
    binary: String,
    no_pivot_root: bool,
    no_new_keyring: bool,
    hierarchies: Hierarchies,
    /// Beside those of v1 a runtime also uses the unified one, where systemd's hybrid layout has it.
    unified: Option<Hierarchies>,
    /// Where what it makes is known as watched.
    children: Arc<Children>,
}

/// What a container is made of.
pub struct Request<'a> {
    pub id: &'a str,
    pub bundle: &'a Path,
    /// The bundle's config.json, which the runtime reads by itself.
    pub spec: &'a Spec,
    pub rootfs: &'a [Mount],
    pub streams: &'a Streams,
    /// The streams are one terminal, as `process.terminal` says too.
    pub terminal: bool,
    /// The cgroup, where `linux.cgroupsPath` names a scope and there is no systemd to make it: the runtime would take the
    /// scope's name for a directory's.
    pub scope: Option<&'a Path>,
}

/// A container that its runtime has made.
pub struct Container {
    calls: Calls,
    child: Arc<Child>,
    cgroup: Cgroup,
    /// Its processes may outlive the first one: that is not pid 1 of a namespace of theirs.
    shares_pids: bool,
    children: Arc<Children>,
}

impl Runtime {
    /// The runtime that `options` name, on this machine's cgroups. What it makes is among `children`.
    ///
    /// # Errors
    ///
    /// When there is no cgroup file system.
    pub fn new(options: &Options, children: Arc<Children>) -> io::Result<Runtime> {
        let root = Path::new(cgroup::ROOT);
        Ok(Runtime {
            binary: options.runc_binary.clone(),
            no_pivot_root: options.runc_no_pivot_root,
            no_new_keyring: options.runc_no_new_keyring,
            hierarchies: Hierarchies::find(root)?,
            unified: Hierarchies::find(&root.join("unified")).ok(),
            children,
        })
    }

    /// Makes a container, which waits for its start, and what stays here of its streams. When this returns an error
    /// nothing is left; it does so too once `given_up` resolves.
    ///
    /// # Errors
    ///
    /// What could not be made, in the runtime's own words where they are its.
    pub async fn create(
        &self,
        request: Request<'_>,
        given_up: impl Future<Output = ()>,
    ) -> Result<(Container, Kept, Option<Console>), NativeError> {
        let linux = request.spec.linux().as_ref();
        let cgroups_path = request
            .scope
            .or_else(|| linux.and_then(|linux| linux.cgroups_path().as_deref()));
        let calls = Calls {
            binary: self.binary.clone(),
            id: request.id.to_owned(),
            bundle: request.bundle.to_owned(),
            systemd_cgroup: cgroups_path.is_some_and(calls::is_systemd),
            no_pivot_root: self.no_pivot_root,
            no_new_keyring: self.no_new_keyring,
        };
        calls.check()?;
        let record = Record::new(
            calls.clone(),
            cgroups_path.map(|path| self.own_cgroups(path)).unwrap_or_default(),
        );
        record.write().map_err(|cause| NativeError::Bundle {
            act: "write its record into",
            path: request.bundle.to_owned(),
            cause,
        })?;
        if let Some(path) = request.scope {
            set_cgroups_path(request.bundle, path).map_err(|cause| NativeError::Bundle {
                act: "set linux.cgroupsPath in the spec of",
                path: request.bundle.to_owned(),
                cause,
            })?;
        }
        let shares_pids = shares_pids(request.spec);
        let bundle = request.bundle.to_owned();
        let made = tokio::select! {
            made = self.make(&calls, &request) => made,
            () = given_up => Err(NativeError::GivenUp),
        };
        match made {
            Ok((born, cgroup)) => {
                let container = Container {
                    calls,
                    child: born.child,
                    cgroup,
                    shares_pids,
                    children: self.children.clone(),
                };
                Ok((container, born.kept, born.console))
            }
            Err(error) => {
                if let Err(cause) = blocking(move || record::clean(&bundle)).await {
                    tracing::warn!(%cause, "a container that could not be made left something behind");
                }
                Err(error)
            }
        }
    }

    async fn make(&self, calls: &Calls, request: &Request<'_>) -> Result<(Born, Cgroup), NativeError> {
        let (mounts, bundle, users) = (request.rootfs.to_vec(), calls.bundle.clone(), users(request.spec));
        let mounted = tokio::task::spawn_blocking(move || rootfs::mount(&mounts, &bundle, users.as_ref())).await;
        mounted.map_err(|panic| NativeError::Bundle {
            act: "mount the root filesystem in",
            path: calls.bundle.clone(),
            cause: io::Error::other(panic),
        })??;
        let born = calls.create(&self.children, request.streams, request.terminal).await?;
        let cgroup = self.cgroup_of(calls, &born.child)?;
        Ok((born, cgroup))
    }

    /// The cgroups at `path`, unless it is systemd's to name, or they hold somebody else's processes, which would be
    /// ended with the container.
    fn own_cgroups(&self, path: &Path) -> Vec<Cgroup> {
        let outside = path.components().any(|part| part == Component::ParentDir);
        if !path.is_absolute() || path.parent().is_none() || outside {
            return Vec::new();
        }
        let hierarchies = [Some(&self.hierarchies), self.unified.as_ref()].into_iter().flatten();
        let cgroups: Vec<Cgroup> = hierarchies.map(|hierarchies| hierarchies.cgroup(path)).collect();
        if cgroups.iter().all(|cgroup| cgroup.pids().is_empty()) {
            cgroups
        } else {
            Vec::new()
        }
    }

    /// Where the runtime has put the process. A runtime that is set to use no cgroups leaves it in ours, which is never
    /// to be frozen or killed as the container's.
    fn cgroup_of(&self, calls: &Calls, child: &Child) -> Result<Cgroup, NativeError> {
        let found = self.hierarchies.of_process(child.pid());
        let found = found.map_err(|cause| NativeError::Bundle {
            act: "find the cgroup of the container in",
            path: calls.bundle.clone(),
            cause,
        })?;
        let ours = self.hierarchies.of_process("self").ok();
        if is_foreign(&found.path, ours.as_ref().map(|ours| ours.path.as_path())) {
            return Err(NativeError::ForeignCgroup {
                binary: calls.binary.clone(),
                path: found.path,
            });
        }
        Ok(found)
    }
}

/// Changes `linux.cgroupsPath` in the bundle's config.json, and nothing else of it.
fn set_cgroups_path(bundle: &Path, path: &Path) -> io::Result<()> {
    let file = bundle.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    spec["linux"]["cgroupsPath"] = path.display().to_string().into();
    kept::write(&file, &spec)
}

/// Whether a container's cgroup is the root, or the server's own.
fn is_foreign(found: &Path, ours: Option<&Path>) -> bool {
    found.parent().is_none() || Some(found) == ours
}

/// Whether the container's first process is not pid 1 of a namespace that ends with it.
fn shares_pids(spec: &Spec) -> bool {
    let linux = spec.linux().as_ref();
    let namespaces = linux
        .and_then(|linux| linux.namespaces().as_deref())
        .unwrap_or_default();
    !namespaces
        .iter()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::Pid && namespace.path().is_none())
}

/// The user namespace that the container joins; `None` when it has the host's users, or is to have a new one.
fn users(spec: &Spec) -> Option<Users> {
    let linux = spec.linux().as_ref()?;
    let mut namespaces = linux.namespaces().iter().flatten();
    let path = namespaces
        .find(|namespace| namespace.typ() == LinuxNamespaceType::User)?
        .path()
        .clone()?;
    let ranges = |mappings: &Option<Vec<LinuxIdMapping>>| {
        let range = |mapping: &LinuxIdMapping| Range {
            inside: mapping.container_id(),
            outside: mapping.host_id(),
            size: mapping.size(),
        };
        mappings.iter().flatten().map(range).collect()
    };
    Some(Users {
        path,
        mappings: Mappings {
            uids: ranges(linux.uid_mappings()),
            gids: ranges(linux.gid_mappings()),
        },
    })
}

/// Does what blocks in a thread that may.
async fn blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

impl Container {
    /// The first process.
    pub fn child(&self) -> &Arc<Child> {
        &self.child
    }

    /// The cgroup that the processes live in.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Lets the first process run.
    pub async fn start(&self) -> Result<(), NativeError> {
        self.calls.start().await
    }

    /// Runs one more process.
    pub async fn exec(&self, process: &Process, streams: &Streams, terminal: bool) -> Result<Born, NativeError> {
        self.calls.exec(&self.children, process, streams, terminal).await
    }

    /// Sends `signal` to the first process, or to all. SIGKILL works on a paused container too.
    ///
    /// # Errors
    ///
    /// `ESRCH` when it has exited, `EINVAL` for a number that is no signal; what thawing says.
    pub async fn kill(&self, signal: i32, all: bool) -> io::Result<()> {
        self.child.kill(signal)?;
        let (cgroup, first) = (self.cgroup.clone(), self.child.pid());
        blocking(move || {
            if all {
                cgroup.signal_others(first, signal);
            }
            match signal {
                libc::SIGKILL => freezer::thaw(&cgroup),
                _ => Ok(()),
            }
        })
        .await
    }

    /// Freezes all processes. On cgroup v1 runc gives up on processes that are busy, and thaws them (runc issue 2774): it is
    /// asked again.
    pub async fn pause(&self) -> Result<(), NativeError> {
        const TRIES: usize = 5;
        let mut paused = self.calls.pause().await;
        for _ in 1..TRIES {
            if paused.is_ok() || self.child.was_killed() {
                break;
            }
            paused = self.calls.pause().await;
        }
        if self.child.was_killed() {
            // The SIGKILL came first, and its thawing may have been for nothing.
            self.calls.resume().await?;
        }
        paused
    }

    /// Lets frozen processes run on.
    pub async fn resume(&self) -> Result<(), NativeError> {
        self.calls.resume().await
    }

    /// Changes the limits; what `limits` leaves out stays.
    pub async fn update(&self, limits: &LinuxResources) -> Result<(), NativeError> {
        self.calls.update(limits).await
    }

    /// Every process that lives in the container, those of cgroups that it has made too.
    pub async fn pids(&self) -> Result<Vec<u32>, NativeError> {
        self.calls.pids().await
    }

    /// Ends what has outlived the first process where no pid namespace ended with that.
    ///
    /// # Errors
    ///
    /// `TimedOut` when processes are left after two seconds.
    pub async fn end_rest(&self) -> io::Result<()> {
        if !self.shares_pids {
            return Ok(());
        }
        let cgroup = self.cgroup.clone();
        let ended = blocking(move || cgroup.kill()).await;
        self.children.sweep_soon();
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(namespaces: &str) -> Spec {
        let json = format!(r#"{{"ociVersion":"1.1.0","linux":{{"namespaces":{namespaces}}}}}"#);
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn the_servers_own_cgroup_and_the_root_are_no_containers() {
        let ours = Some(Path::new("/system.slice/containerd.service"));
        assert!(is_foreign(Path::new("/system.slice/containerd.service"), ours));
        assert!(is_foreign(Path::new("/"), ours) && is_foreign(Path::new("/"), None));
        assert!(!is_foreign(Path::new("/kubepods/pod1/c1"), ours));
    }

    #[test]
    fn only_a_pid_namespace_of_its_own_ends_with_the_first_process() {
        assert!(!shares_pids(&spec(r#"[{"type":"pid"},{"type":"mount"}]"#)));
        assert!(shares_pids(&spec(r#"[{"type":"pid","path":"/proc/7/ns/pid"}]"#)));
        assert!(shares_pids(&spec(r#"[{"type":"mount"}]"#)), "the host's");
    }
}
