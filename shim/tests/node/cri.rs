//! Pods by CRI: the CNCF artifact, which only CRI runs, pulled from a registry as the kubelet would.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kubewasi_testbed::script::hack;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::command::{Finished, eventually, run};
use crate::containerd::{Node, Version};
use crate::control;
use crate::guests::Probe;
use crate::image_builder::Image;
use crate::pod;

/// The image of the pods' sandboxes; nothing of it is ever executed.
pub const PAUSE: &str = "kubewasi.test/pause:latest";

/// Debian's docker-registry on a port of its own.
pub struct Registry {
    port: u16,
    daemon: Child,
}

impl Registry {
    pub fn start(node: &Node) -> Registry {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = node.folder.join("registry.yml");
        let store = node.folder.join("registry");
        fs::write(
            &config,
            format!(
                "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
                store.display()
            ),
        )
        .unwrap();
        let daemon = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("the registry listens", Duration::from_secs(10), || {
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        Registry { port, daemon }
    }

    /// Pushes `image` and returns the name to pull it by.
    #[track_caller]
    pub fn push(&self, node: &Node, image: &Image, name: &str) -> String {
        let layout = node.folder.join(format!("layout-{name}"));
        image.write_folder(&layout).unwrap();
        self.copy(&format!("oci:{}:latest", layout.display()), name)
    }

    /// Pushes the one image of an OCI archive and returns the name to pull it by.
    #[track_caller]
    pub fn push_archive(&self, archive: &Path, name: &str) -> String {
        self.copy(&format!("oci-archive:{}", archive.display()), name)
    }

    #[track_caller]
    fn copy(&self, source: &str, name: &str) -> String {
        let pulled = format!("127.0.0.1:{}/{name}:latest", self.port);
        run(Command::new("skopeo")
            .args(["copy", "--all", "--preserve-digests", "--dest-tls-verify=false", source])
            .arg(format!("docker://{pulled}")))
        .ok();
        pulled
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        kill_process(Pid::from_child(&self.daemon), Signal::KILL).unwrap();
        self.daemon.wait().unwrap();
    }
}

/// `crictl` on this node.
#[track_caller]
pub fn crictl(node: &Node, args: &[&str]) -> Finished {
    run(&mut crictl_command(node, args))
}

pub fn crictl_command(node: &Node, args: &[&str]) -> Command {
    let socket = format!("unix://{}", node.socket().display());
    let mut command = Command::new(hack("cri-tools", &["crictl"]).join("crictl"));
    command.args(["--runtime-endpoint", &socket, "--image-endpoint", &socket]);
    // As long as the kubelet waits for its runtime, unless told otherwise.
    command.args(["--timeout", "2m"]).args(args);
    command
}

/// Writes a CRI config file and returns its path.
pub fn file(node: &Node, name: &str, value: &serde_json::Value) -> String {
    let path = node.folder.join(name);
    fs::write(&path, serde_json::to_vec_pretty(value).unwrap()).unwrap();
    path.display().to_string()
}

/// Runs a pod with one container of `image`, lets `check` look at it, and takes both away.
fn with_pod(node: &Node, image: &str, command: &[&str], check: impl FnOnce(&str, &str)) {
    with_limited_pod(node, image, command, &json!({}), check);
}

/// As [`with_pod`], with `limits` for the container: a LinuxContainerResources of CRI.
fn with_limited_pod(
    node: &Node,
    image: &str,
    command: &[&str],
    limits: &serde_json::Value,
    check: impl FnOnce(&str, &str),
) {
    let edit = |pod: &mut Pod| pod.container["linux"]["resources"] = limits.clone();
    with_edited_pod(node, image, command, edit, check);
}

/// The configurations of a pod and of its container: PodSandboxConfig and ContainerConfig of CRI.
pub struct Pod {
    pub handler: &'static str,
    pub sandbox: serde_json::Value,
    pub container: serde_json::Value,
}

impl Pod {
    /// A pod on the node's network, for which no CNI is needed, with one container of `image`.
    pub fn new(node: &Node, image: &str, command: &[&str]) -> Pod {
        let security = json!({"namespace_options": {"network": 2}});
        Pod {
            handler: "wasi",
            sandbox: json!({
                "metadata": {"name": "wasm", "namespace": "default", "uid": node.namespace, "attempt": 0},
                "log_directory": node.folder.join("pod-logs"),
                "linux": {"cgroup_parent": format!("/{}", node.namespace), "security_context": security},
            }),
            container: json!({
                "metadata": {"name": "main", "attempt": 0},
                "image": {"image": image}, "command": command, "log_path": "main.log",
                "envs": [{"key": "FROM_POD", "value": "yes"}],
                "linux": {"security_context": security},
            }),
        }
    }

    /// Both are to be in a network namespace of the pod's own, see [`give_networks`].
    pub fn with_network(&mut self) {
        for part in [&mut self.sandbox, &mut self.container] {
            part["linux"]["security_context"]["namespace_options"]["network"] = json!(0);
        }
    }

    /// Makes both, and starts neither: the ids of sandbox and container.
    #[track_caller]
    fn make(&self, node: &Node) -> (String, String) {
        fs::create_dir_all(node.folder.join("pod-logs")).unwrap();
        let sandbox_file = file(node, "pod.json", &self.sandbox);
        let container_file = file(node, "container.json", &self.container);
        let sandbox = crictl(node, &["runp", "--runtime", self.handler, &sandbox_file]).ok();
        let sandbox = sandbox.stdout.trim().to_owned();
        let made = crictl(node, &["create", "--no-pull", &sandbox, &container_file, &sandbox_file]).ok();
        (sandbox, made.stdout.trim().to_owned())
    }

    /// Expects that the container cannot be started, for a reason with all of `words`.
    #[track_caller]
    pub fn fail(&self, node: &Node, words: &[&str]) {
        let (sandbox, id) = self.make(node);
        crictl(node, &["start", &id]).expect_refusal(words);
        remove(node, &sandbox, &id);
    }
}

/// Takes a container and its pod away.
#[track_caller]
fn remove(node: &Node, sandbox: &str, id: &str) {
    crictl(node, &["rm", "--force", id]).ok();
    crictl(node, &["stopp", sandbox]).ok();
    crictl(node, &["rmp", sandbox]).ok();
}

/// As [`with_pod`], with what `edit` makes of the pod.
pub fn with_edited_pod(
    node: &Node,
    image: &str,
    command: &[&str],
    edit: impl FnOnce(&mut Pod),
    check: impl FnOnce(&str, &str),
) {
    let mut pod = Pod::new(node, image, command);
    edit(&mut pod);
    let (sandbox, id) = pod.make(node);
    crictl(node, &["start", &id]).ok();
    let logs = fs::canonicalize(node.folder.join("pod-logs")).unwrap();
    check(&id, &logs.join("main.log").display().to_string());
    remove(node, &sandbox, &id);
}

/// Gives this node's pods networks: by a CNI plugin that makes none, but says that it did.
pub fn give_networks(node: &Node) {
    let folder = node.cni();
    fs::create_dir_all(&folder).unwrap();
    let list = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "none"}]});
    fs::write(folder.join("none.conflist"), list.to_string()).unwrap();
    for plugin in ["none", "loopback"] {
        let script = "#!/bin/sh\ncase $CNI_COMMAND in\nVERSION) echo '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"1.0.0\",\"0.3.1\"]}' ;;\n\
            ADD) echo '{\"cniVersion\":\"1.0.0\",\"interfaces\":[{\"name\":\"eth0\",\"sandbox\":\"/none\"}],\
            \"ips\":[{\"address\":\"10.99.0.2/24\",\"interface\":0}]}' ;;\nesac\n";
        fs::write(folder.join(plugin), script).unwrap();
        fs::set_permissions(folder.join(plugin), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// Waits for the container's end and returns its exit code.
pub fn exit_code(node: &Node, id: &str) -> i64 {
    eventually("the container has exited", Duration::from_secs(20), || {
        let status: serde_json::Value = serde_json::from_str(&crictl(node, &["inspect", id]).ok().stdout).unwrap();
        (status["status"]["state"] == "CONTAINER_EXITED").then(|| status["status"]["exitCode"].as_i64().unwrap_or(0))
    })
}

/// Turns CRI on, with an image for sandboxes.
pub fn prepare(node: &mut Node) {
    node.turn_on_cri();
    let pause = Image::with_files("pause", &[("/pause", b"never executed")]);
    node.import_into(&pause, "k8s.io").ok();
}

on_every_containerd! {
    fn the_artifact_that_the_wasm_world_publishes_runs_in_a_pod(node) {
        prepare(node);
        let registry = Registry::start(node);
        for probe in Probe::WASM {
            let name = probe.file().replace(".wasm", "");
            let image = registry.push(node, &Image::artifact(&name, &probe.bytes()), &name);
            let pull = crictl(node, &["pull", &image]);
            if node.version == Version::V1_6 {
                pull.expect_refusal(&["mismatched image rootfs and manifest layers"]);
                continue;
            }
            pull.ok();
            with_pod(node, &image, &["anything", "env"], |id, log| {
                assert_eq!(exit_code(node, id), 0, "{probe:?}");
                let log = fs::read_to_string(log).unwrap();
                assert!(log.contains("FROM_POD=yes"), "{probe:?}: {log}");
            });
        }
    }

    fn a_memory_limit_is_resized_in_place_and_an_oom_kill_is_the_reason(node) {
        prepare(node);
        let image = Image::with_files("limits", &[("/probe.wasm", &Probe::P1.bytes())]);
        node.import_into(&image, "k8s.io").ok();
        let limits = json!({"memory_limit_in_bytes": 64 << 20});
        with_limited_pod(node, &image.name, &["/probe.wasm", "grow", "/"], &limits, |id, _| {
            let pid = pod::pid(node, id);
            let limit = || control::limit(pid, "memory", "memory.limit_in_bytes", "memory.max");
            assert_eq!(limit(), (64 << 20).to_string());
            let resize = |mebibytes: usize| {
                let bytes = (mebibytes << 20).to_string();
                crictl(node, &["update", "--memory", &bytes, id]).ok();
                assert_eq!(limit(), bytes);
            };
            // The guest's own limit follows: memory.grow fails before the kernel would kill.
            resize(128);
            resize(96);
            let held = control::grow(pid, 512);
            assert!((80..95).contains(&held), "{held} MiB of 96");
            resize(160);
            let held = control::grow(pid, 512);
            assert!((140..159).contains(&held), "{held} MiB of 160");
        });
        with_limited_pod(node, &image.name, &["/probe.wasm", "flood", "/dev/shm/file", "60"], &json!({"memory_limit_in_bytes": 32 << 20}), |id, _| {
            assert_eq!(exit_code(node, id), 137);
            eventually("the reason is OOMKilled", Duration::from_secs(5), || {
                crictl(node, &["inspect", id]).ok().stdout.contains("\"OOMKilled\"").then_some(())
            });
        });
    }

    fn a_pod_of_eight_mebibytes_and_a_fiftieth_of_a_cpu_runs_and_compiling_is_not_charged_to_it(node) {
        prepare(node);
        let limits = json!({"memory_limit_in_bytes": 8 << 20, "cpu_period": 100_000, "cpu_quota": 2_000, "cpu_shares": 20});
        for probe in Probe::WASM {
            let image = Image::with_files(&format!("small-{probe:?}").to_lowercase(), &[("/probe.wasm", &probe.bytes())]);
            node.import_into(&image, "k8s.io").ok();
            with_limited_pod(node, &image.name, &["/probe.wasm", "grow", "/"], &limits, |id, _| {
                let pid = pod::pid(node, id);
                assert_eq!(control::grow(pid, 2), 2, "{probe:?}");
                // The compiler takes a multiple of both.
                let failures = control::limit(pid, "memory", "memory.failcnt", "memory.events");
                assert!(failures == "0" || failures.contains("max 0\n"), "{probe:?} reached its limit: {failures}");
                let ran = control::limit(pid, "cpuacct", "cpuacct.usage", "cpu.stat");
                let ran = match ran.strip_prefix("usage_usec ") {
                    Some(lines) => Duration::from_micros(lines.lines().next().unwrap().parse().unwrap()),
                    None => Duration::from_nanos(ran.parse().unwrap()),
                };
                assert!(ran < Duration::from_millis(100), "{probe:?} ran for {ran:?}");
            });
        }
    }

    fn an_ordinary_image_runs_in_a_pod_and_its_exit_code_is_seen(node) {
        prepare(node);
        let image = Image::with_files("pod", &[("/probe.wasm", &Probe::P1.bytes())]);
        node.import_into(&image, "k8s.io").ok();
        with_pod(node, &image.name, &["/probe.wasm", "exit", "7"], |id, _| assert_eq!(exit_code(node, id), 7));
        with_pod(node, &image.name, &["/probe.wasm", "trap"], |id, log| {
            assert_eq!(exit_code(node, id), 134);
            assert!(fs::read_to_string(log).unwrap().contains("wasm trap"));
        });
        with_pod(node, &image.name, &["/probe.wasm", "idle"], |id, _| {
            let stats = crictl(node, &["stats", "--output", "json", "--id", id]).ok().stdout;
            assert!(stats.contains("workingSetBytes"), "{stats}");
            crictl(node, &["stop", "--timeout", "5", id]).ok();
            assert_eq!(exit_code(node, id), 143);
        });
    }
}
