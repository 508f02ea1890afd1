//! A containerd of one test's own, with CRI, and a runtime's folder beside it.

use std::cell::{Cell, RefCell};
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kubewasi_controller::api::wasm_node::Permit;
use kubewasi_controller::node::config::{Change, Handler};
use kubewasi_controller::node::configuration::Configuration;
use kubewasi_controller::node::cri::Cri;
use kubewasi_controller::node::health::Health;
use kubewasi_controller::node::host::{self, Containerd, Host, HostError};
use kubewasi_controller::node::journal::Journal;
use kubewasi_controller::node::layout::{Layout, SHIM};
use kubewasi_controller::node::plan::Planned;
use kubewasi_controller::node::shim::{self, Staged};
use kubewasi_controller::node::smoke;
use kubewasi_controller::node::systemd::Unit;
use kubewasi_controller::node::transaction::{self, Order, Progress};
use kubewasi_testbed::binary;
use kubewasi_testbed::daemon::Daemon;
use kubewasi_testbed::machine::{self, Machine};
pub use kubewasi_testbed::version::Version;
use rustix::process::{Pid, Signal, kill_process};

/// A running containerd, and the runtime `default` with its handler `wasi`, whose shim is there.
pub struct Node {
    pub version: Version,
    pub folder: PathBuf,
    pub layout: Layout,
    pub handler: Handler,
    daemon: RefCell<Daemon>,
    /// The release that it was upgraded to.
    upgraded: Cell<Option<Version>>,
}

/// An ordinary container.
pub struct Native {
    pub id: String,
    pub pid: i32,
}

impl Node {
    /// Runs `scenario` on a fresh containerd, then checks that nothing is left on the machine.
    pub async fn with(version: Version, scenario: impl AsyncFnOnce(&Node)) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mark = format!("kwa{}-{:03}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = Path::new("/tmp").join(&mark);
        fs::create_dir_all(folder.join("cni")).unwrap();
        let before = Machine::look(&mark);
        let layout = Layout::new(&folder.join("opt"), "default");
        let node = Node {
            version,
            handler: Handler {
                runtime: "default".into(),
                name: "wasi".into(),
                shim: layout.stable(),
                local_pull: false,
            },
            layout,
            daemon: RefCell::new(Daemon::new(version.folder(), folder.clone())),
            folder,
            upgraded: Cell::default(),
        };
        let _swept = Swept {
            node: &node,
            mark: &mark,
            before: &before,
        };
        node.install_shim();
        fs::write(node.config(), node.first_config()).unwrap();
        node.restart().await.unwrap();
        scenario(&node).await;
        node.expect_nothing_left(&mark, &before);
    }

