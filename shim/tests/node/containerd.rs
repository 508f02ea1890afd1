//! A containerd of one test's own: root, state, socket and options in a folder that goes away with it.

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use kubewasi_testbed::binary;
use kubewasi_testbed::daemon::Daemon;
pub use kubewasi_testbed::version::Version;
use rustix::process::Signal;

use crate::command::{Finished, eventually, patience, run};
use crate::container::Run;
use crate::image_builder::Image;
use crate::machine::{self, Machine};

/// The shim under test.
pub fn shim_under_test() -> PathBuf {
    binary::under_test("containerd-shim-wasi-v1", env!("CARGO_BIN_EXE_containerd-shim-wasi-v1"))
}

/// A running containerd and what tests do with it.
pub struct Node {
    pub version: Version,
    /// The containerd namespace of all containers; no other test uses it.
    pub namespace: String,
    /// The test's temporary folder.
    pub folder: PathBuf,
    with_cri: bool,
    /// A configuration other than that of [`Node::config`].
    replaced: Option<String>,
    daemon: Daemon,
}

/// Tests share the machine, each with a shim binary of its own, by which its processes are known; those that load the
/// machine have it alone.
static TURN: RwLock<()> = RwLock::new(());

impl Node {
    /// Runs `scenario` on a fresh containerd of `version`, then checks that nothing is left on the machine.
    pub fn with(version: Version, scenario: impl FnOnce(&mut Node)) {
        let _turn = TURN.read().unwrap_or_else(PoisonError::into_inner);
        Node::play(version, scenario);
    }

    /// As [`Node::with`], with no other test beside it.
    pub fn alone(version: Version, scenario: impl FnOnce(&mut Node)) {
        let _turn = TURN.write().unwrap_or_else(PoisonError::into_inner);
        Node::play(version, scenario);
    }

    fn play(version: Version, scenario: impl FnOnce(&mut Node)) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mark = format!("kwn{}-{:03}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = Path::new("/tmp").join(&mark);
        let mut node = Node {
            version,
            daemon: Daemon::new(version.folder(), folder.clone()),
            folder,
            namespace: mark,
            with_cri: false,
            replaced: None,
        };
        fs::create_dir_all(node.shim().parent().unwrap()).unwrap();
        if fs::hard_link(shim_under_test(), node.shim()).is_err() {
            // Another file system.
            fs::copy(shim_under_test(), node.shim()).unwrap();
        }
        node.configure("idle_timeout = 0");
        let before = Machine::look(&node.namespace);
        node.start();

        let result = panic::catch_unwind(AssertUnwindSafe(|| {
            scenario(&mut node);
            node.expect_nothing_left(&before);
        }));
        node.stop();
        let log = fs::read_to_string(node.daemon.log()).unwrap_or_default();
        machine::sweep(&node.namespace, &before);
        fs::remove_dir_all(&node.folder).unwrap();
        if let Err(failure) = result {
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- the end of containerd's log ({version:?})");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
            panic::resume_unwind(failure);
        }
    }

    /// The machine is as it was; what a server needs to end is waited for.
    #[track_caller]
    pub fn expect_nothing_left(&self, before: &Machine) {
        let mut left = Vec::new();
        for _ in 0..200 * patience() {
            left = Machine::look(&self.namespace).since(before);
            if left.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("left on the machine after the test:\n{}", left.join("\n"));
    }

    /// Replaces the handlers' options, TOML lines beside the cache folder; servers that run keep theirs. They are in two
    /// files: the one that the configuration names, and the one beside the binary.
    pub fn configure(&self, lines: &str) {
        let cache = self.cache();
        let text = format!("cache_dir = {:?}\n{lines}\n", cache.display().to_string());
        for file in [self.options(), self.shim().with_extension("toml")] {
            fs::write(file, &text).unwrap();
        }
    }

    /// The options file that containers of this node are run with.
    pub fn options(&self) -> PathBuf {
        self.folder.join("options.toml")
    }

    /// The shim binary that this node's containerd finds.
    pub fn shim(&self) -> PathBuf {
        self.daemon.shims().join("containerd-shim-wasi-v1")
    }

    /// The artifact cache of this node's servers: their own, or that of all nodes (`KUBEWASI_TEST_CACHE`) on a machine
    /// where compiling takes longer than a test.
    pub fn cache(&self) -> PathBuf {
        std::env::var_os("KUBEWASI_TEST_CACHE").map_or_else(|| self.folder.join("cache"), PathBuf::from)
    }

    /// The folder of this node's CNI plugins and their configuration, which a test may fill.
    pub fn cni(&self) -> PathBuf {
        self.folder.join("cni")
    }

    pub fn socket(&self) -> PathBuf {
        self.daemon.socket()
    }

    /// Everything the daemon and its shims have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.daemon.log()).unwrap()
    }

