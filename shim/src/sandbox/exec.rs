//! What a process exec'd into a container needs, decided from its OCI Process and the container's spec (pure).

use std::path::{Path, PathBuf};

use kubewasi_options::Guest;
use oci_spec::runtime::{Linux, LinuxNamespaceType, Process, Spec};

use super::environment;
use super::plan::{self, Confinement, PlanError, Role, Root};
use super::users::{self, User};
use crate::sys::credentials::{Capabilities, Limit, Name, capability};
use crate::sys::namespaces::Kind;

/// What the plan of an exec'd process is made from.
pub struct Request<'a> {
    pub id: &'a str,
    /// The container's spec.
    pub spec: &'a Spec,
    pub bundle: &'a Path,
    pub process: &'a Process,
    /// The container's first process, in the server's pid namespace.
    pub beside: u32,
    /// What the request for the process says, whatever its spec does.
    pub terminal: bool,
    pub role: Role,
    pub options: Guest,
    /// The limit of open files of a native process whose spec has none, in place of the launcher's own.
    pub open_files: Option<Limit>,
}

/// Plans a process that joins the container's: no namespaces of its own, no root, its own credentials.
///
/// # Errors
///
/// Names the field that is missing, wrong or not supported, its value and the fix.
pub fn plan(request: Request<'_>) -> Result<Confinement, PlanError> {
    let Request {
        id,
        spec,
        bundle,
        process,
        beside,
        terminal,
        role,
        options,
        open_files,
    } = request;
    let linux = spec.linux().as_ref().ok_or(PlanError::Missing("linux"))?;
    plan::refuse_process(process)?;
    let native = matches!(role, Role::Native { .. });
    let containers = spec.process().as_ref();
    let ids = plan::ids(process);
    let mut limits = plan::limits(process)?;
    if native && limits.iter().all(|limit| limit.resource != Name::Nofile) {
        limits.extend(open_files);
    }
    let capabilities = plan::capabilities(process)?;
    let capabilities = match native {
        true => without_tracing(capabilities),
        false => plan::of_user(capabilities, &ids),
    };
    // Whoever made it, that process lives in it now.
    let user = users::user(spec, &ids)?.map(|user| User {
        path: Some(format!("/proc/{beside}/ns/user").into()),
        ..user
    });
    Ok(Confinement {
        name: plan::name(id),
        awaits_scope: false,
        entrances: Vec::new(),
        join: time_namespace(linux, beside),
        make: Vec::new(),
        root: Root {
            mounts: Vec::new(),
            folder: bundle.join("rootfs"),
            read_only: false,
            map: None,
            owner: None,
        },
        volumes: Vec::new(),
        masked: plan::paths(linux.masked_paths()),
        read_only: plan::paths(linux.readonly_paths()),
        hostname: None,
        domainname: None,
        sysctls: Default::default(),
        ids,
        user,
        memory: None,
        capabilities,
        labels: plan::labels(process, None),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        limits,
        // The container's, as runc has it: clients leave it out.
        oom_score_adj: containers.and_then(Process::oom_score_adj),
        terminal,
        seccomp: plan::seccomp(linux)?,
        arguments: process.args().clone().unwrap_or_default(),
        environment: environment::variables(process)?,
        working_directory: plan::working_directory(process)?,
        cpus: plan::cpus(linux),
        role,
        options,
    })
}

/// The time namespace of the container's first process, where it does not share the host's: it is no part of what a process
/// joins by a pidfd, since not every kernel has it (time_namespaces(7)).
fn time_namespace(linux: &Linux, first: u32) -> Vec<(Kind, PathBuf)> {
    let namespaces = linux.namespaces().iter().flatten();
    let times = namespaces.filter(|namespace| namespace.typ() == LinuxNamespaceType::Time);
    times
        .map(|_| (Kind::Time, format!("/proc/{first}/ns/time").into()))
        .collect()
}

