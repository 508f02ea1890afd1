//! Scopes of systemd: a container whose `linux.cgroupsPath` is `slice:prefix:name` lives in one, from Create to Delete.
//!
//! These need a machine that systemd runs, so `make test-cgroup2` runs them, in a virtual one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use containerd_shim_protos::api::StartRequest;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::command::{eventually, run};
use crate::containerd::Node;
use crate::control::{Events, RESOURCES, limit, update};
use crate::cri;
use crate::guests::Probe;
use crate::image_builder::Image;
use crate::pod::{self, PID_OF_CONTAINER, Pod};
use crate::sandbox::idle;
use crate::server;
use crate::task_api::{connect, context, create, end_server, probe_bundle};

/// The slice of these tests, which systemd makes and keeps.
const SLICE: &str = "kubewasi-test.slice";
const SLICE_PATH: &str = "/kubewasi.slice/kubewasi-test.slice";

/// The name of the scope that `place` asks for.
fn unit(node: &Node) -> String {
    format!("cri-{}.scope", node.namespace)
}

/// Has a spec ask for the node's scope, with limits.
fn place(node: &Node, spec: &mut Value, resources: Value) {
    spec["linux"]["cgroupsPath"] = format!("{SLICE}:cri:{}", node.namespace).into();
    spec["linux"]["resources"] = resources;
}

/// What systemd says of a unit.
#[track_caller]
fn show(unit: &str, property: &str) -> String {
    let shown = run(Command::new("systemctl").args(["show", "--value", "--property", property, unit]));
    shown.ok().stdout.trim().to_owned()
}

/// A systemd that reads its units again writes their limits again.
#[track_caller]
fn reload() {
    run(Command::new("systemctl").arg("daemon-reload")).ok();
}

/// The paths of a process's cgroups. Devices are left out: on v1 systemd moves a scope that it has no device rules for to
/// the slice when a container beside it has some, and a guest has no device to open.
fn cgroups(pid: u32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let memberships = text.lines().filter(|line| !line.contains(":devices:"));
    memberships
        .map(|line| line.splitn(3, ':').nth(2).unwrap().to_owned())
        .collect()
}

/// The folder of the slice, with that of each scope in it.
fn scopes() -> PathBuf {
    let root = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"]
        .into_iter()
        .find(|root| Path::new(root).is_dir());
    PathBuf::from(format!("{}{SLICE_PATH}", root.unwrap()))
}

#[track_caller]
fn expect_gone(node: &Node) {
    assert_eq!(show(&unit(node), "LoadState"), "not-found");
    for hierarchy in ["", "memory", "pids", "freezer", "systemd"] {
        let folder = PathBuf::from(format!("/sys/fs/cgroup/{hierarchy}{SLICE_PATH}/{}", unit(node)));
        assert!(!folder.exists(), "{}", folder.display());
    }
}

fn probe(node: &Node) -> Image {
    let image = Image::with_files("scope", &[("/probe.wasm", &Probe::P1.bytes())]);
    node.import(&image);
    image
}

