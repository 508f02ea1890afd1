//! What is done to a container while it lives: pause and resume, new limits, and the kernel's own doing, OOM kills.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use containerd_shim_protos::api::{
    CheckpointTaskRequest, DeleteRequest, KillRequest, PauseRequest, ResumeRequest, StartRequest, StateRequest, Status,
    UpdateTaskRequest, WaitRequest,
};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::ttrpc::Code;
use rustix::process::{Pid, Signal, kill_process};

use crate::command::eventually;
use crate::containerd::Node;
use crate::guests::Probe;
use crate::image_builder::Image;
use crate::server;
use crate::task_api::{connect, context, create, end_server, probe_bundle, refusal};

/// The type that containerd gives new limits.
pub const RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// `ctr events`, written to a file.
pub struct Events {
    client: Child,
    file: PathBuf,
}

impl Events {
    /// Listens from now on: returns when an event has been heard.
    pub fn listen(node: &Node) -> Events {
        let file = node.folder.join("events");
        let client = node
            .ctr_command(&["events"])
            .stdin(Stdio::null())
            .stdout(File::create(&file).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut number = 0;
        eventually("ctr hears events", Duration::from_secs(10), || {
            number += 1;
            node.ctr(&["namespaces", "label", &node.namespace, &format!("heard={number}")])
                .ok();
            fs::read_to_string(&file)
                .unwrap()
                .contains("/namespaces/")
                .then_some(())
        });
        Events { client, file }
    }

    /// The topics of the tasks' events up to the first `last`, without what is before the last slash.
    #[track_caller]
    pub fn until(mut self, last: &str) -> Vec<String> {
        let topics = eventually(&format!("an event {last}"), Duration::from_secs(10), || {
            let text = fs::read_to_string(&self.file).unwrap();
            let topics: Vec<String> = text
                .split_whitespace()
                .filter_map(|word| word.strip_prefix("/tasks/"))
                .map(str::to_owned)
                .collect();
            topics.iter().any(|topic| topic == last).then_some(topics)
        });
        self.client.kill().unwrap();
        self.client.wait().unwrap();
        topics
    }
}

fn image(node: &Node) -> Image {
    let image = Image::with_files("probe", &[("/probe.wasm", &Probe::P1.bytes())]);
    node.import(&image);
    image
}

/// The clock ticks that a process has run for, fields 14 and 15 of proc(5)'s stat.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Waits until a process is seen running.
#[track_caller]
pub fn expect_running(pid: u32) {
    let before = ticks(pid);
    eventually("the process runs", Duration::from_secs(10), || {
        (ticks(pid) > before).then_some(())
    });
}

/// Fails the test when a process runs within a while.
#[track_caller]
pub fn expect_still(pid: u32) {
    let before = ticks(pid);
    sleep(Duration::from_millis(300));
    assert_eq!(ticks(pid), before);
}

/// A limit of the cgroup of `pid`, from the file of v1 or of v2.
pub fn limit(pid: u32, controller: &str, v1: &str, v2: &str) -> String {
    let text = fs::read_to_string(cgroup_file(pid, controller, v1, v2)).unwrap();
    text.trim().to_owned()
}

fn cgroup_file(pid: u32, controller: &str, v1: &str, v2: &str) -> String {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = |controller: &str| {
        groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (names, path) = rest.split_once(':')?;
            names.split(',').any(|name| name == controller).then(|| path.to_owned())
        })
    };
    match path(controller) {
        Some(path) => format!("/sys/fs/cgroup/{controller}{path}/{v1}"),
        None => format!("/sys/fs/cgroup{}/{v2}", path("").unwrap()),
    }
}

/// Has the guest `pid`, a probe that runs `grow /`, hold up to `mebibytes`, and says how many it holds.
#[track_caller]
pub fn grow(pid: u32, mebibytes: usize) -> usize {
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    fs::write(root.join("want.new"), mebibytes.to_string()).unwrap();
    fs::rename(root.join("want.new"), root.join("want")).unwrap();
    let held = root.join("held");
    eventually("the guest has grown", Duration::from_secs(20), || {
        fs::read_to_string(&held)
            .ok()?
            .parse()
            .ok()
            .filter(|_| fs::remove_file(&held).is_ok())
    })
}

