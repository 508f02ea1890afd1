//! What a node goes through and containers survive: containerd killed, disks full, no more processes, no one for events.

use std::fs::{self, File};
use std::io::Read;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{DeleteRequest, StartRequest, WaitRequest};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::command::{Running, eventually};
use crate::container::{Run, root_folder, spec};
use crate::containerd::{Node, shim_under_test};
use crate::control::Events;
use crate::forks::cgroup;
use crate::guests::Probe;
use crate::image_builder::Image;
use crate::server;
use crate::task_api::{connect_by, context, create, end_server, probe_bundle, start_command};

fn probe(node: &Node) -> Image {
    let image = Image::with_files("outages", &[("/probe.wasm", &Probe::P1.bytes())]);
    node.import(&image);
    image
}

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

/// The next `count` numbered lines of `log`, of which `from` have been read.
#[track_caller]
fn expect_lines(log: &mut File, from: usize, count: usize) {
    let mut text = vec![0; count * 16];
    log.read_exact(&mut text).unwrap();
    for (index, line) in text.chunks(16).enumerate() {
        assert_eq!(String::from_utf8_lossy(line), format!("{:015}\n", from + index));
    }
}

/// Fills the disk at `folder` but for `free` bytes, and returns the file that does it.
fn fill(folder: &Path, free: u64) -> PathBuf {
    let path = folder.join(".full");
    let disk = rustix::fs::statvfs(folder).unwrap();
    let room = disk.f_bavail * disk.f_frsize;
    fallocate(File::create(&path).unwrap(), FallocateFlags::empty(), 0, room - free).unwrap();
    path
}

