//! One `ctr run`, put together word by word.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;

use crate::command::{Finished, Running, run};
use crate::containerd::Node;
use crate::image_builder::Image;

/// A container to be run, by default with the wasi runtime and removed when it ends.
pub struct Run<'a> {
    node: &'a Node,
    pub id: String,
    runtime: String,
    with_options: bool,
    flags: Vec<String>,
    /// The image's name, or nothing when the spec comes from a file.
    image: Option<String>,
    args: Vec<String>,
    stdin: Option<Vec<u8>>,
}

impl<'a> Run<'a> {
    pub fn of_image(node: &'a Node, image: &Image) -> Run<'a> {
        let mut run = Run::new(node);
        run.image = Some(image.name.clone());
        run.flag(&["--platform", &image.os_and_architecture()])
    }

    /// A container whose whole OCI spec is `spec`, with a root filesystem that is a folder.
    pub fn of_spec(node: &'a Node, spec: &Value) -> Run<'a> {
        let run = Run::new(node);
        let file = node.folder.join(format!("{}.json", run.id));
        fs::write(&file, serde_json::to_vec_pretty(spec).unwrap()).unwrap();
        run.flag(&["--config", file.to_str().unwrap()])
    }

    fn new(node: &'a Node) -> Run<'a> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Run {
            node,
            id: format!("c{}", NEXT.fetch_add(1, Ordering::Relaxed)),
            runtime: "io.containerd.wasi.v1".into(),
            with_options: true,
            flags: Vec::new(),
            image: None,
            args: Vec::new(),
            stdin: None,
        }
    }

    /// Arguments after the image; they replace its entry point's, as `ctr` does.
    pub fn args(mut self, args: &[&str]) -> Run<'a> {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// Flags of `ctr run`.
    pub fn flag(mut self, flags: &[&str]) -> Run<'a> {
        self.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    /// What the container reads, in the foreground; without it, nothing.
    pub fn stdin(mut self, bytes: &[u8]) -> Run<'a> {
        self.stdin = Some(bytes.to_vec());
        self
    }

    /// The client names no options, so those beside the binary count.
    pub fn without_options(mut self) -> Run<'a> {
        self.with_options = false;
        self
    }

    pub fn runtime(mut self, runtime: &str) -> Run<'a> {
        self.runtime = runtime.into();
        self
    }

    /// The `ctr run` in the foreground; the container is gone afterwards.
    #[track_caller]
    pub fn finish(self) -> Finished {
        let mut running = Running::start(&mut self.command(&["--rm"]));
        if let Some(stdin) = &self.stdin {
            // `ctr` 1.x forgets to pass on an end of input that comes before the task is made.
            self.node.wait_until(&self.id, "RUNNING");
            running.feed(stdin);
        }
        running.wait()
    }

    /// As [`Run::finish`], but the test goes on beside it.
    #[track_caller]
    pub fn spawn(self) -> Running {
        Running::start(&mut self.command(&["--rm"]))
    }

    /// A detached container with null streams; returns its id and the pid of its task.
    #[track_caller]
    pub fn detach(self) -> (String, u32) {
        run(&mut self.command(&["--detach", "--null-io"])).ok();
        let (pid, _) = self.node.task(&self.id).unwrap();
        (self.id, pid)
    }

    /// A detached container whose streams are what its flags say.
    #[track_caller]
    pub fn detach_as_it_is(self) {
        self.try_detach().ok();
    }

    /// As [`Run::detach_as_it_is`], and says how that went.
    #[track_caller]
    pub fn try_detach(self) -> Finished {
        run(&mut self.command(&["--detach"]))
    }

    /// As [`Run::detach`], with stdout and stderr appended to a file.
    #[track_caller]
    pub fn detach_with_log(self) -> (String, u32, PathBuf) {
        let log = self.node.folder.join(format!("{}.log", self.id));
        let uri = format!("file://{}", log.display());
        run(&mut self.command(&["--detach", "--log-uri", &uri])).ok();
        let (pid, _) = self.node.task(&self.id).unwrap();
        (self.id, pid, log)
    }

    /// As [`Run::detach`], with stdout and stderr going to a fifo that nobody reads yet.
    #[track_caller]
    pub fn detach_with_fifo(self) -> (String, u32, PathBuf) {
        let fifo = self.node.folder.join(format!("{}.fifo", self.id));
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let uri = format!("fifo://{}", fifo.display());
        run(&mut self.command(&["--detach", "--log-uri", &uri])).ok();
        let (pid, _) = self.node.task(&self.id).unwrap();
        (self.id, pid, fifo)
    }

    /// A run in the foreground that is expected to fail before it starts; its container record is removed.
    #[track_caller]
    pub fn fail(self) -> Finished {
        let finished = run(&mut self.command(&["--rm"]));
        self.node.ctr(&["container", "delete", &self.id]);
        finished
    }

    /// The `ctr run` in the foreground, to be run in a terminal; the container is gone afterwards.
    pub fn foreground(&self) -> Command {
        self.command(&["--rm"])
    }

    fn command(&self, mode: &[&str]) -> Command {
        let options = self.node.options();
        let mut command = self.node.ctr_command(&["run"]);
        command.args(mode).args(["--runtime", &self.runtime]);
        if self.with_options && self.runtime.contains("wasi") {
            command.arg("--runtime-config-path").arg(options);
        }
        command.arg("--fifo-dir").arg(self.node.folder.join("fifo"));
        command
            .args(&self.flags)
            .args(&self.image)
            .arg(&self.id)
            .args(&self.args);
        command
    }
}

/// The OCI spec that `ctr` would make, with `root` as the root filesystem and `args` to run; for tests to edit.
#[track_caller]
pub fn spec(node: &Node, root: &Path, args: &[&str]) -> Value {
    let mut spec: Value = serde_json::from_str(&node.ctr(&["oci", "spec"]).ok().stdout).unwrap();
    spec["root"] = serde_json::json!({"path": root, "readonly": false});
    spec["process"]["args"] = serde_json::json!(args);
    spec
}

/// Makes a folder that serves as root filesystem, with `files` in it.
pub fn root_folder(node: &Node, files: &[(&str, &[u8])]) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let root = node
        .folder
        .join(format!("rootfs{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    for (name, bytes) in files {
        let path = root.join(name.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    root
}