/// Starts a native command in the memory cgroup of `pid`, as an exec would.
pub fn beside(pid: u32, command: &str) -> Child {
    let procs = cgroup_file(pid, "memory", "cgroup.procs", "cgroup.procs");
    Command::new("sh")
        .args(["-c", &format!("echo $$ > {procs} && exec {command}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

pub fn update(id: &str, kind: &str, json: &str) -> UpdateTaskRequest {
    UpdateTaskRequest {
        id: id.into(),
        resources: MessageField::some(Any {
            type_url: kind.into(),
            value: json.into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

on_every_containerd! {
    fn a_paused_container_does_not_run_until_it_is_resumed(node) {
        let image = image(node);
        let events = Events::listen(node);
        let (id, pid) = node.run(&image).args(&["/probe.wasm", "spin"]).detach();
        expect_running(pid);
        node.ctr(&["task", "pause", &id]).ok();
        assert_eq!(node.task(&id), Some((pid, "PAUSED".into())));
        expect_still(pid);
        node.ctr(&["task", "pause", &id]).expect_refusal(&["cannot pause a container that is paused"]);
        node.ctr(&["task", "delete", &id]).expect_refusal(&["stopped"]);
        node.ctr(&["task", "resume", &id]).ok();
        assert_eq!(node.task(&id), Some((pid, "RUNNING".into())));
        expect_running(pid);
        node.ctr(&["task", "resume", &id]).expect_refusal(&["cannot resume a container that is running"]);
        node.remove(&id);
        assert_eq!(events.until("delete"), ["create", "start", "paused", "resumed", "exit", "delete"]);
    }

    fn a_paused_container_can_be_killed_and_takes_other_signals_when_it_is_resumed(node) {
        let image = image(node);
        let (id, _) = node.run(&image).args(&["/probe.wasm", "spin"]).detach();
        node.ctr(&["task", "pause", &id]).ok();
        node.ctr(&["task", "kill", "--signal", "SIGKILL", &id]).ok();
        node.wait_until(&id, "STOPPED");
        assert_eq!(node.delete(&id), 137);

        let (id, pid) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        node.ctr(&["task", "pause", &id]).ok();
        node.ctr(&["task", "kill", "--signal", "SIGTERM", &id]).ok();
        sleep(Duration::from_millis(200));
        assert_eq!(node.task(&id), Some((pid, "PAUSED".into())));
        node.ctr(&["task", "resume", &id]).ok();
        node.wait_until(&id, "STOPPED");
        assert_eq!(node.delete(&id), 143);
    }

    fn a_paused_container_of_a_killed_server_is_cleaned_away(node) {
        let image = image(node);
        let (id, pid) = node.run(&image).args(&["/probe.wasm", "spin"]).detach();
        node.ctr(&["task", "pause", &id]).ok();
        kill_process(Pid::from_raw(server::pid(node)).unwrap(), Signal::KILL).unwrap();
        eventually("the guest is gone", Duration::from_secs(10), || {
            (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
        });
        node.ctr(&["task", "delete", "--force", &id]);
        node.ctr(&["container", "delete", &id]).ok();
    }

    fn a_guest_that_grows_to_its_memory_limit_is_told_so_and_lives(node) {
        for probe in Probe::WASM {
            let image = Image::with_files(&format!("{probe:?}"), &[("/probe.wasm", &probe.bytes())]);
            node.import(&image);
            let limited = |mebibytes: usize, args: &[&str]| {
                let limit = (mebibytes << 20).to_string();
                node.run(&image).flag(&["--memory-limit", &limit]).args(&[&["/probe.wasm"], args].concat())
            };
            limited(64, &["fill", "512"]).finish().expect_code(1).expect_error(&["probe fill: out of memory after"]);
            limited(64, &["fill", "40"]).finish().ok();
            let (id, pid) = limited(64, &["grow", "/"]).detach();
            let held = grow(pid, 512);
            assert!((50..63).contains(&held), "{probe:?}: {held} MiB of 64");
            assert_eq!(grow(pid, 512), held, "{probe:?}: it lives at its limit");
            node.remove(&id);
        }
    }

    fn what_others_of_the_container_hold_is_not_the_guests_to_grow_by(node) {
        let image = image(node);
        let bytes = (64 << 20).to_string();
        let (id, pid) = node.run(&image).flag(&["--memory-limit", &bytes]).args(&["/probe.wasm", "grow", "/"]).detach();
        let mut other = beside(pid, "sh -c 'head -c 30000000 /dev/zero | tail | sleep 60'");
        let used = || limit(pid, "memory", "memory.usage_in_bytes", "memory.current").parse::<usize>().unwrap();
        eventually("the other holds memory", Duration::from_secs(10), || (used() > 30_000_000).then_some(()));
        let held = grow(pid, 512);
        assert!((20..35).contains(&held), "{held} MiB beside 30 of 64");
        other.kill().unwrap();
        other.wait().unwrap();
        node.remove(&id);
    }

    fn a_guest_over_its_memory_limit_is_137_and_an_oom_event_before_the_exit(node) {
        let image = image(node);
        let events = Events::listen(node);
        let limit = (32 << 20).to_string();
        let (id, _) = node.run(&image).flag(&["--memory-limit", &limit]).args(&["/probe.wasm", "flood", "/dev/shm/file", "60"]).detach();
        node.wait_until(&id, "STOPPED");
        // What containerd 2.3 and later reads for the reason.
        let figures = node.ctr(&["task", "metrics", "--format", "json", &id]).ok().stdout;
        assert!(figures.contains("\"oom_kill\": 1"), "{figures}");
        assert_eq!(node.delete(&id), 137);
        assert_eq!(events.until("delete"), ["create", "start", "oom", "exit", "delete"]);
        node.log_line(&["memory limit", &id]);
    }

    fn an_oom_kill_beside_the_guest_is_told_while_the_guest_runs_on(node) {
        let image = image(node);
        let events = Events::listen(node);
        let limit = (64 << 20).to_string();
        let (id, pid) = node.run(&image).flag(&["--memory-limit", &limit]).args(&["/probe.wasm", "idle"]).detach();
        let killed = beside(pid, "tail /dev/zero").wait().unwrap();
        assert_eq!(killed.signal(), Some(9));
        assert_eq!(events.until("oom"), ["create", "start", "oom"]);
        assert_eq!(node.task(&id), Some((pid, "RUNNING".into())));
        node.remove(&id);
    }

    fn a_signal_to_all_reaches_every_process_of_the_container(node) {
        let image = image(node);
        let (id, pid) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        let mut other = beside(pid, "sleep 60");
        eventually("the other process is in the cgroup", Duration::from_secs(5), || {
            let pids = limit(pid, "memory", "cgroup.procs", "cgroup.procs");
            pids.lines().any(|line| line == other.id().to_string()).then_some(())
        });
        node.ctr(&["task", "kill", "--all", "--signal", "SIGTERM", &id]).ok();
        assert_eq!(other.wait().unwrap().signal(), Some(15));
        node.wait_until(&id, "STOPPED");
        assert_eq!(node.delete(&id), 143);
    }

    fn a_guest_within_its_memory_limit_or_killed_by_its_client_has_no_oom_event(node) {
        let image = image(node);
        let events = Events::listen(node);
        let limit = (64 << 20).to_string();
        let (id, _) = node.run(&image).flag(&["--memory-limit", &limit]).args(&["/probe.wasm", "idle"]).detach();
        node.remove(&id);
        assert_eq!(events.until("delete"), ["create", "start", "exit", "delete"]);
    }

    fn new_limits_are_the_cgroups_limits(node) {
        let bundle = probe_bundle(node, "update", &["idle"]);
        let client = connect(node, &node.namespace, "update", &bundle);
        let pid = client.create(context(node), &create("update", &bundle)).unwrap().pid;
        client.start(context(node), &StartRequest { id: "update".into(), ..Default::default() }).unwrap();
        let memory = || limit(pid, "memory", "memory.limit_in_bytes", "memory.max");
        for mebibytes in [256, 64, 128] {
            let bytes = mebibytes << 20;
            let json = format!(
                r#"{{"devices":[{{"allow":true,"access":"rwm"}}],"memory":{{"limit":{bytes},"swap":{bytes}}},
                    "cpu":{{"quota":50000,"period":100000}},"pids":{{"limit":{mebibytes}}}}}"#
            );
            client.update(context(node), &update("update", RESOURCES, &json)).unwrap();
            assert_eq!(memory(), bytes.to_string());
            assert_eq!(limit(pid, "pids", "pids.max", "pids.max"), mebibytes.to_string());
        }
        assert!(limit(pid, "cpu", "cpu.cfs_quota_us", "cpu.max").starts_with("50000"));

        for (kind, json, words) in [
            (RESOURCES, r#"{"memory":{"limit":-5}}"#, ["memory.limit", "-5"]),
            (RESOURCES, r#"{"cpu":{"shares":-1}}"#, ["cpu.shares", "-1"]),
            (RESOURCES, r#"{"cpu":{"cpus":"4095"}}"#, ["cpuset.cpus", "4095"]),
            (RESOURCES, "{", ["LinuxResources", "JSON"]),
            ("example.com/WindowsResources", "{}", ["LinuxResources", "WindowsResources"]),
        ] {
            let (code, message) = refusal(client.update(context(node), &update("update", kind, json)));
            assert_eq!(code, Code::INVALID_ARGUMENT, "{message}");
            assert!(words.iter().all(|word| message.contains(word)), "{json}: {message}");
        }
        assert_eq!(memory(), (128 << 20).to_string(), "what is refused changes nothing");

        client.kill(context(node), &KillRequest { id: "update".into(), signal: 9, all: true, ..Default::default() }).unwrap();
        client.wait(context(node), &WaitRequest { id: "update".into(), ..Default::default() }).unwrap();
        let late = refusal(client.update(context(node), &update("update", RESOURCES, "{}")));
        assert_eq!(late, (Code::FAILED_PRECONDITION, "container update: cannot update a container that is stopped".into()));
        client.delete(context(node), &DeleteRequest { id: "update".into(), ..Default::default() }).unwrap();
        assert_eq!(refusal(client.update(context(node), &update("update", RESOURCES, "{}"))).0, Code::NOT_FOUND);
        end_server(node);
    }

    fn pause_wants_a_container_that_runs_and_a_checkpoint_is_not_to_be_had(node) {
        let bundle = probe_bundle(node, "pause", &["idle"]);
        let client = connect(node, &node.namespace, "pause", &bundle);
        let pause = PauseRequest { id: "pause".into(), ..Default::default() };
        let resume = ResumeRequest { id: "pause".into(), ..Default::default() };
        assert_eq!(refusal(client.pause(context(node), &pause)).0, Code::NOT_FOUND);
        client.create(context(node), &create("pause", &bundle)).unwrap();
        assert_eq!(refusal(client.pause(context(node), &pause)).0, Code::FAILED_PRECONDITION);
        client.start(context(node), &StartRequest { id: "pause".into(), ..Default::default() }).unwrap();
        assert_eq!(refusal(client.resume(context(node), &resume)).0, Code::FAILED_PRECONDITION);
        client.pause(context(node), &pause).unwrap();
        let state = client.state(context(node), &StateRequest { id: "pause".into(), ..Default::default() }).unwrap();
        assert_eq!(state.status.enum_value(), Ok(Status::PAUSED));
        let checkpoint = CheckpointTaskRequest { id: "pause".into(), path: "/nowhere".into(), ..Default::default() };
        let (code, message) = refusal(client.checkpoint(context(node), &checkpoint));
        assert_eq!(code, Code::UNIMPLEMENTED);
        assert!(message.contains("checkpoint"), "{message}");
        // The server's end takes a paused container along.
        end_server(node);
    }
}
