//! What breaks and what goes on: the launcher, containerd, a client, each taken away in the middle.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::command::{eventually, run};
use crate::guests::Probe;
use crate::image_builder::Image;
use crate::server;

fn probe() -> Image {
    Image::with_files("faults", &[("/probe.wasm", &Probe::P1.bytes())])
}

on_every_containerd! {
    fn guests_outlive_their_launcher_and_a_new_one_serves_the_next(node) {
        let image = probe();
        node.import(&image);
        let (old, pid) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        let launcher = server::launcher(node);
        assert_ne!(launcher as u32, pid);
        kill_process(Pid::from_raw(launcher).unwrap(), Signal::KILL).unwrap();
        node.run(&image).args(&["/probe.wasm", "exit", "7"]).finish().expect_code(7);
        assert_ne!(server::launcher(node), launcher);
        assert_eq!(node.task(&old), Some((pid, "RUNNING".into())));
        node.remove(&old);
    }

    fn a_guest_lives_through_a_restart_of_containerd(node) {
        let image = probe();
        node.import(&image);
        let (idle, pid) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        let (ends, _) = node.run(&image).args(&["/probe.wasm", "sleep", "1500"]).detach();
        node.stop();
        std::thread::sleep(Duration::from_secs(2));
        node.start();
        assert_eq!(node.task(&idle), Some((pid, "RUNNING".into())));
        // Its end, in the time without containerd, is not lost.
        node.wait_until(&ends, "STOPPED");
        assert_eq!(node.delete(&ends), 0);
        node.remove(&idle);
    }

    fn a_guest_that_is_killed_from_outside_is_reported(node) {
        let image = probe();
        node.import(&image);
        let (id, pid) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
        node.wait_until(&id, "STOPPED");
        assert_eq!(node.delete(&id), 137);
    }

    fn a_client_that_goes_away_in_the_middle_of_create_leaves_nothing(node) {
        let image = Image::with_files("slow", &[("/slow.wasm", &crate::bad_input::slow_to_compile())]);
        node.import(&image);
        node.configure("idle_timeout = 0\ncompile_timeout = 5");
        let run = node.run(&image);
        let id = run.id.clone();
        let mut client = run.spawn();
        eventually("the compiler runs", Duration::from_secs(20), || {
            (!server::pids_of(node, "compile").is_empty()).then_some(())
        });
        client.kill();
        client.wait();
        eventually("the task is gone", Duration::from_secs(30), || {
            node.ctr(&["task", "delete", "--force", &id]);
            node.task(&id).is_none().then_some(())
        });
        node.ctr(&["container", "delete", &id]).ok();
        // The client made its fifos and did not live to remove them.
        std::fs::remove_dir_all(node.folder.join("fifo")).unwrap();
    }

    fn a_compile_worker_has_a_cgroup_of_its_own_which_goes_with_it_also_when_the_server_is_killed(node) {
        let image = Image::with_files("slow", &[("/slow.wasm", &crate::bad_input::slow_to_compile())]);
        node.import(&image);
        node.configure("idle_timeout = 0\ncompile_timeout = 20");
        let client = node.run(&image).spawn();
        let group = eventually("the compiler runs in its cgroup", Duration::from_secs(20), || {
            let worker = server::pids_of(node, "compile").first().copied()?;
            let groups = std::fs::read_to_string(format!("/proc/{worker}/cgroup")).ok()?;
            let name = groups.lines().find_map(|line| Some(line.split_once("/kubewasi-compile-")?.1.to_owned()))?;
            let roots = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].map(std::path::Path::new);
            roots.map(|root| root.join(format!("kubewasi-compile-{name}"))).into_iter().find(|path| path.exists())
        });
        let files = ["memory.limit_in_bytes", "memory.max"].map(|file| group.join(file));
        let limit = files.iter().find_map(|file| std::fs::read_to_string(file).ok()).unwrap();
        assert_eq!(limit.trim(), (1_u64 << 30).to_string());
        kill_process(Pid::from_raw(server::pid(node)).unwrap(), Signal::KILL).unwrap();
        client.wait();
        eventually("the worker's cgroup is gone", Duration::from_secs(10), || (!group.exists()).then_some(()));
    }

    fn delete_for_an_id_that_never_was_is_fine(node) {
        let bundle = node.folder.join("never");
        std::fs::create_dir(&bundle).unwrap();
        let mut delete = std::process::Command::new(node.shim());
        delete.args(["-namespace", &node.namespace, "-address"]).arg(node.socket())
            .args(["-publish-binary", "/usr/bin/containerd", "-id", "never", "-bundle"]).arg(&bundle)
            .arg("delete").current_dir(&bundle);
        let finished = run(&mut delete).ok();
        assert_eq!(finished.stderr, "");
        assert!(!finished.stdout.is_empty(), "containerd reads a DeleteResponse");
    }

    fn an_idle_server_ends_by_itself(node) {
        node.configure("idle_timeout = 1");
        let image = probe();
        node.import(&image);
        node.run(&image).args(&["/probe.wasm", "exit", "0"]).finish().ok();
        let server = server::pid(node);
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(server::pids_of(node, "serve"), [server]);
        eventually("the idle server has ended", Duration::from_secs(5), || {
            server::pids_of(node, "serve").is_empty().then_some(())
        });
    }
}
