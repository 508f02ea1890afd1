//! Hooks of the OCI runtime spec: run for a wasm container when and how runc runs them for a native one.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::command::{eventually, run};
use crate::container::{Run, root_folder, spec};
use crate::containerd::Node;
use crate::guests::{Probe, Service};
use crate::server;

const RUNC: &str = "io.containerd.runc.v2";
const WASI: &str = "io.containerd.wasi.v1";

/// A spec with both kinds of probes that runs what `runtime` is for.
fn probe(node: &Node, runtime: &str, command: &[&str]) -> Value {
    let files = [("probe.wasm", Probe::P1.bytes()), ("probe", Probe::Native.bytes())];
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    let root = root_folder(node, &files);
    fs::set_permissions(root.join("probe"), PermissionsExt::from_mode(0o755)).unwrap();
    let program = if runtime == RUNC { "/probe" } else { "/probe.wasm" };
    let mut spec = spec(node, &root, &[&[program], command].concat());
    spec["linux"]["cgroupsPath"] = format!("/{}/hooks", node.namespace).into();
    spec["annotations"] = json!({"kubewasi.test/hooks": "yes"});
    spec
}

/// A hook that is a script of the shell; `$0` is `name`.
fn shell(name: &str, script: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", script, name], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]})
}

/// The file to which hooks write.
fn record(node: &Node) -> PathBuf {
    node.folder.join("hooks.record")
}

/// Has a hook of every kind that runs on the host write its name and its state to the record.
fn write_all(node: &Node, spec: &mut Value) {
    let script = format!("echo \"$0 $(cat)\" >>{}", record(node).display());
    for list in ["prestart", "createRuntime", "poststart", "poststop"] {
        spec["hooks"][list] = json!([
            shell(&format!("{list}-1"), &script),
            shell(&format!("{list}-2"), &script)
        ]);
    }
}

/// What hooks have written since the last call: names, and states without what differs from run to run.
fn taken(node: &Node) -> Vec<(String, Value)> {
    let text = fs::read_to_string(record(node)).unwrap_or_default();
    let _ = fs::remove_file(record(node));
    let line = |line: &str| {
        let (name, state) = line.split_once(' ').unwrap();
        let mut state: Value = serde_json::from_str(state).unwrap();
        assert!(state["ociVersion"].as_str().unwrap().starts_with("1."), "{state}");
        let id = state["id"].as_str().unwrap().to_owned();
        let bundle = state["bundle"].as_str().unwrap().to_owned();
        assert!(Path::new(&bundle).is_absolute() && bundle.ends_with(&id), "{state}");
        let pid = state.get("pid").and_then(Value::as_u64).unwrap_or_default();
        state["pid"] = (pid > 0).into();
        for differs in ["ociVersion", "id", "bundle"] {
            state.as_object_mut().unwrap().remove(differs);
        }
        (name.to_owned(), state)
    };
    text.lines().map(line).collect()
}

fn names(taken: &[(String, Value)]) -> Vec<&str> {
    taken.iter().map(|(name, _)| name.as_str()).collect()
}