    /// Waits until the log has a line with all of `words`, and returns it.
    #[track_caller]
    pub fn log_line(&self, words: &[&str]) -> String {
        eventually(&format!("a log line with {words:?}"), Duration::from_secs(5), || {
            let log = self.log();
            log.lines()
                .find(|line| words.iter().all(|word| line.contains(word)))
                .map(str::to_owned)
        })
    }

    /// Starts the daemon again with its CRI plugin on, `wasi` being a runtime handler.
    pub fn turn_on_cri(&mut self) {
        self.with_cri = true;
        self.stop();
        self.start();
    }

    /// Starts the daemon again with the TOML `config`, which it keeps from then on.
    pub fn replace_config(&mut self, config: String) {
        self.replaced = Some(config);
        self.stop();
        self.start();
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&mut self) {
        let config = self.replaced.clone().unwrap_or_else(|| self.config());
        self.daemon.start(&config).unwrap();
        eventually("containerd answers", Duration::from_secs(30), || {
            (self.ctr(&["version"]).code == Some(0)).then_some(())
        });
    }

    /// Stops the daemon; containers run on.
    pub fn stop(&mut self) {
        self.daemon.end(Signal::TERM).unwrap();
    }

    /// Kills the daemon, whatever it is doing; containers run on.
    pub fn kill(&mut self) {
        self.daemon.end(Signal::KILL).unwrap();
    }

    /// `ctr` on this node.
    pub fn ctr_command(&self, args: &[&str]) -> Command {
        let mut command = self.daemon.ctr();
        command.args(["--namespace", &self.namespace]).args(args);
        command
    }

    #[track_caller]
    pub fn ctr(&self, args: &[&str]) -> Finished {
        run(&mut self.ctr_command(args))
    }

    /// Imports `image` under its name.
    #[track_caller]
    pub fn import(&self, image: &Image) {
        self.import_into(image, &self.namespace).ok();
    }

    /// Imports `image` into a namespace of containerd, and tells how that went.
    #[track_caller]
    pub fn import_into(&self, image: &Image, namespace: &str) -> Finished {
        let archive = self.folder.join("import.tar");
        image.write(&archive).unwrap();
        // Unpacked by `ctr run`, for the platform that it is told.
        let mut args = vec![
            "--namespace",
            namespace,
            "image",
            "import",
            "--all-platforms",
            "--no-unpack",
        ];
        if self.version >= Version::V2_3 {
            args.push("--local");
        }
        let finished = self.ctr(&[args.as_slice(), &[archive.to_str().unwrap()]].concat());
        fs::remove_file(archive).unwrap();
        finished
    }

