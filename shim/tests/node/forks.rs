//! What fork could break: one process's end is nobody else's, and none is left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::api::{DeleteRequest, KillRequest, StartRequest, WaitRequest};
use rustix::process::{Pid, Signal, kill_process};

use crate::command::eventually;
use crate::container::{Run, root_folder, spec};
use crate::containerd::Node;
use crate::guests::Probe;
use crate::image_builder::Image;
use crate::machine;
use crate::sandbox::{idle, status};
use crate::server;
use crate::task_api::{connect, context, create, end_server, probe_bundle};

fn probe(node: &Node) -> Image {
    let image = Image::with_files("forks", &[("/probe.wasm", &Probe::P1.bytes())]);
    node.import(&image);
    image
}

fn send(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// The zombies whose parent is `parent`.
fn zombies(parent: i32) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let stats = processes.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    stats
        .filter(|stat| {
            let fields = stat.rsplit_once(") ").unwrap().1;
            fields.starts_with(&format!("Z {parent} "))
        })
        .collect()
}

/// The folder of the cgroup `path` where `controller` is.
pub fn cgroup(controller: &str, path: &str) -> PathBuf {
    let path = path.trim_start_matches('/');
    let first = Path::new("/sys/fs/cgroup").join(controller);
    if first.exists() {
        first.join(path)
    } else {
        Path::new("/sys/fs/cgroup").join(path)
    }
}

/// Freezes the cgroup `path` or lets it go on.
fn freeze(path: &str, frozen: bool) {
    let folder = cgroup("freezer", path);
    let (file, word) = match (folder.join("freezer.state").exists(), frozen) {
        (true, true) => ("freezer.state", "FROZEN"),
        (true, false) => ("freezer.state", "THAWED"),
        (false, true) => ("cgroup.freeze", "1"),
        (false, false) => ("cgroup.freeze", "0"),
    };
    fs::write(folder.join(file), word).unwrap();
}

/// How many launchers the server has started; not answering in time costs one its life.
fn launchers(node: &Node) -> u64 {
    server::count(&server::status(node), "launchers")
}