on_newest_containerd! {
    #[ignore = "needs systemd: make test-cgroup2"]
    fn a_container_lives_in_its_scope_with_its_limits_and_leaves_nothing(node) {
        for _ in 0..2 {
            let (id, pid) = idle(node, |spec| place(node, spec, json!({
                "memory": {"limit": 64 << 20},
                "cpu": {"shares": 512, "quota": 25_500, "period": 100_000, "cpus": "0"},
                "pids": {"limit": 40},
            })));
            let unit = unit(node);
            for path in cgroups(pid) {
                assert_eq!(path, format!("{SLICE_PATH}/{unit}"));
            }
            for (property, value) in [("ActiveState", "active"), ("Slice", SLICE), ("Delegate", "yes"), ("TasksMax", "40"),
                                      ("CPUQuotaPerSecUSec", "260ms")] {
                assert_eq!(show(&unit, property), value, "{property}");
            }
            for _ in 0..2 {
                assert_eq!(limit(pid, "memory", "memory.limit_in_bytes", "memory.max"), (64 << 20).to_string());
                assert_eq!(limit(pid, "pids", "pids.max", "pids.max"), "40");
                assert_eq!(limit(pid, "cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
                reload();
            }
            node.remove(&id);
            expect_gone(node);
        }
    }

    #[ignore = "needs systemd: make test-cgroup2"]
    fn the_quota_is_the_specs_to_the_microsecond_and_the_weight_is_systemds(node) {
        let (id, pid) = idle(node, |spec| place(node, spec, json!({"cpu": {"shares": 512, "quota": 25_500, "period": 100_000}})));
        assert!(limit(pid, "cpu", "cpu.cfs_quota_us", "cpu.max").starts_with("25500"));
        let (property, file) = match Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            true => ("CPUWeight", limit(pid, "cpu", "", "cpu.weight")),
            false => ("CPUShares", limit(pid, "cpu", "cpu.shares", "")),
        };
        assert_eq!(show(&unit(node), property), file);
        node.remove(&id);
    }

    #[ignore = "needs systemd: make test-cgroup2"]
    fn new_limits_outlive_a_reload_of_systemd(node) {
        let bundle = probe_bundle(node, "update", &["idle"]);
        let config = bundle.join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        place(node, &mut spec, json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 40}}));
        fs::write(&config, spec.to_string()).unwrap();
        let client = connect(node, &node.namespace, "update", &bundle);
        let pid = client.create(context(node), &create("update", &bundle)).unwrap().pid;
        let json = json!({"memory": {"limit": 96 << 20}, "pids": {"limit": 50}}).to_string();
        client.start(context(node), &StartRequest { id: "update".into(), ..Default::default() }).unwrap();
        client.update(context(node), &update("update", RESOURCES, &json)).unwrap();
        for _ in 0..2 {
            assert_eq!(limit(pid, "memory", "memory.limit_in_bytes", "memory.max"), (96 << 20).to_string());
            assert_eq!(limit(pid, "pids", "pids.max", "pids.max"), "50");
            reload();
        }
        // The server's end takes the container along; what it holds is `delete`'s.
        end_server(node);
    }

    #[ignore = "needs systemd: make test-cgroup2"]
    fn an_exited_container_of_a_scope_is_deleted_with_its_code(node) {
        let image = probe(node);
        let path = format!("{SLICE}:cri:{}", node.namespace);
        let (id, _) = node.run(&image).flag(&["--cgroup", &path]).args(&["/probe.wasm", "exit", "7"]).detach();
        node.wait_until(&id, "STOPPED");
        assert_eq!(node.delete(&id), 7);
        expect_gone(node);
    }

    #[ignore = "needs systemd: make test-cgroup2"]
    fn a_frozen_scope_is_resumed_and_a_frozen_one_is_killed(node) {
        let (id, pid) = idle(node, |spec| place(node, spec, json!({})));
        node.ctr(&["task", "pause", &id]).ok();
        assert_eq!(node.task(&id), Some((pid, "PAUSED".into())));
        node.ctr(&["task", "resume", &id]).ok();
        node.ctr(&["task", "pause", &id]).ok();
        node.remove(&id);
        expect_gone(node);
    }

    #[ignore = "needs systemd: make test-cgroup2"]
    fn the_scope_of_a_killed_server_is_cleaned_away(node) {
        let (id, pid) = idle(node, |spec| place(node, spec, json!({})));
        kill_process(Pid::from_raw(server::pid(node)).unwrap(), Signal::KILL).unwrap();
        eventually("the guest is gone", Duration::from_secs(10), || {
            (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
        });
        node.ctr(&["task", "delete", "--force", &id]);
        node.ctr(&["container", "delete", &id]).ok();
        eventually("the scope is gone", Duration::from_secs(10), || {
            (show(&unit(node), "LoadState") == "not-found").then_some(())
        });
        expect_gone(node);
    }

    #[ignore = "needs systemd: make test-cgroup2"]
    fn an_oom_kill_is_told_though_systemd_removes_the_cgroup(node) {
        let image = probe(node);
        let path = format!("{SLICE}:cri:{}", node.namespace);
        let events = Events::listen(node);
        let limit = (32 << 20).to_string();
        let (id, _) = node.run(&image).flag(&["--cgroup", &path, "--memory-limit", &limit])
            .args(&["/probe.wasm", "flood", "/dev/shm/file", "60"]).detach();
        node.wait_until(&id, "STOPPED");
        assert_eq!(node.delete(&id), 137);
        assert_eq!(events.until("delete"), ["create", "start", "oom", "exit", "delete"]);
    }

    #[ignore = "needs systemd: make test-cgroup2"]
    fn a_mixed_pod_of_a_kubelet_with_the_systemd_driver_lives_in_scopes_and_an_oom_kill_is_the_reason(node) {
        cri::prepare(node);
        let image = Image::with_files("pod", &[("/probe.wasm", &Probe::P1.bytes())]);
        let native = Image::with_files("native", &[("/probe", &Probe::Native.bytes())]);
        for image in [&image, &native] {
            node.import_into(image, "k8s.io").ok();
        }
        let limited = |config: &mut Value| config["linux"]["resources"] = json!({"memory_limit_in_bytes": 32 << 20});
        let pod = Pod::start_in(SLICE, node, PID_OF_CONTAINER);
        let guest = pod.run("guest", &image.name, &["/probe.wasm", "idle"], limited);
        let beside = pod.run("beside", &native.name, &["/probe", "idle"], |_| ());
        let scope = |id: &str| format!("{SLICE_PATH}/cri-containerd-{id}.scope");
        for path in cgroups(pod::pid(node, &guest)) {
            assert_eq!(path, scope(&guest));
        }
        // runc leaves v1 hierarchies that neither it nor systemd knows as they are.
        assert!(cgroups(pod::pid(node, &beside)).contains(&scope(&beside)));
        let bytes = (96 << 20).to_string();
        cri::crictl(node, &["update", "--memory", &bytes, &guest]).ok();
        reload();
        let pid = pod::pid(node, &guest);
        assert_eq!(limit(pid, "memory", "memory.limit_in_bytes", "memory.max"), bytes);

        let greedy = pod.run("greedy", &image.name, &["/probe.wasm", "flood", "/dev/shm/file", "60"], limited);
        assert_eq!(cri::exit_code(node, &greedy), 137);
        eventually("the reason is OOMKilled", Duration::from_secs(5), || {
            cri::crictl(node, &["inspect", &greedy]).ok().stdout.contains("\"OOMKilled\"").then_some(())
        });
        pod.end();
        for entry in fs::read_dir(scopes()).unwrap().flatten() {
            assert!(!entry.file_name().to_string_lossy().starts_with("cri-containerd-"), "{entry:?} is left");
        }
    }

    #[ignore = "needs systemd: make test-cgroup2"]
    fn a_scope_that_is_in_use_is_refused_and_left_alone(node) {
        let (id, pid) = idle(node, |spec| place(node, spec, json!({})));
        let image = probe(node);
        let path = format!("{SLICE}:cri:{}", node.namespace);
        node.run(&image).flag(&["--cgroup", &path]).args(&["/probe.wasm", "idle"]).fail()
            .expect_refusal(&["linux.cgroupsPath", &unit(node)]);
        assert_eq!(node.task(&id), Some((pid, "RUNNING".into())));
        node.remove(&id);
    }
}
