//! Processes exec'd into a container that runs: wasm and native, confined as the container is, gone with it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use containerd_shim_protos::api::{
    DeleteRequest, ExecProcessRequest, KillRequest, PidsRequest, ResizePtyRequest, StartRequest, StateRequest, Status,
    WaitRequest,
};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::ttrpc::Code;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::command::{Finished, Running, eventually, run};
use crate::container::{Run, root_folder, spec};
use crate::containerd::Node;
use crate::guests::Probe;
use crate::image_builder::Image;
use crate::sandbox::status;
use crate::server;
use crate::task_api::{connect, context, create, end_server, probe_bundle, refusal};

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

/// Starts an exec that goes on, and returns it with its pid once it is listed by its id.
pub fn running(node: &Node, id: &str, args: &[&str]) -> (Running, u32) {
    let mut command = exec_command(node, id, &[], args);
    let exec_id = exec_id(&command);
    let exec = Running::start(&mut command);
    let pid = eventually("the exec runs", Duration::from_secs(20), || pid_of(node, id, &exec_id));
    (exec, pid)
}

/// The id that [`exec_command`] gave a process.
pub fn exec_id(command: &Command) -> String {
    let mut words = command.get_args().skip_while(|word| *word != "--exec-id");
    words.nth(1).unwrap().to_str().unwrap().to_owned()
}

/// The pid of an exec that has been started.
pub fn pid_of(node: &Node, id: &str, exec_id: &str) -> Option<u32> {
    let listed = node.ctr(&["task", "ps", id]).ok().stdout;
    // As `ctr` 1.7 and later print it, and as 1.6 does.
    let named = [format!("exec_id:\"{exec_id}\""), format!("ExecID:{exec_id},")];
    let mut lines = listed
        .lines()
        .filter(|line| named.iter().any(|name| line.contains(name)));
    lines.next()?.split_whitespace().next()?.parse().ok()
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

/// The Process of an Exec request.
pub fn process(args: &[&str]) -> Any {
    let process = json!({"user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/"});
    Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
        value: serde_json::to_vec(&process).unwrap(),
        ..Any::default()
    }
}

/// The probe's image as a spec with a shell in it and the `capabilities` for root, or for a user without any.
fn guarded(node: &Node, uid: u32, capabilities: &[&str]) -> (String, u32) {
    let shell = fs::read("/bin/busybox").unwrap();
    let root = root_folder(
        node,
        &[
            ("probe.wasm", &Probe::P1.bytes()),
            ("bin/sh", &shell),
            ("proc/keep", b""),
            ("dev/null", b""),
        ],
    );
    let mut mode = fs::metadata(root.join("bin/sh")).unwrap().permissions();
    mode.set_mode(0o755);
    fs::set_permissions(root.join("bin/sh"), mode).unwrap();
    let mut spec = spec(node, &root, &["/probe.wasm", "idle"]);
    // Its own /dev has what a shell opens for a process in the background.
    spec["mounts"] = json!([]);
    spec["process"]["user"] = json!({"uid": uid, "gid": uid});
    let extra = spec["process"]["capabilities"]["bounding"].as_array_mut().unwrap();
    extra.extend(capabilities.iter().map(|name| json!(name)));
    let all = if uid == 0 { json!(extra) } else { json!([]) };
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = all.clone();
    }
    Run::of_spec(node, &spec).detach()
}