on_newest_containerd! {
    fn a_guest_that_is_aborted_from_outside_takes_nobody_along(node) {
        let image = probe(node);
        let (sibling, sibling_pid) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        let launcher = server::launcher(node);
        for (signal, code) in [(Signal::ABORT, 134), (Signal::SEGV, 139), (Signal::BUS, 135), (Signal::ILL, 132)] {
            // Beside the host's processes: the kernel keeps such signals from the first process of a pid namespace.
            let (id, pid) = idle(node, |spec| {
                spec["linux"]["cgroupsPath"] = format!("/{}/aborted", node.namespace).into();
                spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
            });
            eventually(&format!("{signal:?} ends the guest"), Duration::from_secs(10), || {
                let (_, state) = node.task(&id)?;
                // wasmtime's handler takes the first for a trap's and puts the default action back.
                let _ = kill_process(Pid::from_raw(pid as i32).unwrap(), signal);
                (state == "STOPPED").then_some(())
            });
            assert_eq!(node.delete(&id), code, "{signal:?}");
            assert_eq!(node.task(&sibling), Some((sibling_pid, "RUNNING".into())), "{signal:?}");
        }
        node.run(&image).args(&["/probe.wasm", "exit", "7"]).finish().expect_code(7);
        assert_eq!((server::launcher(node), launchers(node)), (launcher, 1));
        node.remove(&sibling);
    }

    fn a_guest_is_the_servers_child_in_a_session_of_its_own(node) {
        let image = probe(node);
        let guests: Vec<_> = (0..3).map(|_| node.run(&image).args(&["/probe.wasm", "idle"]).detach()).collect();
        let launcher = server::launcher(node);
        for (_, pid) in &guests {
            let field = |pid: i32, index: usize| {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
                stat.rsplit_once(") ").unwrap().1.split(' ').nth(index).unwrap().to_owned()
            };
            // Parent, process group, session: proc(5).
            assert_eq!(field(*pid as i32, 1), server::pid(node).to_string(), "the server reaps it");
            for index in [2, 3] {
                assert_ne!(field(*pid as i32, index), field(launcher, index));
                assert_eq!(field(*pid as i32, index), pid.to_string(), "a group and a session of its own");
            }
        }
        for (id, _) in guests {
            node.remove(&id);
        }
    }

    fn signals_end_the_first_process_of_a_pid_namespace_before_its_start_and_after(node) {
        let signals = [(Signal::TERM, 143), (Signal::HUP, 129), (Signal::INT, 130), (Signal::QUIT, 131),
                       (Signal::USR1, 138)];
        let bundle = |id: &str, command| {
            let bundle = probe_bundle(node, id, &[command]);
            let config = bundle.join("config.json");
            let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
            spec["linux"]["cgroupsPath"] = format!("/{}/{id}", node.namespace).into();
            fs::write(config, spec.to_string()).unwrap();
            bundle
        };
        let keeps = bundle("keeps", "idle");
        let client = connect(node, &node.namespace, "keeps", &keeps);
        client.create(context(node), &create("keeps", &keeps)).unwrap();
        for (signal, code) in signals {
            for (started, command) in [(false, "idle"), (true, "idle"), (true, "spin")] {
                let id = format!("{command}-{started}-{code}");
                let bundle = bundle(&id, command);
                let pid = client.create(context(node), &create(&id, &bundle)).unwrap().pid;
                let inner = status(pid, "NSpid");
                assert!(inner.ends_with(" 1"), "{inner}");
                if started {
                    client.start(context(node), &StartRequest { id: id.clone(), ..Default::default() }).unwrap();
                }
                let signal = signal.as_raw() as u32;
                client.kill(context(node), &KillRequest { id: id.clone(), signal, ..Default::default() }).unwrap();
                let wait = client.wait(context(node), &WaitRequest { id: id.clone(), ..Default::default() }).unwrap();
                assert_eq!(wait.exit_status, code, "{id}");
                client.delete(context(node), &DeleteRequest { id, ..Default::default() }).unwrap();
            }
        }
        end_server(node);
    }

    fn a_launcher_that_is_killed_costs_no_container_and_leaves_no_zombie(node) {
        let image = probe(node);
        let (old, pid) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        let server = server::pid(node);
        for _ in 0..3 {
            // What a dead one had begun ends by itself, a moment later.
            let launcher = eventually("one launcher", Duration::from_secs(10), || {
                let mut forked = server::pids_of(node, "launch");
                forked.retain(|one| *one != pid as i32);
                (forked.len() == 1).then(|| forked[0])
            });
            let runs: Vec<_> = (0..6).map(|_| node.run(&image).args(&["/probe.wasm", "exit", "7"]).spawn()).collect();
            std::thread::sleep(Duration::from_millis(60));
            send(launcher, Signal::KILL);
            for run in runs {
                run.wait().expect_code(7);
            }
            node.run(&image).args(&["/probe.wasm", "exit", "7"]).finish().expect_code(7);
        }
        assert_eq!(node.task(&old), Some((pid, "RUNNING".into())));
        let mut left = Vec::new();
        for _ in 0..100 {
            left = zombies(server);
            if left.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(left.is_empty(), "zombies after ten seconds: {left:?}");
        assert_eq!(launchers(node), 4);
        node.remove(&old);
    }

    fn a_launcher_is_renewed_after_its_forks_and_its_guests_live_on(node) {
        node.configure("idle_timeout = 0\nlauncher_max_forks = 3");
        let image = probe(node);
        let guests: Vec<_> = (0..3).map(|_| node.run(&image).args(&["/probe.wasm", "idle"]).detach()).collect();
        let first = server::launcher(node);
        assert_eq!(launchers(node), 1);
        node.run(&image).args(&["/probe.wasm", "exit", "7"]).finish().expect_code(7);
        assert_eq!(launchers(node), 2);
        eventually("the first launcher has ended", Duration::from_secs(10), || {
            (!Path::new("/proc").join(first.to_string()).exists()).then_some(())
        });
        for (id, pid) in &guests {
            assert_eq!(node.task(id), Some((*pid, "RUNNING".into())));
        }
        for (id, _) in &guests {
            node.remove(id);
        }
    }

    fn a_launcher_is_renewed_after_its_time(node) {
        node.configure("idle_timeout = 0\nlauncher_max_age = 1");
        let image = probe(node);
        let (idle, pid) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        std::thread::sleep(Duration::from_millis(1100));
        let before = launchers(node);
        node.run(&image).args(&["/probe.wasm", "exit", "7"]).finish().expect_code(7);
        assert!(launchers(node) > before, "{before} launchers were started, and no more");
        assert_eq!(node.task(&idle), Some((pid, "RUNNING".into())));
        node.remove(&idle);
    }

    fn a_server_that_is_told_to_end_ends_all_it_has_without_containerds_help(node) {
        let image = probe(node);
        let guests: Vec<_> = ["idle", "spin", "spin"].map(|command| {
            node.run(&image).args(&["/probe.wasm", command]).detach()
        }).into();
        let server = server::pid(node);
        node.stop();
        send(server, Signal::TERM);
        eventually("no process is left", Duration::from_secs(20), || {
            machine::shim_processes(&node.namespace).is_empty().then_some(())
        });
        node.start();
        for (id, _) in guests {
            assert!(node.task(&id).is_none_or(|(_, state)| state != "RUNNING"));
            node.ctr(&["task", "delete", &id]);
            node.ctr(&["container", "delete", &id]).ok();
        }
    }

    fn a_container_whose_cgroup_stands_still_does_not_hold_up_another(node) {
        let image = probe(node);
        node.run(&image).args(&["/probe.wasm", "exit", "0"]).finish().ok();
        let pod = format!("/{}/pod", node.namespace);
        fs::create_dir_all(cgroup("freezer", &pod)).unwrap();
        freeze(&pod, true);
        let (kept, _) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        let root = root_folder(node, &[("probe.wasm", &Probe::P1.bytes())]);
        let mut spec = spec(node, &root, &["/probe.wasm", "exit", "3"]);
        spec["linux"]["cgroupsPath"] = format!("{pod}/c").into();
        let frozen = Run::of_spec(node, &spec);
        let id = frozen.id.clone();
        let frozen = frozen.spawn();
        eventually("the process is in the frozen cgroup", Duration::from_secs(20), || {
            let members = fs::read_to_string(cgroup("freezer", &pod).join("c/cgroup.procs")).ok()?;
            (!members.is_empty()).then_some(())
        });
        // Three, one after the other: each needs the launcher.
        for _ in 0..3 {
            node.run(&image).args(&["/probe.wasm", "exit", "7"]).finish().expect_code(7);
        }
        let running = node.task(&id).is_some_and(|(_, state)| state == "RUNNING");
        let count = launchers(node);
        freeze(&pod, false);
        frozen.wait().expect_code(3);
        assert!(!running, "the frozen container was to be on its way still");
        assert_eq!(count, 1, "a launcher that gives no answer is replaced");
        node.remove(&kept);
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            // Most have it, made as the container's parent.
            let _ = fs::remove_dir(hierarchy.path().join(pod.trim_start_matches('/')));
        }
    }
}
