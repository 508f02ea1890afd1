//! What a container's process needs, decided from its OCI spec before anything is done (pure).
//!
//! Whatever the spec asks for and is not supported is refused by its name in the OCI runtime spec, never dropped in
//! silence. The one documented exception are kernel file systems and devices, which a guest never sees (`volumes`).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use kubewasi_options::Guest;
use oci_spec::runtime::{
    Capabilities as CapabilityNames, Linux, LinuxNamespaceType, LinuxResources, PosixRlimitType, Process, Spec,
};
use serde::{Deserialize, Serialize};

use super::environment;
use super::group::{self, Place};
use super::hooks::{self, Hooks};
use super::profile::{self, Program};
use super::users::{self, User};
use super::volumes::{self, Volume};
use crate::compile::World;
use crate::image;
use crate::sys::credentials::{Capabilities, Ids, Limit, Name, capability};
use crate::sys::labels::Labels;
use crate::sys::memory::MemoryFolder;
use crate::sys::namespaces::Kind;
use crate::sys::user_namespace::Mappings;

/// What the process runs once it is confined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Holds a pod's namespaces until it is killed; nothing of the pause image runs.
    Holder,
    /// Runs an artifact of `world`, `export` or the world's entry point.
    Guest { world: World, export: Option<String> },
    /// Executes a native binary of the root filesystem, beside a guest.
    Native { path: PathBuf },
}

/// What a plan is made from.
pub struct Request<'a> {
    pub namespace: &'a str,
    pub id: &'a str,
    pub spec: &'a Spec,
    pub bundle: &'a Path,
    pub rootfs: &'a [image::Mount],
    /// What the request for the process says, whatever its spec does.
    pub terminal: bool,
    pub role: Role,
    pub options: Guest,
}

/// What the server does for the container and what its process does for itself.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the container's cgroup is.
    pub cgroup: Place,
    /// The limits to apply to the cgroup, without device rules: a guest has no device to open.
    pub resources: Option<LinuxResources>,
    /// What is run beside it on the host.
    pub hooks: Hooks,
    pub confinement: Confinement,
}

/// Everything the forked process does to confine itself, in data: it travels in a sealed memfd.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Confinement {
    /// The process's name in ps(1), at most 15 bytes.
    pub name: String,
    /// Whether to wait until the server says that systemd has made the scope, which needs this process for it; filled in
    /// by the server.
    pub awaits_scope: bool,
    /// The cgroup files to write `0` to; the server fills them in when the cgroup exists.
    pub entrances: Vec<PathBuf>,
    /// The cgroup's memory files, by which a guest knows its limit; the server fills it in as well.
    pub memory: Option<MemoryFolder>,
    /// Namespaces to join by path, the pid namespace included.
    pub join: Vec<(Kind, PathBuf)>,
    /// Namespaces to make.
    pub make: Vec<Kind>,
    pub user: Option<User>,
    pub root: Root,
    pub volumes: Vec<Volume>,
    pub masked: Vec<PathBuf>,
    pub read_only: Vec<PathBuf>,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    /// By path below `/proc/sys`.
    pub sysctls: BTreeMap<String, String>,
    pub ids: Ids,
    pub capabilities: Capabilities,
    pub no_new_privileges: bool,
    pub labels: Labels,
    pub limits: Vec<Limit>,
    pub oom_score_adj: Option<i32>,
    /// The standard streams are a terminal, which becomes the process's controlling one.
    pub terminal: bool,
    /// The pod's seccomp profile, one program an action, in the order to install.
    pub seccomp: Vec<Program>,
    pub role: Role,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub working_directory: String,
    /// The cpu limit in thousandths of a cpu.
    pub cpus: Option<u64>,
    pub options: Guest,
}

/// The root file system of the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// What is mounted at `folder`; nothing when the folder already holds it.
    pub mounts: Vec<image::Mount>,
    pub folder: PathBuf,
    pub read_only: bool,
    /// How its layers show their owners.
    pub map: Option<Mappings>,
    /// To whom a mount point that is made there belongs, a uid and a gid of the host; else to the host's root.
    pub owner: Option<(u32, u32)>,
}

