//! Programs that take long to compile, on a node that is slow: workers are stopped, so that nothing depends on its speed.

use std::fmt::Write;
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::command::{Finished, Running, eventually};
use crate::containerd::Node;
use crate::cri::{self, crictl_command, exit_code};
use crate::guests::{Probe, wat};
use crate::image_builder::Image;
use crate::pod::{PID_OF_CONTAINER, Pod};
use crate::server;

/// As long as it takes to start or to end a worker on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// A program that ends at once and takes the compiler a second or two, in 1000 functions of some 100 instructions.
fn large() -> Vec<u8> {
    let mut text = String::from("(module (memory (export \"memory\") 1) (func (export \"_start\"))\n");
    for function in 0..1000 {
        text.push_str("(func (param i64 i64 i64 i64) (result i64)\n");
        for index in 0..100 {
            let (a, b) = (index % 4, (index * 7 + 1) % 4);
            writeln!(
                text,
                "(local.set {a} (i64.add (i64.mul (local.get {a}) (i64.const {function})) (i64.load (i32.wrap_i64 (local.get {b})))))"
            )
            .unwrap();
        }
        text.push_str("(local.get 0))\n");
    }
    text.push(')');
    wat(&text)
}

fn image() -> Image {
    Image::with_files("large", &[("/large.wasm", &large())]).entrypoint(&["/large.wasm"])
}

/// The one compile worker of a node, which has it stopped.
struct Stopped(Pid);

impl Stopped {
    /// Stops the worker as soon as there is one.
    #[track_caller]
    fn first(node: &Node) -> Stopped {
        let worker = eventually("a worker compiles", SOON, || workers(node).first().copied());
        let worker = Stopped(Pid::from_raw(worker).unwrap());
        kill_process(worker.0, Signal::STOP).unwrap();
        worker
    }

    fn pid(&self) -> i32 {
        self.0.as_raw_nonzero().get()
    }

    fn go_on(self) {
        kill_process(self.0, Signal::CONT).unwrap();
    }

    fn kill(self) {
        kill_process(self.0, Signal::KILL).unwrap();
    }
}

fn workers(node: &Node) -> Vec<i32> {
    server::pids_of(node, "compile")
}

fn compiled(node: &Node) -> u64 {
    server::count(&server::status(node), "artifacts.compiled")
}

/// Takes back what a client left that was killed while its container was being created.
#[track_caller]
fn clean_up(node: &Node, id: &str) {
    eventually("the task is gone", SOON, || {
        node.ctr(&["task", "delete", "--force", id]);
        node.task(id).is_none().then_some(())
    });
    node.ctr(&["container", "delete", id]).ok();
    // The client made its fifos and did not live to remove them.
    std::fs::remove_dir_all(node.folder.join("fifo")).unwrap();
}

/// A client that starts a container of [`image`] and goes away while its worker is stopped.
#[track_caller]
fn start_and_leave(node: &Node, image: &Image) -> Stopped {
    let run = node.run(image);
    let id = run.id.clone();
    let mut client = run.spawn();
    let worker = Stopped::first(node);
    client.kill();
    client.wait();
    clean_up(node, &id);
    worker
}

/// `crictl start` by a client that is patient for so many seconds, as the kubelet is for 120.
fn start(node: &Node, id: &str, patience: u32) -> Running {
    let mut command = crictl_command(node, &[]);
    command.args(["--timeout", &format!("{patience}s"), "start", id]);
    Running::start(&mut command)
}

#[track_caller]
fn reports_the_progress(refused: Finished) {
    // The kubelet's event is this message.
    refused.expect_refusal(&[
        "/large.wasm is still being compiled",
        "s of processor time so far",
        "at most 600 s (option compile_timeout)",
        "try again",
    ]);
}