    /// A `ctr run` of `image` by the wasi runtime, to be refined.
    pub fn run(&self, image: &Image) -> Run<'_> {
        Run::of_image(self, image)
    }

    /// Sends SIGKILL to a container's task, waits until it is reported stopped, and deletes task and container.
    #[track_caller]
    pub fn remove(&self, id: &str) {
        // Killing a task that has just ended is no failure of the test.
        self.ctr(&["task", "kill", "--signal", "SIGKILL", id]);
        self.wait_until(id, "STOPPED");
        self.ctr(&["task", "delete", id]);
        self.ctr(&["container", "delete", id]).ok();
    }

    /// Deletes a stopped task and its container, and returns the task's exit code.
    #[track_caller]
    pub fn delete(&self, id: &str) -> i32 {
        let deleted = self.ctr(&["task", "delete", id]);
        self.ctr(&["container", "delete", id]).ok();
        // `ctr` 1.x exits with the task's code; 2.x exits with 0 and warns of any other.
        let warned = deleted.stderr.split("exit with non-zero exit code ").nth(1);
        match warned.and_then(|rest| rest.trim_end_matches(['"', '\n']).parse().ok()) {
            Some(code) => code,
            None => deleted.code.unwrap(),
        }
    }

    /// Waits until `ctr task ls` shows `id` in `state`, and returns its pid.
    #[track_caller]
    pub fn wait_until(&self, id: &str, state: &str) -> u32 {
        eventually(&format!("task {id} is {state}"), Duration::from_secs(20), || {
            let (pid, now) = self.task(id)?;
            (now == state).then_some(pid)
        })
    }

    /// The pid and state of a task, as containerd lists it.
    #[track_caller]
    pub fn task(&self, id: &str) -> Option<(u32, String)> {
        let list = self.ctr(&["task", "ls"]).ok().stdout;
        list.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == id).then_some(())?;
            Some((words.next()?.parse().ok()?, words.next()?.to_owned()))
        })
    }

    fn config(&self) -> String {
        let common = self.daemon.private();
        let (version, cri_plugins) = match self.version {
            Version::V1_6 | Version::V1_7 => (2, &["io.containerd.grpc.v1.cri"][..]),
            Version::V2_3 | Version::V2_4 => (
                3,
                &[
                    "io.containerd.grpc.v1.cri",
                    "io.containerd.cri.v1.runtime",
                    "io.containerd.cri.v1.images",
                ][..],
            ),
        };
        let mut disabled = vec!["io.containerd.nri.v1.nri"];
        if !self.with_cri {
            disabled.extend(cri_plugins);
        }
        let cri = if self.with_cri {
            self.cri_config()
        } else {
            String::new()
        };
        format!("version = {version}\ndisabled_plugins = {disabled:?}\n{common}{cri}")
    }

    /// Tables of the CRI plugin, which 2.x cut in two. A machine without CAP_SYS_RESOURCE cannot lower the OOM score that
    /// CRI asks for sandboxes, so it is restricted. AppArmor, where the machine has it, is refused to guests.
    fn cri_config(&self) -> String {
        let pause = crate::cri::PAUSE;
        let options = self.options().display().to_string();
        let cni = self.cni().display().to_string();
        let (runtime, tables) = match self.version {
            Version::V1_6 | Version::V1_7 => (
                "io.containerd.grpc.v1.cri",
                format!(
                    "[plugins.\"io.containerd.grpc.v1.cri\"]\n\
                     sandbox_image = {pause:?}\nrestrict_oom_score_adj = true\ndisable_apparmor = true\n\
                     [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = {cni:?}\nconf_dir = {cni:?}\n"
                ),
            ),
            Version::V2_3 | Version::V2_4 => (
                "io.containerd.cri.v1.runtime",
                format!(
                    "[plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = {pause:?}\n\
                     [plugins.\"io.containerd.cri.v1.runtime\"]\nrestrict_oom_score_adj = true\n\
                     disable_apparmor = true\n\
                     [plugins.\"io.containerd.cri.v1.runtime\".cni]\nbin_dirs = [{cni:?}]\nconf_dir = {cni:?}\n"
                ),
            ),
        };
        let runtimes = format!("plugins.\"{runtime}\".containerd.runtimes");
        format!(
            "{tables}[{runtimes}.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\
             [{runtimes}.wasi]\nruntime_type = \"io.containerd.wasi.v1\"\n\
             pod_annotations = [\"kubewasi.dev/*\"]\ncontainer_annotations = [\"kubewasi.dev/*\"]\n\
             [{runtimes}.wasi-without-options]\nruntime_type = \"io.containerd.wasi.v1\"\n\
             [{runtimes}.wasi.options]\nTypeUrl = \"runtimeoptions.v1.Options\"\nConfigPath = {options:?}\n"
        )
    }
}