/// What in the spec is wrong or refused, by its name in the OCI runtime spec.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("config.json has no {0}")]
    Missing(&'static str),
    #[error("{field} {value:?} is not supported for wasm containers: {fix}")]
    Unsupported {
        field: &'static str,
        value: String,
        fix: &'static str,
    },
    #[error("{field} {value:?} is not valid: {rule}")]
    Invalid {
        field: &'static str,
        value: String,
        rule: &'static str,
    },
    #[error(transparent)]
    Volume(#[from] volumes::VolumeError),
    #[error(transparent)]
    User(#[from] users::UserError),
    #[error(transparent)]
    Profile(#[from] profile::ProfileError),
}

/// The fix for what no other setting can.
const LATER: &str = "remove it from the pod";

pub(super) fn unsupported(field: &'static str, value: impl ToString, fix: &'static str) -> PlanError {
    PlanError::Unsupported {
        field,
        value: value.to_string(),
        fix,
    }
}

pub(super) fn invalid(field: &'static str, value: impl ToString, rule: &'static str) -> PlanError {
    PlanError::Invalid {
        field,
        value: value.to_string(),
        rule,
    }
}

/// Turns a spec into a plan.
///
/// # Errors
///
/// Names the field that is missing, wrong or not supported, its value and the fix.
pub fn plan(request: Request<'_>) -> Result<Plan, PlanError> {
    let spec = request.spec;
    let process = spec.process().as_ref().ok_or(PlanError::Missing("process"))?;
    let linux = spec.linux().as_ref().ok_or(PlanError::Missing("linux"))?;
    refuse_process(process)?;
    refuse(spec)?;
    let (join, make) = namespaces(spec)?;
    let cgroup = cgroup(&request)?;
    let holder = request.role == Role::Holder;
    let root = spec.root().as_ref().ok_or(PlanError::Missing("root"))?;
    let sysctls = sysctls(linux.sysctl().as_ref(), &join, &make)?;
    let ids = ids(process);
    let user = users::user(spec, &ids)?;
    let mappings = user.as_ref().map(|user| &user.mappings);
    let labels = labels(process, linux.mount_label().as_ref());
    let mut mounts = if holder { Vec::new() } else { request.rootfs.to_vec() };
    let confinement = Confinement {
        name: name(request.id),
        awaits_scope: false,
        entrances: Vec::new(),
        memory: None,
        join,
        make,
        root: Root {
            map: users::snapshot(&mut mounts)?,
            mounts,
            folder: request.bundle.join(root.path()),
            read_only: root.readonly().unwrap_or(false),
            owner: mappings.and_then(|mappings| mappings.uid(0).zip(mappings.gid(0))),
        },
        volumes: if holder {
            Vec::new()
        } else {
            volumes::volumes(
                spec.mounts().as_deref().unwrap_or_default(),
                mappings,
                labels.files.as_deref(),
            )?
        },
        masked: if holder {
            Vec::new()
        } else {
            paths(linux.masked_paths())
        },
        read_only: if holder {
            Vec::new()
        } else {
            paths(linux.readonly_paths())
        },
        hostname: spec.hostname().clone().filter(|name| !name.is_empty()),
        domainname: spec.domainname().clone().filter(|name| !name.is_empty()),
        sysctls,
        user,
        capabilities: of_user(capabilities(process)?, &ids),
        ids,
        labels,
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        limits: limits(process)?,
        oom_score_adj: process.oom_score_adj(),
        terminal: request.terminal,
        seccomp: seccomp(linux)?,
        arguments: process.args().clone().unwrap_or_default(),
        environment: environment::variables(process)?,
        working_directory: working_directory(process)?,
        cpus: cpus(linux),
        role: request.role,
        options: request.options,
    };
    Ok(Plan {
        cgroup,
        resources: resources(spec),
        hooks: hooks::hooks(spec, request.id, request.bundle)?,
        confinement,
    })
}

/// The cpu limit in thousandths of a cpu: its quota is so many microseconds of each period.
pub(super) fn cpus(linux: &Linux) -> Option<u64> {
    /// What the kernel takes when none is given (sched-bwc in the kernel's documentation).
    const PERIOD: u64 = 100_000;
    let cpu = linux.resources().as_ref()?.cpu().as_ref()?;
    // Negative is no limit.
    let quota = u64::try_from(cpu.quota()?).ok().filter(|quota| *quota > 0)?;
    let period = cpu.period().filter(|period| *period > 0).unwrap_or(PERIOD);
    Some(quota.saturating_mul(1000) / period)
}

/// The name of a container's processes.
pub(super) fn name(id: &str) -> String {
    format!("wasi:{id}").chars().take(15).collect()
}

pub(super) fn paths(paths: &Option<Vec<String>>) -> Vec<PathBuf> {
    paths.iter().flatten().map(PathBuf::from).collect()
}

/// The pod's seccomp profile.
pub(super) fn seccomp(linux: &Linux) -> Result<Vec<Program>, PlanError> {
    let programs = linux.seccomp().as_ref().map(profile::programs).transpose()?;
    Ok(programs.unwrap_or_default())
}

/// Refuses what is not supported of a process.
pub(super) fn refuse_process(process: &Process) -> Result<(), PlanError> {
    if process.scheduler().is_some() {
        return Err(unsupported("process.scheduler", "set", LATER));
    }
    if process.io_priority().is_some() {
        return Err(unsupported("process.ioPriority", "set", LATER));
    }
    if process.exec_cpu_affinity().is_some() {
        return Err(unsupported("process.execCPUAffinity", "set", LATER));
    }
    Ok(())
}

/// Refuses what is not supported of a container.
fn refuse(spec: &Spec) -> Result<(), PlanError> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    if linux.intel_rdt().is_some() {
        return Err(unsupported("linux.intelRdt", "set", LATER));
    }
    if linux.memory_policy().is_some() {
        return Err(unsupported("linux.memoryPolicy", "set", LATER));
    }
    if linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
        return Err(unsupported("linux.netDevices", "set", LATER));
    }
    if linux.personality().is_some() {
        return Err(unsupported("linux.personality", "set", LATER));
    }
    if linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty()) {
        return Err(unsupported("linux.timeOffsets", "set", LATER));
    }
    match linux.rootfs_propagation().as_deref().unwrap_or_default() {
        "" | "private" | "rprivate" | "slave" | "rslave" => Ok(()),
        other => Err(unsupported(
            "linux.rootfsPropagation",
            other,
            "use mountPropagation: None: a guest's mounts never travel",
        )),
    }
}