on_every_containerd! {
    fn a_log_is_whole_when_its_reader_goes_away_and_containerd_is_killed(node) {
        const LINES: usize = 65536;
        let image = probe(node);
        // More than a pipe holds: the guest waits for whoever reads.
        let (id, _, fifo) = node.run(&image).args(&["/probe.wasm", "lines", &LINES.to_string()]).detach_with_fifo();
        let mut log = File::open(&fifo).unwrap();
        expect_lines(&mut log, 0, 5000);
        drop(log);
        sleep(Duration::from_millis(300));
        let mut log = File::open(&fifo).unwrap();
        expect_lines(&mut log, 5000, 5000);
        node.kill();
        expect_lines(&mut log, 10_000, 5000);
        node.start();
        for part in 15..64 {
            sleep(Duration::from_millis(5));
            expect_lines(&mut log, part * 1000, 1000);
        }
        expect_lines(&mut log, 64_000, LINES - 64_000);
        assert_eq!(log.read(&mut [0; 16]).unwrap(), 0, "the log ends with the guest");
        node.wait_until(&id, "STOPPED");
        assert_eq!(node.delete(&id), 0);
        fs::remove_file(fifo).unwrap();
    }

    fn exits_before_and_during_containerds_absence_are_told_after_it(node) {
        let image = probe(node);
        let (before, _) = node.run(&image).args(&["/probe.wasm", "exit", "3"]).detach();
        let (during, _) = node.run(&image).args(&["/probe.wasm", "sleep", "1000"]).detach();
        let (after, pid) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        node.wait_until(&before, "STOPPED");
        node.kill();
        sleep(Duration::from_millis(1500));
        node.start();
        node.wait_until(&before, "STOPPED");
        node.wait_until(&during, "STOPPED");
        assert_eq!((node.delete(&before), node.delete(&during)), (3, 0));
        assert_eq!(node.task(&after), Some((pid, "RUNNING".into())));
        node.remove(&after);
    }

    fn a_containerd_that_is_killed_in_the_middle_of_create_leaves_nothing(node) {
        let image = Image::with_files("slow", &[("/slow.wasm", &crate::bad_input::slow_to_compile())]);
        node.import(&image);
        node.configure("idle_timeout = 0\ncompile_timeout = 5");
        let run = node.run(&image);
        let id = run.id.clone();
        let client = run.spawn();
        eventually("the compiler runs", Duration::from_secs(20), || {
            (!server::pids_of(node, "compile").is_empty()).then_some(())
        });
        node.kill();
        client.wait();
        node.start();
        eventually("the task is gone", Duration::from_secs(30), || {
            node.ctr(&["task", "delete", "--force", &id]);
            node.task(&id).is_none().then_some(())
        });
        node.ctr(&["container", "delete", &id]).ok();
        fs::remove_dir_all(node.folder.join("fifo")).unwrap();
    }

    fn a_containerd_that_is_killed_in_the_middle_of_delete_leaves_nothing(node) {
        let image = probe(node);
        for delay in [0, 4, 12, 25] {
            let (id, _) = node.run(&image).args(&["/probe.wasm", "exit", "3"]).detach();
            node.wait_until(&id, "STOPPED");
            let client = Running::start(&mut node.ctr_command(&["task", "delete", &id]));
            sleep(Duration::from_millis(delay));
            node.kill();
            client.wait();
            node.start();
            node.ctr(&["task", "delete", "--force", &id]);
            assert_eq!(node.task(&id), None, "killed after {delay} ms");
            node.ctr(&["container", "delete", &id]).ok();
        }
    }

    fn when_the_server_is_killed_its_containers_are_reported_dead_and_the_next_one_starts_a_new_server(node) {
        let image = probe(node);
        let events = Events::listen(node);
        let (id, pid) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        let old = server::pid(node);
        kill(old);
        assert_eq!(events.until("delete"), ["create", "start", "exit", "delete"]);
        eventually("the guest is gone", Duration::from_secs(10), || {
            (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
        });
        let (next, _) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        assert_ne!(server::pid(node), old);
        node.ctr(&["task", "delete", "--force", &id]);
        node.ctr(&["container", "delete", &id]).ok();
        node.remove(&next);
    }

    fn containers_outlive_the_replacement_of_the_shims_binary_and_new_ones_get_a_server_of_it(node) {
        let image = probe(node);
        let (old, pid) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        let server = server::pid(node);
        let upgrade = node.folder.join("bin/upgrade");
        fs::copy(shim_under_test(), &upgrade).unwrap();
        fs::rename(&upgrade, node.shim()).unwrap();
        let (new, _) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        let servers = server::pids_of(node, "serve");
        assert!(servers.len() == 2 && servers.contains(&server), "{servers:?}, not {server} and another");
        node.stop();
        node.start();
        assert_eq!(node.task(&old), Some((pid, "RUNNING".into())));
        node.remove(&old);
        eventually("the old server has ended", Duration::from_secs(10), || {
            (!server::pids_of(node, "serve").contains(&server)).then_some(())
        });
        node.run(&image).args(&["/probe.wasm", "exit", "7"]).finish().expect_code(7);
        node.remove(&new);
    }

    fn a_full_disk_under_the_bundles_fails_what_is_created_then_and_no_other(node) {
        let image = probe(node);
        node.stop();
        let state = node.folder.join("state");
        mount("kubewasi-full", &state, "tmpfs", MountFlags::empty(), Some(c"size=8m")).unwrap();
        node.start();
        node.run(&image).args(&["/probe.wasm", "exit", "0"]).finish().ok();
        let (idle, pid) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        let mut failed = 0;
        // Each time another file is the one that has no room.
        for free in [0, 4, 8, 12, 16, 20, 24, 28, 32] {
            let full = fill(&state, free * 1024);
            let run = node.run(&image).args(&["/probe.wasm", "exit", "7"]);
            let id = run.id.clone();
            let finished = run.spawn().wait();
            fs::remove_file(full).unwrap();
            if finished.code != Some(7) {
                finished.expect_refusal(&["space left on device"]);
                failed += 1;
                node.ctr(&["task", "delete", "--force", &id]);
                node.ctr(&["container", "delete", &id]);
            }
        }
        assert!(failed > 0, "the disk was to be full");
        assert_eq!(node.task(&idle), Some((pid, "RUNNING".into())));
        node.remove(&idle);
        node.run(&image).args(&["/probe.wasm", "exit", "7"]).finish().expect_code(7);
        // A container whose start could not write its address is waited for.
        eventually("the server has ended", Duration::from_secs(45), || {
            server::pids_of(node, "serve").is_empty().then_some(())
        });
        node.stop();
        unmount(&state, UnmountFlags::DETACH).unwrap();
        node.start();
    }

    fn a_server_without_processes_left_fails_what_is_created_then_and_lives_on(node) {
        let image = probe(node);
        let (idle, pid) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        let server = server::pid(node);
        let spent = cgroup("pids", &format!("{}/spent", node.namespace));
        for folder in [spent.parent().unwrap(), &spent] {
            fs::create_dir_all(folder).unwrap();
            // The unified hierarchy hands controllers down by name; of v1's there is no such file.
            let control = folder.parent().unwrap().join("cgroup.subtree_control");
            if control.exists() {
                fs::write(control, "+pids").unwrap();
            }
        }
        let enter = |folder: &Path, pid: i32| fs::write(folder.join("cgroup.procs"), pid.to_string()).unwrap();
        for pid in [server, server::launcher(node)] {
            enter(&spent, pid);
        }
        fs::write(spent.join("pids.max"), "1").unwrap();
        node.run(&image).args(&["/probe.wasm", "exit", "7"]).fail().expect_refusal(&["Resource temporarily unavailable"]);
        fs::write(spent.join("pids.max"), "max").unwrap();
        node.run(&image).args(&["/probe.wasm", "exit", "7"]).finish().expect_code(7);
        assert_eq!(server::pid(node), server);
        assert_eq!(node.task(&idle), Some((pid, "RUNNING".into())));
        for member in fs::read_to_string(spent.join("cgroup.procs")).unwrap().lines() {
            enter(&cgroup("pids", ""), member.parse().unwrap());
        }
        fs::remove_dir(&spent).unwrap();
        node.remove(&idle);
    }

    fn a_container_may_have_a_single_process(node) {
        let root = root_folder(node, &[("probe.wasm", &Probe::P2.bytes())]);
        let mut spec = spec(node, &root, &["/probe.wasm", "exit-with-code", "7"]);
        spec["linux"]["resources"]["pids"] = serde_json::json!({"limit": 1});
        Run::of_spec(node, &spec).finish().expect_code(7);
    }

    fn a_guest_that_floods_its_log_waits_for_its_reader_and_can_be_killed(node) {
        let image = probe(node);
        let (id, _, fifo) = node.run(&image).args(&["/probe.wasm", "lines", "4000000000"]).detach_with_fifo();
        let mut log = File::open(&fifo).unwrap();
        expect_lines(&mut log, 0, 100_000);
        let since = Instant::now();
        node.ctr(&["task", "kill", "--signal", "SIGKILL", &id]).ok();
        node.wait_until(&id, "STOPPED");
        assert_eq!(node.delete(&id), 137);
        assert!(since.elapsed() < Duration::from_secs(5), "its end took {:?}", since.elapsed());
        fs::remove_file(fifo).unwrap();
    }

    fn a_guest_that_ignores_its_input_ends_all_the_same(node) {
        let image = probe(node);
        // More than a pipe holds.
        node.run(&image).args(&["/probe.wasm", "sleep", "300"]).stdin(&[b'x'; 120_000]).finish().ok();
    }

    fn a_cgroup_that_somebody_made_in_a_containers_goes_with_it(node) {
        let image = probe(node);
        let (id, _) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        let foreign = cgroup("pids", &format!("{}/{id}/foreign/deep", node.namespace));
        fs::create_dir_all(&foreign).unwrap();
        let mut member = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        fs::write(foreign.join("cgroup.procs"), member.id().to_string()).unwrap();
        node.remove(&id);
        assert!(!member.wait().unwrap().success());
    }

    fn a_start_whose_containerd_is_gone_starts_no_server(node) {
        let bundle = probe_bundle(node, "orphan", &["idle"]);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut start = start_command(node, &node.namespace, "orphan", &bundle);
        let status = start.stdin(Stdio::null()).stdout(writer).stderr(Stdio::null()).status().unwrap();
        assert!(!status.success());
        assert!(server::pids_of(node, "serve").is_empty());
    }

    fn a_server_that_was_killed_without_a_container_is_buried_by_the_next_one(node) {
        let image = probe(node);
        node.configure("idle_timeout = 60");
        node.run(&image).args(&["/probe.wasm", "exit", "7"]).finish().expect_code(7);
        kill(server::pid(node));
        // Another server: it has other options, and so another folder.
        node.configure("idle_timeout = 0");
        let folders = || server::folders(node).len();
        assert_eq!(folders(), 1);
        let (idle, _) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        eventually("only the living server has a folder", Duration::from_secs(10), || (folders() == 1).then_some(()));
        node.remove(&idle);
    }
}

on_newest_containerd! {
    fn who_only_looks_whether_a_server_listens_is_not_answered_and_is_no_warning(node) {
        let image = probe(node);
        let (idle, _) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        let [folder] = &server::folders(node)[..] else { panic!("there had to be one server") };
        let mut looks = UnixStream::connect(folder.join("control.sock")).unwrap();
        looks.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        looks.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "");
        node.remove(&idle);
        assert!(!node.log().contains("control request"), "{}", node.log());
    }

    fn events_wait_for_an_endpoint_that_is_down_longer_than_any_patience(node) {
        let events = Events::listen(node);
        let late = node.folder.join("late.sock");
        let connect = |id: &str, bundle: &Path| {
            let mut start = start_command(node, &node.namespace, id, bundle);
            connect_by(start.env("TTRPC_ADDRESS", &late))
        };
        // It keeps the server.
        let bundle = probe_bundle(node, "keeper", &["idle"]);
        let client = connect("keeper", &bundle);
        client.create(context(node), &create("keeper", &bundle)).unwrap();
        let bundle = probe_bundle(node, "early", &["exit", "7"]);
        let config = bundle.join("config.json");
        let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        spec["linux"]["cgroupsPath"] = format!("/{}/early", node.namespace).into();
        fs::write(config, spec.to_string()).unwrap();
        client.create(context(node), &create("early", &bundle)).unwrap();
        let id = || "early".to_owned();
        client.start(context(node), &StartRequest { id: id(), ..Default::default() }).unwrap();
        let wait = client.wait(context(node), &WaitRequest { id: id(), ..Default::default() }).unwrap();
        assert_eq!(wait.exit_status, 7);
        client.delete(context(node), &DeleteRequest { id: id(), ..Default::default() }).unwrap();
        // Three answers of five seconds each, and the longest pause.
        sleep(Duration::from_secs(20));
        fs::hard_link(node.socket().with_extension("sock.ttrpc"), &late).unwrap();
        assert_eq!(events.until("delete"), ["create", "create", "start", "exit", "delete"]);
        assert_eq!(server::count(&server::status(node), "events_dropped"), 0);
        fs::remove_file(late).unwrap();
        end_server(node);
    }
}