    /// The root configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.join("config.toml")
    }

    pub fn config_text(&self) -> String {
        fs::read_to_string(self.config()).unwrap()
    }

    /// A file like that of a node, without a table for any runtime: containerd's built-in default is runc.
    fn first_config(&self) -> String {
        let (version, plugin) = self.version.format();
        let cni = self.folder.join("cni").display().to_string();
        let bins = if version == 2 {
            format!("bin_dir = {cni:?}")
        } else {
            format!("bin_dirs = [{cni:?}]")
        };
        format!(
            "# A node's own file.\nversion = {version}\ndisabled_plugins = [\"io.containerd.nri.v1.nri\"]\n{}\n\
             [plugins.\"{plugin}\"] # CRI\n  restrict_oom_score_adj = true\n  disable_apparmor = true\n\
             [plugins.\"{plugin}\".cni]\n  {bins}\n  conf_dir = {cni:?}\n\n# The end.\n",
            self.daemon.borrow().private()
        )
    }

    fn install_shim(&self) {
        let staging = self.folder.join("staging");
        fs::create_dir(&staging).unwrap();
        fs::copy(shim_under_test(), staging.join(SHIM)).unwrap();
        let staged = Staged::look(&staging).unwrap();
        staged.install(&self.layout).unwrap();
        let cache = self.folder.join("cache").display().to_string();
        fs::write(
            self.layout.options(&staged.digest),
            format!("cache_dir = {cache:?}\nidle_timeout = 0\n"),
        )
        .unwrap();
        shim::switch(&self.layout, &staged.digest).unwrap();
        smoke::install(&self.layout).unwrap();
    }

    pub fn socket(&self) -> PathBuf {
        self.daemon.borrow().socket()
    }

    pub async fn health(&self) -> Health {
        // The socket is there before the CRI plugin is.
        for _ in 0..600 {
            let mut cri = Cri::connect(&self.socket()).await.unwrap();
            if let Ok(health) = cri.health().await {
                return health;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("CRI does not answer")
    }

    /// What the agent sees of this containerd.
    pub async fn configuration(&self) -> Configuration {
        self.running().await.configuration
    }

    /// All that the agent knows of this containerd; its service is systemd's to tell.
    pub async fn running(&self) -> Containerd {
        self.try_running().await.unwrap()
    }

    /// The same, or why the agent leaves this containerd alone.
    pub async fn try_running(&self) -> Result<Containerd, HostError> {
        let socket = self.socket();
        let stream = UnixStream::connect(&socket).unwrap();
        let pid = rustix::net::sockopt::socket_peercred(&stream).unwrap().pid;
        let pid = pid.as_raw_nonzero().get().unsigned_abs();
        let health = self.health().await;
        Ok(Containerd {
            pid,
            binary: self.binaries().join("containerd"),
            started: host::started(&Path::new("/proc").join(pid.to_string())).unwrap(),
            unit: Unit {
                name: "containerd.service".into(),
                kill_mode: "process".into(),
                waits_for: None,
            },
            configuration: self.configuration_of(&self.config(), &health)?,
            health,
            socket,
        })
    }

    /// The directory of the programs that run.
    pub fn binaries(&self) -> PathBuf {
        self.upgraded.get().unwrap_or(self.version).folder()
    }

    /// What containerd makes of its files, as text.
    pub fn dump(&self) -> String {
        self.try_dump(&self.config()).unwrap()
    }

    /// What containerd makes of another root file, or says of it.
    pub fn try_dump(&self, config: &Path) -> Result<String, String> {
        let mut dump = Command::new(self.binaries().join("containerd"));
        let output = dump
            .arg("--config")
            .arg(config)
            .args(["config", "dump"])
            .output()
            .unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Replaces containerd by another release, with the same files.
    pub async fn upgrade(&self, to: Version) {
        self.daemon.borrow_mut().end(Signal::TERM).unwrap();
        self.daemon.replace(Daemon::new(to.folder(), self.folder.clone()));
        self.upgraded.set(Some(to));
        self.restart().await.unwrap();
        self.health().await;
    }

    /// The configuration that this containerd has, or would have, with another root file.
    pub fn configuration_of(&self, config: &Path, health: &Health) -> Result<Configuration, HostError> {
        Host::itself().configuration(Path::new("/"), &self.binaries().join("containerd"), config, health)
    }

    /// Has containerd read its files, as systemd would.
    pub async fn restart(&self) -> Result<(), String> {
        let text = self.config_text();
        {
            let mut daemon = self.daemon.borrow_mut();
            daemon.end(Signal::TERM).map_err(|error| error.to_string())?;
            daemon.start(&text).map_err(|error| error.to_string())?;
        }
        let socket = self.socket();
        let patience = Instant::now() + Duration::from_secs(60);
        loop {
            // Like systemd, which hears of a socket that is ready, not of a CRI plugin.
            if UnixStream::connect(&socket).is_ok() {
                return Ok(());
            }
            if Instant::now() > patience {
                return Err("containerd's socket is not there".into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The order that the agent would give for `change`.
    pub async fn order(&self, change: Change, listed: bool) -> Order {
        Order {
            unit: "containerd.service".into(),
            binary: self.binaries().join("containerd"),
            config: self.config(),
            socket: self.socket(),
            change: Some(change),
            handler: self.handler.name.clone(),
            listed,
            restart: true,
            before: self.health().await,
            patience: 15,
            cache: None,
        }
    }

    /// Carries an order out, from the beginning or where a helper before has left it.
    pub async fn transact(&self, order: &Order) -> Progress {
        transaction::run(order, &self.layout.progress(), async || self.restart().await)
            .await
            .unwrap()
    }

    /// The order that installs the handler.
    pub async fn install_order(&self) -> Order {
        let change = self.configuration().await.install(&self.handler).await;
        self.order(change.unwrap().unwrap(), true).await
    }

    /// The order that takes the handler away.
    pub async fn uninstall_order(&self) -> Order {
        let change = self.configuration().await.uninstall(&self.handler, &[]).await;
        self.order(change.unwrap().unwrap(), false).await
    }

    /// Installs the handler, and forgets how.
    pub async fn install(&self) {
        let order = self.install_order().await;
        assert_eq!(self.transact(&order).await, Progress::Committed);
        self.forget();
    }

    /// Forgets the last order, as the agent does when it has read how it ended.
    pub fn forget(&self) {
        fs::remove_file(self.layout.progress()).unwrap();
    }

    /// Starts an ordinary container that sleeps; its id starts with `name`, and is nobody else's.
    pub fn start_native(&self, name: &str) -> Native {
        let root = self.folder.join("native");
        if !root.exists() {
            fs::create_dir(&root).unwrap();
            fs::copy("/bin/busybox", root.join("busybox")).unwrap();
        }
        // runc keeps what it knows of containers in one folder for all daemons.
        let id = format!("{name}-{}", self.folder.file_name().unwrap().display());
        let mut run = self.ctr();
        run.args(["run", "--detach", "--cgroup", &format!("/{id}"), "--rootfs"]);
        output(run.arg(&root).args([&id, "/busybox", "sleep", "1000"]));
        let tasks = self.tasks();
        let line = tasks.lines().find(|line| line.starts_with(&id)).unwrap();
        let pid = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        Native { id, pid }
    }

    /// `ctr tasks list`: id, process and state of each.
    pub fn tasks(&self) -> String {
        output(self.ctr().args(["tasks", "list"]))
    }

    /// Ends an ordinary container, also one that containerd has lost, of which it has left shim and cgroups.
    pub fn end_native(&self, native: &Native) {
        let id = &native.id;
        // containerd may have ended it.
        let _ = kill_process(Pid::from_raw(native.pid).unwrap(), Signal::KILL);
        if self.tasks().contains(id) {
            output(self.ctr().args(["tasks", "delete", "--force", id]));
        } else {
            let mut runc = Command::new("runc");
            output(runc.args(["--root", "/run/containerd/runc/default", "delete", "--force", id]));
            for shim in machine::shim_processes(id) {
                // It takes its socket away.
                let _ = kill_process(Pid::from_raw(shim).unwrap(), Signal::TERM);
            }
            let bundle = format!("state/io.containerd.runtime.v2.task/default/{id}");
            let _ = fs::remove_dir_all(self.folder.join(bundle));
        }
        output(self.ctr().args(["containers", "delete", id]));
    }

    fn ctr(&self) -> Command {
        self.daemon.borrow().ctr()
    }

    pub async fn handlers(&self) -> Vec<String> {
        self.health().await.handlers.into_keys().collect()
    }

    fn expect_nothing_left(&self, mark: &str, before: &Machine) {
        let mut left = Vec::new();
        for _ in 0..400 {
            left = Machine::look(mark).since(before);
            if left.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("left on the machine after the test:\n{}", left.join("\n"));
    }
}

/// Takes the daemon and its folder away, also after a failed test, which shows the end of containerd's log.
struct Swept<'a> {
    node: &'a Node,
    mark: &'a str,
    before: &'a Machine,
}

impl Drop for Swept<'_> {
    fn drop(&mut self) {
        let mut daemon = self.node.daemon.borrow_mut();
        let _ = daemon.end(Signal::TERM);
        if std::thread::panicking() {
            let log = fs::read_to_string(daemon.log()).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("--- the end of containerd's log ({:?})", self.node.version);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        machine::sweep(self.mark, self.before);
        let _ = fs::remove_dir_all(&self.node.folder);
    }
}

/// The journal of a plan that has its permit, as the agent begins it.
pub fn permitted(node: &Node, planned: Planned) -> Journal {
    let permit = Permit {
        plan: planned.plan.hash.clone(),
        attempt: "1".into(),
    };
    Journal::new(permit, planned, &node.layout)
}

/// What a command says that succeeds.
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// The shim under test; cargo builds the workspace's binaries into the parent of the directory of the tests.
fn shim_under_test() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().and_then(Path::parent).unwrap().join(SHIM);
    let shim = binary::under_test(SHIM, built.to_str().unwrap());
    assert!(shim.exists(), "{} is missing: cargo build -p {SHIM}", shim.display());
    shim
}