/// Without `CAP_SYS_PTRACE`, whatever the container has: by it a native process writes a guest's host memory, which is
/// what keeps the guest in its wasm sandbox.
fn without_tracing(capabilities: Capabilities) -> Capabilities {
    let rest = |set: u64| set & !capability("SYS_PTRACE").unwrap_or_default();
    Capabilities {
        bounding: rest(capabilities.bounding),
        effective: rest(capabilities.effective),
        permitted: rest(capabilities.permitted),
        inheritable: rest(capabilities.inheritable),
        ambient: rest(capabilities.ambient),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn confinement(process: &str, role: Role) -> Result<Confinement, PlanError> {
        let spec: Spec = serde_json::from_str(
            r#"{"ociVersion":"1.1.0","root":{"path":"rootfs"},
                "process":{"user":{"uid":0,"gid":0},"args":["a.wasm"],"cwd":"/","oomScoreAdj":77},
                "linux":{"cgroupsPath":"/pods/x","maskedPaths":["/proc/kcore"],
                         "seccomp":{"defaultAction":"SCMP_ACT_ERRNO"}}}"#,
        )
        .unwrap();
        plan(Request {
            id: "c1",
            spec: &spec,
            bundle: Path::new("/b"),
            process: &serde_json::from_str(process).unwrap(),
            beside: 7,
            terminal: true,
            role,
            options: Guest::default(),
            open_files: Some(FILES),
        })
    }

    const FILES: Limit = Limit {
        resource: Name::Nofile,
        soft: 1024,
        hard: 4096,
    };

    fn native() -> Role {
        Role::Native { path: "/bin/sh".into() }
    }

    #[test]
    fn credentials_come_from_the_process_and_the_rest_from_its_container() {
        let process = r#"{"user":{"uid":7,"gid":8},"args":["sh"],"env":["A=1"],"cwd":"/w","noNewPrivileges":true}"#;
        let exec = confinement(process, native()).unwrap();
        assert_eq!((exec.ids.uid, exec.ids.gid), (7, 8));
        assert_eq!(exec.environment, [("A".to_owned(), "1".to_owned())]);
        assert!(exec.no_new_privileges && exec.terminal);
        assert_eq!(exec.oom_score_adj, Some(77));
        assert_eq!(exec.seccomp.len(), 1);
        assert!(exec.join.is_empty() && exec.make.is_empty() && exec.volumes.is_empty());
    }

    #[test]
    fn a_native_process_never_gets_the_right_to_trace_guests() {
        let process = r#"{"user":{"uid":0,"gid":0},"args":["sh"],"cwd":"/","capabilities":{
            "bounding":["CAP_SYS_PTRACE","CAP_KILL"],"effective":["CAP_SYS_PTRACE"],"permitted":["CAP_SYS_PTRACE"],
            "inheritable":["CAP_SYS_PTRACE"],"ambient":["CAP_SYS_PTRACE"]}}"#;
        let exec = confinement(process, native()).unwrap();
        let nothing = Capabilities::default();
        let bounding = capability("KILL").unwrap();
        assert_eq!(exec.capabilities, Capabilities { bounding, ..nothing });
    }

    #[test]
    fn a_native_process_without_a_limit_of_open_files_does_not_get_the_servers() {
        let process =
            |limits: &str| format!(r#"{{"user":{{"uid":0,"gid":0}},"args":["sh"],"cwd":"/","rlimits":[{limits}]}}"#);
        let limits = |limits: &str, role| confinement(&process(limits), role).unwrap().limits;
        assert_eq!(limits("", native()), [FILES]);
        let own = limits(r#"{"type":"RLIMIT_NOFILE","soft":7,"hard":8}"#, native());
        assert_eq!(
            own,
            [Limit {
                soft: 7,
                hard: 8,
                ..FILES
            }]
        );
        let other = limits(r#"{"type":"RLIMIT_CORE","soft":0,"hard":0}"#, native());
        assert_eq!((other.len(), other.last()), (2, Some(&FILES)));
        let world = crate::compile::World::Module;
        assert_eq!(limits("", Role::Guest { world, export: None }), []);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_its_name() {
        let process = r#"{"user":{"uid":0,"gid":0},"args":["sh"],"cwd":"/","scheduler":{"policy":"SCHED_FIFO"}}"#;
        let refused = confinement(process, native()).unwrap_err();
        assert!(refused.to_string().contains("process.scheduler"), "{refused}");
    }
}