on_every_containerd! {
    fn a_start_reports_a_compilation_that_goes_on_before_its_deadline_and_a_later_one_finds_the_program(node) {
        cri::prepare(node);
        let image = image();
        node.import_into(&image, "k8s.io").ok();
        let pod = Pod::start(node, PID_OF_CONTAINER);
        let first = pod.create("first", &image.name, &["/large.wasm"], |_| ()).ok().stdout;
        let starting = start(node, first.trim(), 10);
        let worker = Stopped::first(node);
        reports_the_progress(starting.wait());
        // The kubelet's next try: another container.
        let again = pod.create("second", &image.name, &["/large.wasm"], |_| ()).ok().stdout;
        reports_the_progress(start(node, again.trim(), 5).wait());
        assert_eq!(workers(node), [worker.pid()], "one worker for both");
        worker.go_on();
        eventually("it is compiled", SOON * 2, || (compiled(node) == 1).then_some(()));
        let third = pod.run("third", &image.name, &["/large.wasm"], |_| ());
        assert_eq!(exit_code(node, &third), 0);
        assert_eq!(compiled(node), 1);
        pod.end();
    }

    fn a_client_that_goes_away_loses_no_compilation_and_two_others_share_it(node) {
        node.configure("idle_timeout = 5");
        let image = image();
        node.import(&image);
        let worker = start_and_leave(node, &image);
        let running = [node.run(&image).spawn(), node.run(&image).spawn()];
        eventually("both wait", SOON, || {
            (server::count(&server::status(node), "containers") == 2).then_some(())
        });
        assert_eq!(workers(node), [worker.pid()], "one worker for all");
        worker.go_on();
        for run in running {
            run.wait().ok();
        }
        assert_eq!(compiled(node), 1);
    }

    fn an_idle_server_stays_until_its_compilation_has_ended(node) {
        let image = image();
        node.import(&image);
        let worker = start_and_leave(node, &image);
        let server = server::pid(node);
        // It would end at once otherwise, and its worker with it.
        sleep(Duration::from_secs(1));
        assert_eq!((server::pids_of(node, "serve"), workers(node)), (vec![server], vec![worker.pid()]));
        worker.go_on();
        eventually("the server ends", SOON * 2, || server::pids_of(node, "serve").is_empty().then_some(()));
        node.configure("idle_timeout = 5");
        node.run(&image).finish().ok();
        assert_eq!(compiled(node), 0, "the next server finds it");
    }
}

on_newest_containerd! {
    fn only_processor_time_counts_for_the_limit_of_a_compilation(node) {
        node.configure("idle_timeout = 0\ncompile_timeout = 5");
        let image = image();
        node.import(&image);
        let run = node.run(&image).spawn();
        let worker = Stopped::first(node);
        sleep(Duration::from_secs(7));
        worker.go_on();
        run.wait().ok();
    }

    fn an_exec_reports_a_compilation_that_goes_on_too(node) {
        let image = Image::with_files("exec", &[("/probe.wasm", &Probe::P1.bytes()), ("/large.wasm", &large())]);
        node.import(&image);
        let (id, _) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        let mut exec = node.ctr_command(&["--timeout", "10s", "task", "exec", "--exec-id", "first"]);
        exec.arg("--fifo-dir").arg(node.folder.join("fifo")).args([&id, "/large.wasm"]);
        let exec = Running::start(&mut exec);
        let worker = Stopped::first(node);
        reports_the_progress(exec.wait());
        worker.go_on();
        eventually("it is compiled", SOON * 2, || (compiled(node) == 2).then_some(()));
        crate::exec::exec(node, &id, &["/large.wasm"]).ok();
        assert_eq!(compiled(node), 2);
        node.remove(&id);
    }

    fn a_worker_that_is_killed_is_named_and_the_next_try_compiles(node) {
        let image = image();
        node.import(&image);
        let run = node.run(&image);
        let id = run.id.clone();
        let run = run.spawn();
        Stopped::first(node).kill();
        run.wait().expect_refusal(&["/large.wasm", "compile worker", "signal 9", "short of memory"]);
        node.ctr(&["container", "delete", &id]);
        node.run(&image).finish().ok();
    }
}