/// The sysctls by path, of which only those of a namespace that is not the host's may be set (namespaces(7), as runc's
/// `validator.go` has it): whatever else is in /proc/sys is the node's.
fn sysctls(
    wanted: Option<&HashMap<String, String>>,
    join: &[(Kind, PathBuf)],
    make: &[Kind],
) -> Result<BTreeMap<String, String>, PlanError> {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let own = |kind| make.contains(&kind) || join.iter().any(|(joined, _)| *joined == kind);
    let mut sysctls = BTreeMap::new();
    for (key, value) in wanted.into_iter().flatten() {
        // As sysctl(8): the first separator is the one; with dots, a slash stands for a dot in a name.
        let names: Vec<String> = match key.find(['.', '/']).map(|first| &key[first..=first]) {
            Some("/") => key.split('/').map(str::to_owned).collect(),
            _ => key.split('.').map(|name| name.replace('/', ".")).collect(),
        };
        if names.iter().any(|name| ["", ".", ".."].contains(&name.as_str())) {
            return Err(invalid("linux.sysctl", key, "it is no name of a sysctl"));
        }
        let dotted = names.join(".");
        let kind = if IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
            Kind::Ipc
        } else if dotted.starts_with("net.") {
            Kind::Network
        } else if dotted == "kernel.domainname" {
            Kind::Uts
        } else {
            return Err(unsupported(
                "linux.sysctl",
                key,
                "it belongs to no namespace, so it is the whole node's",
            ));
        };
        if !own(kind) {
            return Err(unsupported(
                "linux.sysctl",
                key,
                "the container shares this namespace with the host",
            ));
        }
        sysctls.insert(names.join("/"), value.clone());
    }
    Ok(sysctls)
}

type Namespaces = (Vec<(Kind, PathBuf)>, Vec<Kind>);

/// The namespaces to join and to make. The mount namespace is always the guest's own: its root is made there.
fn namespaces(spec: &Spec) -> Result<Namespaces, PlanError> {
    let (mut join, mut make) = (Vec::new(), vec![Kind::Mount]);
    let listed = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    for namespace in listed.into_iter().flatten() {
        let kind = match namespace.typ() {
            LinuxNamespaceType::Cgroup => Kind::Cgroup,
            LinuxNamespaceType::Ipc => Kind::Ipc,
            LinuxNamespaceType::Network => Kind::Network,
            LinuxNamespaceType::Pid => Kind::Pid,
            LinuxNamespaceType::Uts => Kind::Uts,
            LinuxNamespaceType::Mount => match namespace.path() {
                None => continue,
                Some(path) => {
                    return Err(unsupported(
                        "linux.namespaces mount path",
                        path.display(),
                        "a guest has a mount namespace of its own",
                    ));
                }
            },
            // Entered in an order of its own: see `users`.
            LinuxNamespaceType::User => continue,
            LinuxNamespaceType::Time => Kind::Time,
        };
        match namespace.path() {
            Some(path) => join.push((kind, path.clone())),
            None => make.push(kind),
        }
    }
    Ok((join, make))
}

