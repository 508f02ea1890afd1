//! Pods of several containers by CRI, as the kubelet makes them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::command::Finished;
use crate::containerd::Node;
use crate::cri::{crictl, file};

/// CRI's NamespaceMode (api.proto).
pub const PID_OF_POD: u32 = 0;
pub const PID_OF_CONTAINER: u32 = 1;
pub const PID_OF_TARGET: u32 = 3;
const NETWORK_OF_NODE: u32 = 2;

/// A pod whose containers come and go one by one. It has the node's network: no CNI is needed.
pub struct Pod<'a> {
    node: &'a Node,
    sandbox: String,
    config: String,
    logs: PathBuf,
}

impl<'a> Pod<'a> {
    /// A pod of the wasi handler whose sandbox has the pid namespace `pid`.
    #[track_caller]
    pub fn start(node: &'a Node, pid: u32) -> Pod<'a> {
        Pod::start_edited(node, "wasi", |config| pid_namespace(config, pid, ""))
    }

    /// As [`Pod::start`], with the cgroup `parent`: a path, or a slice of systemd's.
    #[track_caller]
    pub fn start_in(parent: &str, node: &'a Node, pid: u32) -> Pod<'a> {
        Pod::start_edited(node, "wasi", |config| {
            config["linux"]["cgroup_parent"] = parent.into();
            pid_namespace(config, pid, "");
        })
    }

    /// A pod of `handler`; `edit` changes its PodSandboxConfig.
    #[track_caller]
    pub fn start_edited(node: &'a Node, handler: &str, edit: impl FnOnce(&mut Value)) -> Pod<'a> {
        let logs = node.folder.join("pod-logs");
        fs::create_dir_all(&logs).unwrap();
        let mut config = json!({
            "metadata": {"name": "mixed", "namespace": "default", "uid": node.namespace, "attempt": 0},
            "log_directory": logs,
            "linux": {"cgroup_parent": format!("/{}", node.namespace),
                      "security_context": {"namespace_options": {"network": NETWORK_OF_NODE, "pid": PID_OF_CONTAINER}}},
        });
        edit(&mut config);
        let config = file(node, "pod.json", &config);
        let run = crictl(node, &["runp", "--runtime", handler, &config]).ok();
        Pod {
            node,
            sandbox: run.stdout.trim().to_owned(),
            config,
            logs,
        }
    }

    /// Makes and starts a container of `image`; `edit` changes its ContainerConfig. Returns its id.
    #[track_caller]
    pub fn run(&self, name: &str, image: &str, command: &[&str], edit: impl FnOnce(&mut Value)) -> String {
        let made = self.create(name, image, command, edit).ok();
        let id = made.stdout.trim().to_owned();
        crictl(self.node, &["start", &id]).ok();
        id
    }

    /// Makes a container as [`Pod::run`] does, and does not start it.
    #[track_caller]
    pub fn create(&self, name: &str, image: &str, command: &[&str], edit: impl FnOnce(&mut Value)) -> Finished {
        let mut config = json!({
            "metadata": {"name": name, "attempt": 0},
            "image": {"image": image}, "command": command, "log_path": format!("{name}.log"),
            "linux": {"security_context": {"namespace_options": {"network": NETWORK_OF_NODE, "pid": PID_OF_CONTAINER}}},
        });
        edit(&mut config);
        let config = file(self.node, &format!("{name}.json"), &config);
        crictl(
            self.node,
            &["create", "--no-pull", &self.sandbox, &config, &self.config],
        )
    }

    /// What the container `name` has written so far, as CRI logs it.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.logs.join(format!("{name}.log"))).unwrap_or_default()
    }

    /// Ends the pod with all its containers.
    #[track_caller]
    pub fn end(self) {
        crictl(self.node, &["stopp", &self.sandbox]).ok();
        crictl(self.node, &["rmp", &self.sandbox]).ok();
    }
}

/// The pid of a container's first process.
#[track_caller]
pub fn pid(node: &Node, id: &str) -> u32 {
    let inspected: Value = serde_json::from_str(&crictl(node, &["inspect", id]).ok().stdout).unwrap();
    u32::try_from(inspected["info"]["pid"].as_u64().unwrap()).unwrap()
}

/// Makes `folder` a volume at `path` in a container.
pub fn volume(config: &mut Value, folder: &Path, path: &str) {
    config["mounts"] = json!([{"container_path": path, "host_path": folder}]);
}

/// The pid namespace that a container is to have.
pub fn pid_namespace(config: &mut Value, mode: u32, target: &str) {
    let options = &mut config["linux"]["security_context"]["namespace_options"];
    options["pid"] = mode.into();
    options["target_id"] = target.into();
}