on_every_containerd! {
    fn hooks_of_the_host_run_in_the_order_and_with_the_state_that_runc_gives_them(node) {
        let [native, wasm] = [RUNC, WASI].map(|runtime| {
            let mut spec = probe(node, runtime, &["say", "ran"]);
            write_all(node, &mut spec);
            assert_eq!(Run::of_spec(node, &spec).runtime(runtime).finish().ok().stdout, "ran\n");
            taken(node)
        });
        assert_eq!(names(&native).len(), 8);
        assert_eq!(wasm, native);
    }

    fn a_hook_that_fails_before_the_start_fails_create_and_is_undone(node) {
        for list in ["prestart", "createRuntime", "poststart"] {
            let [native, wasm] = [RUNC, WASI].map(|runtime| {
                let mut spec = probe(node, runtime, &["say", "ran"]);
                write_all(node, &mut spec);
                let hooks = spec["hooks"][list].as_array_mut().unwrap();
                hooks.insert(1, shell("broken", "echo what is wrong >&2; exit 3"));
                let failed = Run::of_spec(node, &spec).runtime(runtime).fail();
                let failed = failed.expect_refusal(&["exit status", "3", "what is wrong"]);
                if runtime == WASI {
                    assert!(failed.stderr.contains(&format!("{list} #1")), "{failed}");
                }
                assert!(!failed.stdout.contains("ran"), "{failed}");
                taken(node)
            });
            assert_eq!(names(&wasm), names(&native), "{list}");
        }
    }

    fn after_a_poststop_hook_that_fails_the_others_run_and_the_container_is_deleted(node) {
        let mut spec = probe(node, WASI, &["say", "ran"]);
        write_all(node, &mut spec);
        spec["hooks"]["poststop"].as_array_mut().unwrap().insert(1, shell("broken", "echo why >&2; exit 3"));
        Run::of_spec(node, &spec).finish().ok();
        assert_eq!(names(&taken(node))[6..], ["poststop-1", "poststop-2"]);
        node.log_line(&["level=warning", "poststop #1", "exit status: 3", "why"]);
    }

    fn hooks_of_the_container_are_refused_by_name(node) {
        for list in ["createContainer", "startContainer"] {
            let mut spec = probe(node, WASI, &["say", "ran"]);
            spec["hooks"] = json!({list: [{"path": "/bin/true"}]});
            Run::of_spec(node, &spec).fail().expect_refusal(&[&format!("hooks.{list}"), "createRuntime"]);
        }
    }

    fn a_hook_that_takes_longer_than_its_timeout_is_killed(node) {
        let mut spec = probe(node, WASI, &["say", "ran"]);
        let mut slow = shell("slow", &format!("echo $$ >{}; exec sleep 100000", record(node).display()));
        slow["timeout"] = 1.into();
        spec["hooks"] = json!({"createRuntime": [slow]});
        Run::of_spec(node, &spec).fail().expect_refusal(&["createRuntime", "timeout of 1 s"]);
        let pid = fs::read_to_string(record(node)).unwrap();
        assert!(!Path::new("/proc").join(pid.trim()).exists(), "it was killed");
    }

    fn poststop_hooks_run_once_when_the_server_is_dead(node) {
        for kind in ["container", "sandbox"] {
            let mut spec = probe(node, WASI, &["idle"]);
            write_all(node, &mut spec);
            // Longer than containerd waits for a `delete`.
            spec["hooks"]["poststop"].as_array_mut().unwrap().insert(1, shell("slow", "exec sleep 6"));
            spec["annotations"]["io.kubernetes.cri.container-type"] = kind.into();
            let (id, _) = Run::of_spec(node, &spec).detach();
            let states = fs::read_to_string(record(node)).unwrap();
            let (_, state) = states.lines().next().unwrap().split_once(' ').unwrap();
            let state: Value = serde_json::from_str(state).unwrap();
            let bundle = PathBuf::from(state["bundle"].as_str().unwrap());
            assert!(bundle.exists());
            taken(node);
            kill_process(Pid::from_raw(server::pid(node)).unwrap(), Signal::KILL).unwrap();
            eventually("the task is gone or has ended", Duration::from_secs(20), || {
                node.task(&id).is_none_or(|(_, state)| state == "STOPPED").then_some(())
            });
            node.ctr(&["task", "delete", "--force", &id]);
            node.ctr(&["container", "delete", &id]).ok();
            // containerd cleans up after a shim that died on its own.
            eventually("the bundle is gone", Duration::from_secs(20), || (!bundle.exists()).then_some(()));
            eventually("the last hook has run", Duration::from_secs(20), || {
                fs::read_to_string(record(node)).ok()?.contains("poststop-2 {").then_some(())
            });
            // A second run of theirs would have begun with the first.
            let poststop = taken(node);
            assert_eq!(names(&poststop), ["poststop-1", "poststop-2"], "{kind}");
            assert_eq!(poststop[0].1["status"], "stopped");
        }
    }

    fn the_sandbox_of_a_pod_has_hooks_too(node) {
        let mut spec = probe(node, WASI, &["idle"]);
        write_all(node, &mut spec);
        spec["annotations"]["io.kubernetes.cri.container-type"] = "sandbox".into();
        let (id, pid) = Run::of_spec(node, &spec).detach();
        assert!(fs::read_to_string(record(node)).unwrap().contains(&format!("\"pid\":{pid},")));
        assert_eq!(names(&taken(node)).len(), 6);
        node.remove(&id);
        assert_eq!(names(&taken(node)), ["poststop-1", "poststop-2"]);
    }

    fn a_prestart_hook_connects_a_service_to_a_bridge_as_docker_does(node) {
        let (_, end) = node.namespace.split_at(3);
        let (bridge, link) = (format!("kwb{}", end.replace('-', "")), format!("kwl{}", end.replace('-', "")));
        // As Docker 27 and older have it: the hook gets the pid from its state, and a device is moved to that one's network.
        let connect = format!(
            "set -e; pid=$(jq .pid); ip link add {link} type veth peer name eth0 netns $pid; \
             ip link set {link} master {bridge} up; \
             nsenter -t $pid -n sh -c 'ip addr add 10.231.7.2/24 dev eth0; ip link set eth0 up'"
        );
        let script = format!("ip link add {bridge} type bridge; ip addr add 10.231.7.1/24 dev {bridge}; ip link set {bridge} up");
        run(std::process::Command::new("sh").args(["-ec", &script])).ok();
        let root = root_folder(node, &[("service.wasm", &Service::Http02.bytes())]);
        let mut spec = spec(node, &root, &["/service.wasm"]);
        spec["linux"]["cgroupsPath"] = format!("/{}/bridge", node.namespace).into();
        spec["hooks"] = json!({"prestart": [shell("setkey", &connect)]});
        let (id, _) = Run::of_spec(node, &spec).detach();
        let reply = eventually("the service answers from the bridge", Duration::from_secs(20), || {
            let mut stream = TcpStream::connect("10.231.7.2:8080").ok()?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
            let mut reply = String::new();
            stream.read_to_string(&mut reply).ok()?;
            Some(reply)
        });
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        node.remove(&id);
        run(std::process::Command::new("ip").args(["link", "delete", &bridge])).ok();
    }
}
