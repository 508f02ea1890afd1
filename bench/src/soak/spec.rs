//! The OCI specs of the containers (pure): as containerd's default one is, with what each life asks for.

use serde_json::{Value, json};

/// The pod that a container belongs to.
#[derive(Clone, Debug)]
pub struct Pod {
    /// The id of its sandbox container.
    pub sandbox: String,
    /// The sandbox's pid, once it has one: its namespaces are the pod's.
    pub pid: Option<u32>,
}

/// What differs from container to container.
#[derive(Clone, Debug, Default)]
pub struct Wants {
    pub args: Vec<String>,
    /// Bytes.
    pub memory: Option<u64>,
    pub pids: Option<u64>,
    pub pod: Option<Pod>,
}

/// The words that have `program`, a probe's file, perform `command`.
pub fn args(program: &str, command: &str) -> Vec<String> {
    let args = [format!("/{program}")]
        .into_iter()
        .chain(command.split(' ').map(str::to_owned));
    args.collect()
}

/// The process spec that performs `command`.
pub fn process(program: &str, command: &str) -> Value {
    process_of(&args(program, command))
}

fn process_of(args: &[String]) -> Value {
    json!({
        "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": args,
        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "noNewPrivileges": true,
    })
}

/// The spec of the container `id` of `namespace`.
pub fn spec(namespace: &str, id: &str, wants: &Wants) -> Value {
    let mut resources = json!({});
    if let Some(limit) = wants.memory {
        resources["memory"] = json!({"limit": limit, "swap": limit});
    }
    if let Some(limit) = wants.pids {
        resources["pids"] = json!({"limit": limit});
    }
    let mut namespaces = vec![json!({"type": "pid"}), json!({"type": "mount"})];
    for (kind, file) in [("ipc", "ipc"), ("uts", "uts"), ("network", "net")] {
        namespaces.push(match wants.pod.as_ref().and_then(|pod| pod.pid) {
            Some(pid) => json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")}),
            None => json!({"type": kind}),
        });
    }
    let annotations = match &wants.pod {
        None => json!({}),
        Some(pod) => {
            let kind = if pod.sandbox == id { "sandbox" } else { "container" };
            json!({"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": pod.sandbox})
        }
    };
    json!({
        "ociVersion": "1.0.2",
        "process": process_of(&wants.args),
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777"]},
        ],
        "annotations": annotations,
        "linux": {
            "cgroupsPath": format!("/{namespace}/{id}"),
            "namespaces": namespaces,
            "resources": resources,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_joins_its_pods_namespaces_and_the_sandbox_has_its_own() {
        let pod = |pid| Wants {
            pod: Some(Pod {
                sandbox: "s".into(),
                pid,
            }),
            ..Wants::default()
        };
        let sandbox = spec("n", "s", &pod(None));
        assert_eq!(sandbox["annotations"]["io.kubernetes.cri.container-type"], "sandbox");
        assert!(sandbox["linux"]["namespaces"].to_string().find("path").is_none());
        let member = spec("n", "m", &pod(Some(7)));
        assert_eq!(member["annotations"]["io.kubernetes.cri.container-type"], "container");
        assert!(member["linux"]["namespaces"].to_string().contains("/proc/7/ns/net"));
    }

    #[test]
    fn limits_are_in_the_spec_only_when_they_are_wanted() {
        let limited = Wants {
            memory: Some(5),
            pids: Some(6),
            ..Wants::default()
        };
        assert_eq!(spec("n", "c", &limited)["linux"]["resources"]["memory"]["limit"], 5);
        assert_eq!(spec("n", "c", &limited)["linux"]["resources"]["pids"]["limit"], 6);
        assert_eq!(spec("n", "c", &Wants::default())["linux"]["resources"], json!({}));
    }
}
