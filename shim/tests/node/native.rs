//! Native containers by the wasi runtime: what runc makes of them, and what is left when something breaks.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::command::{Running, eventually};
use crate::container::{Run, root_folder, spec};
use crate::containerd::Node;
use crate::control::{self, Events};
use crate::exec::{exec, exec_command, running};
use crate::guests::Probe;
use crate::image_builder::Image;
use crate::machine::shim_processes;
use crate::server;
use crate::terminal::Person;

fn busybox(node: &Node) -> Image {
    let image = Image::busybox();
    node.import(&image);
    image
}

/// A spec that runs busybox from a folder of its own, with `script` for its shell.
fn shell(node: &Node, script: &str) -> Value {
    let program = fs::read("/bin/busybox").unwrap();
    let root = root_folder(node, &[("bin/busybox", &program)]);
    make_executable(&root.join("bin/busybox"));
    std::os::unix::fs::symlink("busybox", root.join("bin/sleep")).unwrap();
    let mut spec = spec(node, &root, &["/bin/busybox", "sh", "-c", script]);
    spec["linux"]["cgroupsPath"] = format!("/{}/shell", node.namespace).into();
    spec
}

fn make_executable(path: &Path) {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

/// The processes whose parent is `parent`.
fn children(parent: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    let mut all: Vec<i32> = text.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    for task in fs::read_dir(format!("/proc/{parent}/task")).unwrap().flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        all.extend(text.split_whitespace().map(|pid| pid.parse::<i32>().unwrap()));
    }
    all.sort_unstable();
    all.dedup();
    all
}