pub(super) fn ids(process: &Process) -> Ids {
    let user = process.user();
    Ids {
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        umask: user.umask(),
    }
}

/// What is left of a guest's capabilities when its user is not root: the ambient ones, as exec(2) leaves them to a native
/// program (capabilities(7)). A guest is not executed.
pub(super) fn of_user(capabilities: Capabilities, ids: &Ids) -> Capabilities {
    match ids.uid {
        0 => capabilities,
        _ => Capabilities {
            permitted: capabilities.ambient,
            effective: capabilities.ambient,
            ..capabilities
        },
    }
}

/// The labels of the security modules; `files` is for what is mounted.
pub(super) fn labels(process: &Process, files: Option<&String>) -> Labels {
    let given = |label: Option<&String>| label.filter(|label| !label.is_empty()).cloned();
    Labels {
        apparmor: given(process.apparmor_profile().as_ref()),
        selinux: given(process.selinux_label().as_ref()),
        files: given(files),
    }
}

/// The capability sets, without `CAP_MKNOD`: a guest makes no devices.
pub(super) fn capabilities(process: &Process) -> Result<Capabilities, PlanError> {
    let Some(sets) = process.capabilities() else {
        return Ok(Capabilities::default());
    };
    let mask = |names: &Option<CapabilityNames>| -> Result<u64, PlanError> {
        let mut mask = 0;
        for name in names.iter().flatten().map(ToString::to_string) {
            let bit = capability(&name)
                .ok_or_else(|| invalid("process.capabilities", &name, "see capabilities(7) for the names"))?;
            mask |= if name == "MKNOD" { 0 } else { bit };
        }
        Ok(mask)
    };
    Ok(Capabilities {
        bounding: mask(sets.bounding())?,
        effective: mask(sets.effective())?,
        permitted: mask(sets.permitted())?,
        inheritable: mask(sets.inheritable())?,
        ambient: mask(sets.ambient())?,
    })
}

pub(super) fn limits(process: &Process) -> Result<Vec<Limit>, PlanError> {
    let mut limits = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        let (soft, hard) = (limit.soft(), limit.hard());
        if soft > hard {
            return Err(invalid(
                "process.rlimits",
                format!("{soft} > {hard}"),
                "soft must not exceed hard",
            ));
        }
        limits.push(Limit {
            resource: resource(limit.typ()),
            soft,
            hard,
        });
    }
    Ok(limits)
}

fn resource(kind: PosixRlimitType) -> Name {
    match kind {
        PosixRlimitType::RlimitCpu => Name::Cpu,
        PosixRlimitType::RlimitFsize => Name::Fsize,
        PosixRlimitType::RlimitData => Name::Data,
        PosixRlimitType::RlimitStack => Name::Stack,
        PosixRlimitType::RlimitCore => Name::Core,
        PosixRlimitType::RlimitRss => Name::Rss,
        PosixRlimitType::RlimitNproc => Name::Nproc,
        PosixRlimitType::RlimitNofile => Name::Nofile,
        PosixRlimitType::RlimitMemlock => Name::Memlock,
        PosixRlimitType::RlimitAs => Name::As,
        PosixRlimitType::RlimitLocks => Name::Locks,
        PosixRlimitType::RlimitSigpending => Name::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Name::Msgqueue,
        PosixRlimitType::RlimitNice => Name::Nice,
        PosixRlimitType::RlimitRtprio => Name::Rtprio,
        PosixRlimitType::RlimitRttime => Name::Rttime,
    }
}

/// The working directory, by the rule of runc's `validateProcessSpec`.
pub(super) fn working_directory(process: &Process) -> Result<String, PlanError> {
    let path = process.cwd();
    match path.is_absolute() {
        true => Ok(path.to_string_lossy().into_owned()),
        false => Err(invalid("process.cwd", path.display(), "it must be an absolute path")),
    }
}

/// Where the cgroup is: where the spec says, as a path or as a scope of systemd's.
fn cgroup(request: &Request<'_>) -> Result<Place, PlanError> {
    let linux = request.spec.linux().as_ref();
    let path = linux.and_then(|linux| linux.cgroups_path().clone()).unwrap_or_default();
    group::place(&path, || {
        Path::new("/kubewasi").join(request.namespace).join(request.id)
    })
    .map_err(|rule| invalid("linux.cgroupsPath", path.display(), rule))
}

