//! Processes exec'd into a container that runs: wasm and native, confined as the container is, gone with it.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::command::{Finished, Running, eventually, run};
use crate::containerd::Node;
use crate::guests::Probe;
use crate::image_builder::Image;
use crate::sandbox::status;

/// A `ctr task exec` of `args` in the container `id`, with more `flags`.
pub fn exec_command(node: &Node, id: &str, flags: &[&str], args: &[&str]) -> Command {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let exec_id = format!("exec{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let mut command = node.ctr_command(&["task", "exec", "--exec-id", &exec_id]);
    command.arg("--fifo-dir").arg(node.folder.join("fifo"));
    command.args(flags).arg(id).args(args);
    command
}

#[track_caller]
pub fn exec(node: &Node, id: &str, args: &[&str]) -> Finished {
    run(&mut exec_command(node, id, &[], args))
}

/// An image with a probe of each world, and with a native shell.
pub fn image() -> Image {
    let shell = fs::read("/bin/busybox").unwrap();
    Image::with_files(
        "exec",
        &[
            ("/probe.wasm", &Probe::P1.bytes()),
            ("/bin/probe2.wasm", &Probe::P2.bytes()),
            ("/bin/probe3.wasm", &Probe::P3.bytes()),
            ("/bin/sh", &shell),
            ("/text", b"no program"),
        ],
    )
}

/// An idle guest of [`image`]; its id and pid.
pub fn idle(node: &Node) -> (String, u32) {
    let image = image();
    node.import(&image);
    node.run(&image).args(&["/probe.wasm", "idle"]).detach()
}

/// Starts an exec that goes on, and returns it with its pid: the one in the container's cgroup that was not there.
pub fn running(node: &Node, id: &str, args: &[&str]) -> (Running, u32) {
    let before = pids(node, id);
    let exec = Running::start(&mut exec_command(node, id, &[], args));
    let pid = eventually("the exec runs", Duration::from_secs(10), || {
        pids(node, id).into_iter().find(|pid| !before.contains(pid))
    });
    (exec, pid)
}

/// The pids that the shim lists for a task.
fn pids(node: &Node, id: &str) -> Vec<u32> {
    let listed = node.ctr(&["task", "ps", id]).ok().stdout;
    listed
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect()
}

on_every_containerd! {
    fn wasm_of_every_world_runs_beside_a_guest(node) {
        let (id, _) = idle(node);
        for program in ["/probe.wasm", "probe2.wasm", "/bin/probe3.wasm"] {
            let said = exec(node, &id, &[program, "say", "out", "err"]).ok();
            assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("out\n", "err\n"), "{program}");
            exec(node, &id, &[program, "exit", "1"]).expect_code(1);
            assert_eq!(exec(node, &id, &[program, "args", "a b"]).ok().stdout, format!("{program}\nargs\na b\n"));
        }
        exec(node, &id, &["/probe.wasm", "trap"]).expect_code(134).expect_error(&["wasm trap"]);
        node.remove(&id);
    }

    fn a_native_shell_runs_beside_a_guest(node) {
        let (id, _) = idle(node);
        let said = exec(node, &id, &["sh", "-c", "echo out; echo err >&2; exit 7"]).expect_code(7);
        assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("out\n", "err\n"));
        let said = exec(node, &id, &["sh", "-c", "sh -c 'kill -TERM $$'; echo $?"]).ok();
        assert_eq!(said.stdout, "143\n");
        node.remove(&id);
    }

    fn input_reaches_an_exec_and_its_end_too(node) {
        let (id, _) = idle(node);
        for args in [&["/probe.wasm", "cat"][..], &["probe2.wasm", "cat"], &["sh", "-c", "exec sh -c 'while read l; do echo $l; done'"]] {
            let (mut exec, _) = running(node, &id, args);
            exec.feed(b"one\ntwo\n");
            assert_eq!(exec.wait().ok().stdout, "one\ntwo\n", "{args:?}");
        }
        node.remove(&id);
    }

    fn what_cannot_be_executed_is_told_with_what_can(node) {
        let (id, _) = idle(node);
        exec(node, &id, &["missing", "x"]).expect_refusal(&["\"missing\"", "cannot be executed", "/probe.wasm"]);
        exec(node, &id, &["/text"]).expect_refusal(&["/text", "cannot be executed", "no program"]);
        exec(node, &id, &["/bin"]).expect_refusal(&["/bin", "directory"]);
        exec(node, &id, &["/probe.wasm", "say", "still there"]).ok();
        node.remove(&id);
    }

    fn twenty_execs_run_at_once(node) {
        let (id, _) = idle(node);
        let execs: Vec<_> = (0..20).map(|index| {
            let args = match index % 2 {
                0 => vec!["/probe.wasm".to_owned(), "say".to_owned(), index.to_string()],
                _ => vec!["sh".to_owned(), "-c".to_owned(), format!("echo {index}")],
            };
            let args: Vec<_> = args.iter().map(String::as_str).collect();
            Running::start(&mut exec_command(node, &id, &[], &args))
        }).collect();
        for (index, exec) in execs.into_iter().enumerate() {
            assert_eq!(exec.wait().ok().stdout, format!("{index}\n"));
        }
        node.remove(&id);
    }

    fn an_exec_ends_with_its_container(node) {
        let (id, _) = idle(node);
        let (wasm, _) = running(node, &id, &["/probe.wasm", "idle"]);
        let (native, _) = running(node, &id, &["sh", "-c", "sleep 1000 & sleep 1000"]);
        node.ctr(&["task", "kill", "--signal", "SIGKILL", &id]).ok();
        wasm.wait().expect_code(137);
        native.wait().expect_code(137);
        node.wait_until(&id, "STOPPED");
        assert_eq!(node.delete(&id), 137);
    }
}

on_newest_containerd! {
    fn an_exec_is_where_its_guest_is(node) {
        let (id, pid) = idle(node);
        for args in [&["/probe.wasm", "idle"][..], &["sh", "-c", "sleep 1000"]] {
            let (exec, beside) = running(node, &id, args);
            eventually("it is confined", Duration::from_secs(5), || (status(beside, "CapPrm") == status(pid, "CapPrm")).then_some(()));
            for kind in ["pid", "net", "ipc", "uts", "cgroup"] {
                let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
                assert_eq!(of(beside), of(pid), "{kind} {args:?}");
            }
            let cgroup = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
            assert_eq!(cgroup(beside), cgroup(pid));
            for name in ["Uid", "Gid", "Groups", "CapBnd", "CapEff", "NoNewPrivs"] {
                assert_eq!(status(beside, name), status(pid, name), "{name} {args:?}");
            }
            node.ctr(&["task", "ps", &id]).ok();
            rustix::process::kill_process(
                rustix::process::Pid::from_raw(beside as i32).unwrap(), rustix::process::Signal::KILL).unwrap();
            exec.wait().expect_code(137);
        }
        node.remove(&id);
    }
}