on_every_containerd! {
    fn a_native_image_runs_with_its_streams_and_its_exit_code(node) {
        let image = Image::with_files("native", &[("/probe", &Probe::Native.bytes())]);
        node.import(&image);
        let said = node.run(&image).args(&["/probe", "say", "out", "err"]).finish().ok();
        assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("out\n", "err\n"));
        node.run(&image).args(&["/probe", "exit", "7"]).finish().expect_code(7);
        let echo = node.run(&image).args(&["/probe", "cat"]).stdin(b"ping").finish().ok();
        assert_eq!(echo.stdout, "ping");
        let lines = node.run(&image).args(&["/probe", "lines", "65536"]).finish().ok();
        assert_eq!(lines.stdout.len(), 65536 * 16);
    }

    fn a_native_container_is_confined_as_its_spec_says(node) {
        let image = busybox(node).config("User", "1000:2000".into());
        node.import(&image);
        let said = node.run(&image).args(&["sh", "-c", "id -u; id -g; echo $$"]).finish().ok();
        assert_eq!(said.stdout, "1000\n2000\n1\n");
        let root = root_folder(node, &[("program", b"#!/bin/sh\n")]);
        let mut spec = spec(node, &root, &["/program"]);
        spec["linux"]["cgroupsPath"] = format!("/{}/confined", node.namespace).into();
        // The runtime's own words.
        Run::of_spec(node, &spec).fail().expect_refusal(&["OCI runtime create failed", "/program", "permission denied"]);
    }

    fn a_cgroup_that_is_named_as_a_scope_is_in_the_same_slice_for_native_containers_and_guests(node) {
        let mut spec = shell(node, "sleep 1000");
        let root = Path::new(spec["root"]["path"].as_str().unwrap()).to_owned();
        fs::write(root.join("probe.wasm"), Probe::P1.bytes()).unwrap();
        let name = |kind: &str| format!("{}-{kind}", node.namespace);
        for (kind, args) in [("native", None), ("guest", Some(json!(["/probe.wasm", "idle"])))] {
            if let Some(args) = args { spec["process"]["args"] = args; }
            spec["linux"]["cgroupsPath"] = format!("kubewasi-scopes.slice:cri:{}", name(kind)).into();
            let (id, pid) = Run::of_spec(node, &spec).detach();
            let unit = format!("/kubewasi.slice/kubewasi-scopes.slice/cri-{}.scope", name(kind));
            let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
            assert!(cgroups.lines().any(|line| line.contains(":pids:") || line.starts_with("0::")), "{cgroups}");
            let placed = |line: &str| line.ends_with(&unit);
            assert!(cgroups.lines().filter(|line| line.contains(":memory:") || line.contains(":pids:")).all(placed), "{cgroups}");
            assert!(cgroups.lines().any(placed), "{cgroups}");
            node.remove(&id);
        }
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            // Another test's containers may be in there.
            let _ = fs::remove_dir(hierarchy.path().join("kubewasi.slice/kubewasi-scopes.slice"));
            let _ = fs::remove_dir(hierarchy.path().join("kubewasi.slice"));
        }
    }

    fn a_native_process_may_open_as_many_files_as_under_runc(node) {
        let asks = "ulimit -Sn; ulimit -Hn";
        let mut spec = shell(node, asks);
        // containerd's client asks for 1024 by itself.
        spec["process"]["rlimits"] = json!([]);
        let runcs = Run::of_spec(node, &spec).runtime("io.containerd.runc.v2").finish().ok().stdout;
        assert_eq!(Run::of_spec(node, &spec).finish().ok().stdout, runcs);
        let root = Path::new(spec["root"]["path"].as_str().unwrap());
        fs::write(root.join("probe.wasm"), Probe::P1.bytes()).unwrap();
        spec["process"]["args"] = json!(["/probe.wasm", "idle"]);
        spec["linux"]["cgroupsPath"] = format!("/{}/guest", node.namespace).into();
        let (id, _) = Run::of_spec(node, &spec).detach();
        assert_eq!(exec(node, &id, &["/bin/busybox", "sh", "-c", asks]).ok().stdout, runcs);
        node.remove(&id);
    }

    fn a_runtime_that_is_not_there_is_refused_with_the_option_that_names_it(node) {
        node.configure("idle_timeout = 0\nrunc_binary = \"/nowhere/runc\"");
        let image = busybox(node);
        node.run(&image).args(&["sh"]).fail().expect_refusal(&["/nowhere/runc", "runc_binary", "install runc or crun"]);
        let wasm = Image::with_files("wasm", &[("/probe.wasm", &Probe::P1.bytes())]);
        node.import(&wasm);
        node.run(&wasm).args(&["/probe.wasm", "say", "fine"]).finish().ok();
    }

    fn a_native_container_costs_no_process_but_its_own(node) {
        let image = busybox(node);
        let (id, pid) = node.run(&image).args(&["sleep", "1000"]).detach();
        let (server, pid) = (server::pid(node), i32::try_from(pid).unwrap());
        let mut expected = vec![pid, server::launcher(node)];
        expected.sort_unstable();
        assert_eq!(children(server), expected);
        assert!(!shim_processes(&node.namespace).contains(&pid));
        node.remove(&id);
    }

    fn a_native_container_is_paused_resumed_listed_and_measured(node) {
        let image = busybox(node);
        let (id, pid) = node.run(&image).args(&["sh", "-c", "sleep 1000 & while true; do true; done"]).detach();
        control::expect_running(pid);
        node.ctr(&["task", "pause", &id]).ok();
        assert_eq!(node.task(&id).unwrap().1, "PAUSED");
        control::expect_still(pid);
        node.ctr(&["task", "exec", "--exec-id", "e", &id, "id"]).expect_refusal(&["paused"]);
        node.ctr(&["task", "resume", &id]).ok();
        control::expect_running(pid);
        let list = node.ctr(&["task", "ps", &id]).ok().stdout;
        let pids: Vec<u32> = list.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect();
        assert!(pids.len() == 2 && pids[0] == pid, "{list}");
        assert!(node.ctr(&["task", "metrics", &id]).ok().stdout.contains("memory"));
        node.ctr(&["task", "pause", &id]).ok();
        // SIGKILL needs no resume.
        node.remove(&id);
    }

    fn events_of_a_native_container_come_in_order(node) {
        let image = busybox(node);
        let events = Events::listen(node);
        node.run(&image).args(&["sh", "-c", "exit 4"]).finish().expect_code(4);
        assert_eq!(events.until("delete"), ["create", "start", "exit", "delete"]);
        let events = Events::listen(node);
        let run = node.run(&image).flag(&["--memory-limit", &(32 << 20).to_string()]).args(&["tail", "/dev/zero"]);
        run.finish().expect_code(137);
        assert_eq!(events.until("delete"), ["create", "start", "oom", "exit", "delete"]);
    }

    fn processes_are_exec_d_into_a_native_container(node) {
        let image = busybox(node);
        let (id, _) = node.run(&image).args(&["sleep", "1000"]).detach();
        let said = exec(node, &id, &["sh", "-c", "echo out; echo err >&2; cat /proc/1/comm"]).ok();
        assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("out\nsleep\n", "err\n"));
        exec(node, &id, &["sh", "-c", "exit 9"]).expect_code(9);
        exec(node, &id, &["/no/such"]).expect_refusal(&["OCI runtime exec failed", "/no/such"]);
        let (mut cat, _) = running(node, &id, &["cat"]);
        cat.feed(b"through cat");
        assert_eq!(cat.wait().ok().stdout, "through cat");
        let many: Vec<Running> = (0..10)
            .map(|number| Running::start(&mut exec_command(node, &id, &[], &["sh", "-c", &format!("exit {number}")])))
            .collect();
        for (number, exec) in many.into_iter().enumerate() {
            exec.wait().expect_code(i32::try_from(number).unwrap());
        }
        // An exec ends with its container, and its end is told.
        let (left, _) = running(node, &id, &["sleep", "1000"]);
        node.remove(&id);
        left.wait().expect_code(137);
    }

    fn a_native_container_has_a_terminal_that_follows_its_clients(node) {
        let image = busybox(node);
        let mut person = Person::runs(&Run::of_image(node, &image).flag(&["--tty"]).args(&["sh"]).foreground());
        person.sees("# ");
        person.types("tty; stty size\r");
        person.sees("/dev/pts/0\n24 80\n");
        person.resizes_the_shells_terminal();
        person.types("exit 3\r");
        assert_eq!(person.waits().0, Some(3));

        let (id, _) = node.run(&image).args(&["sleep", "1000"]).detach();
        let mut person = Person::runs(&exec_command(node, &id, &["--tty"], &["sh"]));
        person.sees("# ");
        person.types("stty size\r");
        person.sees("24 80\n");
        person.types("exit 4\r");
        assert_eq!(person.waits().0, Some(4));
        let (code, seen) = Person::runs(&exec_command(node, &id, &["--tty"], &["sh", "-c", "echo said; exit 5"])).waits();
        assert_eq!((code, seen.as_str()), (Some(5), "said\n"));
        node.remove(&id);
    }

    fn what_a_native_container_without_a_pid_namespace_leaves_behind_is_reaped(node) {
        let host = |script: &str| {
            let mut spec = shell(node, script);
            spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
            spec
        };
        let (id, pid) = Run::of_spec(node, &host("(sleep 1 &); (sleep 1 &); sleep 1000")).detach();
        let server = server::pid(node);
        let zombies = || children(server).into_iter().filter(|child| gone(child.unsigned_abs())).count();
        eventually("they are the server's zombies", Duration::from_secs(20), || (zombies() == 2).then_some(()));
        let mut other = host("exit 5");
        other["linux"]["cgroupsPath"] = format!("/{}/other", node.namespace).into();
        Run::of_spec(node, &other).finish().expect_code(5);
        eventually("they are reaped", Duration::from_secs(20), || (zombies() == 0).then_some(()));
        assert!(!gone(pid), "the container lives");
        node.ctr(&["task", "kill", "--signal", "SIGKILL", &id]).ok();
        node.wait_until(&id, "STOPPED");
        assert_eq!(node.delete(&id), 137, "its exit was not taken from its watcher");
    }

    fn a_server_that_is_told_to_end_takes_its_native_containers_along(node) {
        let image = busybox(node);
        let (id, pid) = node.run(&image).args(&["sleep", "1000"]).detach();
        kill_process(Pid::from_raw(server::pid(node)).unwrap(), Signal::TERM).unwrap();
        eventually("its process is gone", Duration::from_secs(20), || gone(pid).then_some(()));
        // The server is deleting it by itself.
        eventually("it is deleted", Duration::from_secs(20), || {
            node.ctr(&["task", "delete", "--force", &id]);
            (node.ctr(&["container", "delete", &id]).code == Some(0)).then_some(())
        });
    }

    fn a_native_container_lives_through_a_restart_of_containerd(node) {
        let image = busybox(node);
        let (idle, pid) = node.run(&image).args(&["sleep", "1000"]).detach();
        let (ends, _) = node.run(&image).args(&["sh", "-c", "sleep 1; exit 6"]).detach();
        node.stop();
        std::thread::sleep(Duration::from_secs(2));
        node.start();
        assert_eq!(node.task(&idle), Some((pid, "RUNNING".into())));
        node.wait_until(&ends, "STOPPED");
        assert_eq!(node.delete(&ends), 6);
        node.remove(&idle);
    }

    fn a_killed_servers_native_containers_are_cleaned_up(node) {
        let image = busybox(node);
        let (id, pid) = node.run(&image).args(&["sleep", "1000"]).detach();
        let (other, wasm) = {
            let image = Image::with_files("wasm", &[("/probe.wasm", &Probe::P1.bytes())]);
            node.import(&image);
            node.run(&image).args(&["/probe.wasm", "idle"]).detach()
        };
        kill_process(Pid::from_raw(server::pid(node)).unwrap(), Signal::KILL).unwrap();
        for pid in [pid, wasm] {
            eventually("its process is gone", Duration::from_secs(20), || gone(pid).then_some(()));
        }
        for id in [id, other] {
            eventually("containerd has cleaned up", Duration::from_secs(20), || {
                node.task(&id).is_none_or(|(_, state)| state == "STOPPED" || state == "UNKNOWN").then_some(())
            });
            node.ctr(&["task", "delete", "--force", &id]);
            node.ctr(&["container", "delete", &id]).ok();
        }
    }

    fn a_server_that_is_killed_while_runc_makes_a_container_leaves_nothing(node) {
        let mut spec = shell(node, "sleep 1000");
        let mark = node.folder.join("hook");
        // The spec's hook holds the runtime in the middle of its work.
        spec["hooks"] = json!({"createRuntime": [
            {"path": "/bin/busybox", "args": ["busybox", "sh", "-c", format!("echo > {}; sleep 5", mark.display())]}]});
        let run = Run::of_spec(node, &spec);
        let id = run.id.clone();
        let client = run.spawn();
        eventually("the hook runs", Duration::from_secs(20), || mark.exists().then_some(()));
        let server = server::pid(node);
        let mut runtime = children(server);
        runtime.retain(|pid| *pid != server::launcher(node));
        assert_eq!(runtime.len(), 1, "{runtime:?}");
        kill_process(Pid::from_raw(server).unwrap(), Signal::KILL).unwrap();
        // It does not finish what nobody waits for.
        eventually("the runtime is gone before its hook", Duration::from_secs(2), || {
            gone(runtime[0].unsigned_abs()).then_some(())
        });
        client.wait();
        node.ctr(&["container", "delete", &id]);
    }

    fn a_client_that_gives_up_while_runc_makes_a_container_leaves_nothing(node) {
        let mut spec = shell(node, "sleep 1000");
        let mark = node.folder.join("hook");
        spec["hooks"] = json!({"createRuntime": [
            {"path": "/bin/busybox", "args": ["busybox", "sh", "-c", format!("echo > {}; sleep 60", mark.display())]}]});
        let run = Run::of_spec(node, &spec);
        let id = run.id.clone();
        let mut client = run.spawn();
        eventually("the hook runs", Duration::from_secs(20), || mark.exists().then_some(()));
        client.kill();
        client.wait();
        eventually("the task is gone", Duration::from_secs(30), || {
            node.ctr(&["task", "delete", "--force", &id]);
            node.task(&id).is_none().then_some(())
        });
        node.ctr(&["container", "delete", &id]).ok();
        // The client made its fifos and did not live to remove them.
        let _ = fs::remove_dir_all(node.folder.join("fifo"));
    }

    fn a_native_container_joins_the_network_of_a_wasm_container(node) {
        let wasm = Image::with_files("wasm", &[("/probe.wasm", &Probe::P1.bytes())]);
        node.import(&wasm);
        let image = busybox(node);
        let (guest, pid) = node.run(&wasm).args(&["/probe.wasm", "idle"]).detach();
        let network = format!("network:/proc/{pid}/ns/net");
        let (native, native_pid) = node.run(&image).flag(&["--with-ns", &network]).args(&["sleep", "1000"]).detach();
        let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        assert_eq!(of(native_pid), of(pid));
        assert_ne!(of(pid), of(std::process::id()));
        node.remove(&native);
        node.remove(&guest);
    }
}

fn gone(pid: u32) -> bool {
    // A killed process is a zombie until somebody reaps it, and holds nothing.
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}
