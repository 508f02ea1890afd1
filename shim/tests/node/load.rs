//! Many at once: one server, one launcher, every exit code right, nothing left.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use crate::containerd::Node;
use crate::guests::Probe;
use crate::image_builder::Image;
use crate::server;

const CONTAINERS: usize = 200;
const CLIENTS: usize = 20;

/// Calls `work` with 0 to 199, by twenty threads.
fn by_clients(work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= CONTAINERS {
                        break;
                    }
                    work(index);
                }
            });
        }
    });
}

fn image(node: &Node) -> Image {
    let image = Image::with_files("load", &[("/probe.wasm", &Probe::P1.bytes())]);
    node.import(&image);
    image
}

on_every_containerd! {
    alone
    fn two_hundred_containers_by_twenty_clients_need_one_server(node) {
        node.configure("idle_timeout = 2");
        let image = image(node);
        node.run(&image).args(&["/probe.wasm", "exit", "0"]).finish().ok();
        let (first, launchers) = (server::pid(node), server::pids_of(node, "launch"));
        let all = || by_clients(|index| {
            let code = index % 100;
            node.run(&image).args(&["/probe.wasm", "exit", &code.to_string()]).finish().expect_code(code as i32);
        });
        // Connections for events are made when there are some.
        all();
        let files = server::open_files(first);
        all();
        assert_eq!(server::pid(node), first);
        assert_eq!(server::pids_of(node, "launch"), launchers);
        assert_eq!(server::open_files(first), files, "file descriptors of the server, before and after");
    }

    fn when_the_server_of_two_hundred_is_killed_all_are_reported_dead_and_nothing_is_left(node) {
        let image = image(node);
        let ids = Mutex::new(Vec::new());
        by_clients(|_| {
            let (id, _) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
            ids.lock().unwrap().push(id);
        });
        kill_process(Pid::from_raw(server::pid(node)).unwrap(), Signal::KILL).unwrap();
        // containerd gives each `delete` five seconds and runs them side by side.
        crate::command::eventually("no task is left running", std::time::Duration::from_secs(30), || {
            let list = node.ctr(&["task", "ls"]).ok().stdout;
            (!list.contains("RUNNING")).then_some(())
        });
        let log = node.log();
        for trouble in ["context deadline exceeded", "failed to clean up after shim"] {
            let lines: Vec<_> = log.lines().filter(|line| line.contains(trouble)).collect();
            assert!(lines.is_empty(), "{} lines like: {}", lines.len(), lines[0]);
        }
        by_clients(|index| {
            let id = &ids.lock().unwrap()[index].clone();
            node.ctr(&["task", "delete", id]);
            node.ctr(&["container", "delete", id]).ok();
        });
    }
}