on_newest_containerd! {
    fn a_native_exec_does_not_reach_into_the_guests_memory(node) {
        for (uid, capabilities) in [(0, &[][..]), (0, &["CAP_SYS_PTRACE"]), (1000, &[])] {
            let (id, _) = guarded(node, uid, capabilities);
            // The guest is pid 1 of its namespace; the shell's own memory is the proof that the way there is open.
            exec(node, &id, &["/bin/sh", "-c", "exec 3<>/proc/$$/mem"]).ok();
            for line in ["exec 3</proc/1/mem", "exec 3>/proc/1/mem", "cat /proc/1/environ", "cat /proc/1/maps", "cat </proc/1/fd/0",
                         "cat /proc/1/root/probe.wasm", "nsenter -t 1 -m true"] {
                let said = exec(node, &id, &["/bin/sh", "-c", line]);
                assert!(said.code != Some(0), "{uid} {capabilities:?}: {said}");
                assert!(["ermission denied", "not permitted"].iter().any(|word| said.stderr.contains(word)), "{said}");
            }
            node.remove(&id);
        }
    }

    fn a_procfs_is_the_native_execs_own_and_masked(node) {
        let (id, pid) = guarded(node, 0, &[]);
        let (native, _) = running(node, &id, &["/bin/sh", "-c", "grep -c ' /proc ' /proc/self/mountinfo; exec sleep 1000"]);
        assert_eq!(exec(node, &id, &["/probe.wasm", "ls", "/proc"]).ok().stdout, "keep\n");
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        assert!(!mounts.contains(" - proc "), "{mounts}");
        assert_eq!(exec(node, &id, &["/bin/sh", "-c", "wc -c </proc/timer_list; ls /proc/scsi | wc -l"]).ok().stdout, "0\n0\n");
        exec(node, &id, &["/bin/sh", "-c", "echo 1 >/proc/sys/kernel/hostname"]).expect_refusal(&["Read-only file system"]);
        // Nothing of the host is in it.
        let seen = exec(node, &id, &["/bin/sh", "-c", "ls /proc | grep -c '^[0-9]'"]).ok().stdout;
        assert!(seen.trim().parse::<u32>().unwrap() < 8, "{seen}");
        node.ctr(&["task", "kill", "--signal", "SIGKILL", &id]).ok();
        assert_eq!(native.wait().expect_code(137).stdout, "1\n");
        node.remove(&id);
    }

    fn a_native_exec_inherits_nothing_of_the_launcher(node) {
        let (id, _) = guarded(node, 0, &[]);
        assert_eq!(exec(node, &id, &["/bin/sh", "-c", "ls /proc/self/fd | wc -w"]).ok().stdout, "4\n", "0, 1, 2 and the folder");
        let said = exec(node, &id, &["/bin/sh", "-c", "cat /proc/self/status; echo $(cat /proc/$$/comm)"]).ok().stdout;
        for (name, value) in [("SigBlk", 0), ("SigIgn", 0), ("SigCgt", 0)] {
            let line = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
            // Three of the signals are the C library's own, to leave alone.
            assert_eq!(u64::from_str_radix(line.trim(), 16).unwrap() & !(7 << 31), value, "{name}");
        }
        assert!(said.contains("Seccomp:\t0") && said.ends_with("sh\n"), "{said}");
        node.remove(&id);
    }

    fn what_a_native_exec_leaves_behind_is_reaped_and_ends_with_the_container(node) {
        let (id, pid) = guarded(node, 0, &[]);
        exec(node, &id, &["/bin/sh", "-c", "(sleep 0 & sleep 0 & sleep 1000 &) >/dev/null 2>&1"]).ok();
        assert_ne!(u64::from_str_radix(&status(pid, "SigIgn"), 16).unwrap() & (1 << 16), 0, "SIGCHLD");
        let all = exec(node, &id, &["/bin/sh", "-c", "ps -o pid,ppid,stat,args"]);
        eventually(&format!("one is left beside the guest: {all}"), Duration::from_secs(5), || {
            (pids(node, &id).len() == 2).then_some(())
        });
        let left = pids(node, &id).into_iter().find(|other| *other != pid).unwrap();
        node.ctr(&["task", "kill", "--signal", "SIGKILL", &id]).ok();
        node.wait_until(&id, "STOPPED");
        assert!(!Path::new(&format!("/proc/{left}")).exists());
        node.remove(&id);
    }

    fn an_exec_is_refused_while_its_container_is_paused(node) {
        let (id, _) = idle(node);
        node.ctr(&["task", "pause", &id]).ok();
        exec(node, &id, &["/probe.wasm", "say", "x"]).expect_refusal(&["paused"]);
        node.ctr(&["task", "resume", &id]).ok();
        exec(node, &id, &["/probe.wasm", "say", "x"]).ok();
        node.remove(&id);
    }

    fn compiling_for_an_exec_is_not_charged_to_a_small_container(node) {
        let image = image();
        node.import(&image);
        let (id, _) = node.run(&image).flag(&["--memory-limit", "8388608"]).args(&["/probe.wasm", "idle"]).detach();
        for program in ["/probe.wasm", "probe2.wasm"] {
            assert_eq!(exec(node, &id, &[program, "say", "small"]).ok().stdout, "small\n");
        }
        node.remove(&id);
    }

    fn calls_out_of_order_get_the_codes_that_containerd_knows(node) {
        let bundle = probe_bundle(node, "execs", &["idle"]);
        let client = connect(node, &node.namespace, "execs", &bundle);
        let pid = client.create(context(node), &create("execs", &bundle)).unwrap().pid;
        let (id, one) = (|| "execs".to_owned(), || "one".to_owned());
        let exec = |exec_id: &str, args: &[&str]| ExecProcessRequest {
            id: id(), exec_id: exec_id.into(), spec: MessageField::some(process(args)), ..Default::default()
        };
        let start = StartRequest { id: id(), exec_id: one(), ..Default::default() };
        let delete = DeleteRequest { id: id(), exec_id: one(), ..Default::default() };
        let state = StateRequest { id: id(), exec_id: one(), ..Default::default() };
        let wait = WaitRequest { id: id(), exec_id: one(), ..Default::default() };
        let kill = KillRequest { id: id(), exec_id: one(), signal: 15, ..Default::default() };
        let resize = ResizePtyRequest { id: id(), exec_id: one(), width: 80, height: 24, ..Default::default() };
        client.start(context(node), &StartRequest { id: id(), ..Default::default() }).unwrap();

        for unknown in [
            refusal(client.state(context(node), &state)), refusal(client.start(context(node), &start)),
            refusal(client.wait(context(node), &wait)), refusal(client.kill(context(node), &kill)),
            refusal(client.delete(context(node), &delete)), refusal(client.resize_pty(context(node), &resize)),
        ] {
            assert_eq!(unknown.0, Code::NOT_FOUND, "{}", unknown.1);
        }
        client.exec(context(node), &exec("one", &["/probe.wasm", "idle"])).unwrap();
        assert_eq!(refusal(client.exec(context(node), &exec("one", &["/probe.wasm"]))).0, Code::ALREADY_EXISTS);
        assert_eq!(client.state(context(node), &state).unwrap().status.enum_value().unwrap(), Status::CREATED);
        let beside = client.start(context(node), &start).unwrap().pid;
        assert_eq!(refusal(client.start(context(node), &start)).0, Code::FAILED_PRECONDITION);
        assert_eq!(refusal(client.delete(context(node), &delete)).0, Code::FAILED_PRECONDITION);
        client.resize_pty(context(node), &resize).unwrap();
        let listed = client.pids(context(node), &PidsRequest { id: id(), ..Default::default() }).unwrap().processes;
        let listed: Vec<_> = listed.iter().map(|process| (process.pid, process.info.type_url.as_str())).collect();
        assert_eq!(listed, [(pid, ""), (beside, "containerd.runc.v1.ProcessDetails")]);

        client.kill(context(node), &kill).unwrap();
        assert_eq!(client.wait(context(node), &wait).unwrap().exit_status, 143);
        assert_eq!(refusal(client.kill(context(node), &kill)).0, Code::NOT_FOUND);
        assert_eq!(client.state(context(node), &state).unwrap().status.enum_value().unwrap(), Status::STOPPED);
        assert_eq!(client.delete(context(node), &delete).unwrap().exit_status, 143);
        assert_eq!(refusal(client.delete(context(node), &delete)).0, Code::NOT_FOUND);

        client.exec(context(node), &exec("one", &["/"])).unwrap();
        let (_, message) = refusal(client.start(context(node), &start));
        assert!(message.contains("directory"), "{message}");
        client.delete(context(node), &delete).unwrap();
        client.kill(context(node), &KillRequest { id: id(), signal: 9, ..Default::default() }).unwrap();
        client.wait(context(node), &WaitRequest { id: id(), ..Default::default() }).unwrap();
        assert_eq!(refusal(client.exec(context(node), &exec("two", &["/probe.wasm"]))).0, Code::FAILED_PRECONDITION);
        client.delete(context(node), &DeleteRequest { id: id(), ..Default::default() }).unwrap();
        end_server(node);
    }

    fn execs_end_with_the_server(node) {
        let (id, _) = guarded(node, 1000, &[]);
        let (wasm, first) = running(node, &id, &["/probe.wasm", "idle"]);
        let (native, second) = running(node, &id, &["/bin/sh", "-c", "sleep 1000"]);
        let server = Pid::from_raw(server::pid(node)).unwrap();
        kill_process(server, Signal::KILL).unwrap();
        eventually("the execs are gone", Duration::from_secs(10), || {
            [first, second].iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()).then_some(())
        });
        wasm.wait();
        native.wait();
        node.ctr(&["task", "delete", "--force", &id]);
        node.ctr(&["container", "delete", &id]).ok();
        // Its clients have left them.
        fs::remove_dir_all(node.folder.join("fifo")).unwrap();
    }

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
            kill_process(Pid::from_raw(beside as i32).unwrap(), Signal::KILL).unwrap();
            exec.wait().expect_code(137);
        }
        node.remove(&id);
    }
}