/// The limits, without devices; nothing when nothing is limited.
fn resources(spec: &Spec) -> Option<LinuxResources> {
    let mut resources = spec.linux().as_ref()?.resources().clone()?;
    resources.set_devices(None);
    (resources != LinuxResources::default()).then_some(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    fn minimal(process: &str, linux: &str) -> Spec {
        spec(&format!(
            r#"{{"ociVersion":"1.1.0","root":{{"path":"rootfs"}},
                "process":{{"user":{{"uid":7,"gid":8,"additionalGids":[9]}},"args":["a.wasm","b"],"env":["A=1=2"],"cwd":"/w"{process}}},
                "linux":{{"cgroupsPath":"/pods/x"{linux}}}}}"#
        ))
    }

    fn request(spec: &Spec) -> Request<'_> {
        Request {
            namespace: "k8s.io",
            id: "c1",
            spec,
            bundle: Path::new("/b"),
            rootfs: &[],
            terminal: false,
            role: Role::Guest {
                world: World::Module,
                export: None,
            },
            options: Guest::default(),
        }
    }

    #[test]
    fn ids_arguments_and_environment_come_from_the_process() {
        let spec = minimal("", "");
        let plan = plan(request(&spec)).unwrap();
        let guest = plan.confinement;
        assert_eq!(
            guest.ids,
            Ids {
                uid: 7,
                gid: 8,
                groups: vec![9],
                umask: None
            }
        );
        assert_eq!(guest.arguments, ["a.wasm", "b"]);
        assert_eq!(guest.environment, [("A".to_owned(), "1=2".to_owned())]);
        assert_eq!(guest.working_directory, "/w");
        assert_eq!(plan.cgroup, Place::Path("/pods/x".into()));
        assert_eq!(guest.root.folder, Path::new("/b/rootfs"));
    }

    #[test]
    fn namespaces_with_a_path_are_joined_and_others_made() {
        let spec = minimal(
            "",
            r#","namespaces":[{"type":"network","path":"/proc/1/ns/net"},{"type":"pid"},{"type":"mount"}]"#,
        );
        let guest = plan(request(&spec)).unwrap().confinement;
        assert_eq!(guest.join, [(Kind::Network, PathBuf::from("/proc/1/ns/net"))]);
        assert_eq!(guest.make, [Kind::Mount, Kind::Pid]);
    }

    #[test]
    fn a_time_namespace_is_made_and_joined_as_any_other() {
        let spec = minimal("", r#","namespaces":[{"type":"time"}],"timeOffsets":{}"#);
        assert_eq!(
            plan(request(&spec)).unwrap().confinement.make,
            [Kind::Mount, Kind::Time]
        );
        let spec = minimal("", r#","namespaces":[{"type":"time","path":"/proc/1/ns/time"}]"#);
        let join = plan(request(&spec)).unwrap().confinement.join;
        assert_eq!(join, [(Kind::Time, PathBuf::from("/proc/1/ns/time"))]);
    }

    #[test]
    fn a_working_directory_that_is_not_absolute_is_refused() {
        for cwd in ["", "app", "./app"] {
            let mut spec = minimal("", "");
            spec.process_mut().as_mut().unwrap().set_cwd(cwd.into());
            let error = plan(request(&spec)).unwrap_err().to_string();
            assert!(error.contains("process.cwd") && error.contains("absolute"), "{error}");
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_by_its_name() {
        for (process, linux, field) in [
            ("", r#","timeOffsets":{"boottime":{"secs":1}}"#, "linux.timeOffsets"),
            ("", r#","netDevices":{"eth0":{"name":"eth1"}}"#, "linux.netDevices"),
            (
                "",
                r#","memoryPolicy":{"mode":"MPOL_BIND","nodes":"0"}"#,
                "linux.memoryPolicy",
            ),
            (r#","execCPUAffinity":{"initial":"0"}"#, "", "process.execCPUAffinity"),
            ("", r#","rootfsPropagation":"shared""#, "linux.rootfsPropagation"),
            ("", r#","intelRdt":{"closID":"x"}"#, "linux.intelRdt"),
            ("", r#","personality":{"domain":"LINUX32"}"#, "linux.personality"),
        ] {
            let spec = minimal(process, linux);
            match plan(request(&spec)) {
                Err(PlanError::Unsupported { field: refused, .. }) => assert_eq!(refused, field),
                other => panic!("{field}: {other:?}"),
            }
        }
    }

    #[test]
    fn only_sysctls_of_a_namespace_of_its_own_are_set() {
        let with = |namespaces: &str, key: &str| {
            let spec = minimal("", &format!(r#","namespaces":[{namespaces}],"sysctl":{{"{key}":"1"}}"#));
            plan(request(&spec)).map(|plan| plan.confinement.sysctls.into_keys().collect::<Vec<_>>())
        };
        let network = r#"{"type":"network"}"#;
        let key = "net.ipv4.ip_unprivileged_port_start";
        assert_eq!(with(network, key).unwrap(), ["net/ipv4/ip_unprivileged_port_start"]);
        assert_eq!(
            with(network, "net.ipv4.conf.eth0/1.arp").unwrap(),
            ["net/ipv4/conf/eth0.1/arp"]
        );
        for (namespaces, key) in [
            ("", key),
            (network, "kernel.core_pattern"),
            (network, "kernel.shmmax"),
            (network, "net.ipv4...core"),
            (network, "/etc/passwd"),
            (network, "net.//.//.kernel.core_pattern"),
            (network, "net/../kernel/core_pattern"),
            (network, "net.ipv4/../../kernel/core_pattern"),
        ] {
            let error = with(namespaces, key).unwrap_err().to_string();
            assert!(error.contains("linux.sysctl"), "{key}: {error}");
        }
    }

    #[test]
    fn the_root_cgroup_is_refused() {
        for path in ["/", "//", "."] {
            let mut spec = minimal("", "");
            spec.linux_mut()
                .as_mut()
                .unwrap()
                .set_cgroups_path(Some(PathBuf::from(path)));
            assert!(
                plan(request(&spec))
                    .unwrap_err()
                    .to_string()
                    .contains("linux.cgroupsPath"),
                "{path}"
            );
        }
    }

    #[test]
    fn a_systemd_cgroup_path_is_a_scope_and_a_wrong_one_is_refused_by_name() {
        let mut spec = minimal("", "");
        let mut place = |path: &str| {
            let linux = spec.linux_mut().as_mut().unwrap();
            linux.set_cgroups_path(Some(PathBuf::from(path)));
            plan(request(&spec)).map(|plan| plan.cgroup)
        };
        assert!(matches!(place("a.slice:cri:x"), Ok(Place::Scope(scope)) if scope.unit == "cri-x.scope"));
        let error = place("a:cri:x").unwrap_err().to_string();
        assert!(
            error.contains("linux.cgroupsPath") && error.contains("a:cri:x"),
            "{error}"
        );
    }

    #[test]
    fn a_guest_never_has_the_capability_to_make_devices() {
        let mut spec = minimal(r#","capabilities":{"effective":["CAP_MKNOD","CAP_CHOWN"]}"#, "");
        spec.process_mut().as_mut().unwrap().user_mut().set_uid(0_u32);
        assert_eq!(plan(request(&spec)).unwrap().confinement.capabilities.effective, 1);
    }

    #[test]
    fn a_user_who_is_not_root_keeps_ambient_capabilities_alone() {
        let of = |uid: u32| {
            let sets = r#""bounding":["CAP_CHOWN","CAP_KILL"],"effective":["CAP_CHOWN","CAP_KILL"],
                "permitted":["CAP_CHOWN","CAP_KILL"],"inheritable":["CAP_KILL"],"ambient":["CAP_KILL"]"#;
            let mut spec = minimal(&format!(r#","capabilities":{{{sets}}}"#), "");
            spec.process_mut().as_mut().unwrap().user_mut().set_uid(uid);
            plan(request(&spec)).unwrap().confinement.capabilities
        };
        let (chown, kill) = (1, 1 << 5);
        assert_eq!((of(0).permitted, of(0).effective), (chown | kill, chown | kill));
        assert_eq!((of(7).permitted, of(7).effective, of(7).ambient), (kill, kill, kill));
        assert_eq!(of(7).bounding, chown | kill);
    }

    #[test]
    fn device_rules_alone_are_no_limits() {
        let spec = minimal("", r#","resources":{"devices":[{"allow":false,"access":"rwm"}]}"#);
        assert!(plan(request(&spec)).unwrap().resources.is_none());
    }

    #[test]
    fn a_spec_without_a_process_is_named() {
        let spec = spec(r#"{"ociVersion":"1.1.0","root":{"path":"rootfs"},"linux":{}}"#);
        assert_eq!(plan(request(&spec)).unwrap_err(), PlanError::Missing("process"));
    }
}
