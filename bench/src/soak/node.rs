//! The node that is worn out: a containerd of its own with small disks for bundles and artifacts, and its processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kubewasi_bench::client::{Client, rootfs};
use kubewasi_testbed::daemon::Daemon;
use kubewasi_testbed::machine;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::gate::Gate;
use crate::life::{NATIVE, WORLDS};

/// How long containerd may take to come up.
const START: Duration = Duration::from_secs(60);

/// The name by which containerd finds the shim.
const SHIM: &str = "containerd-shim-wasi-v1";

pub struct Node {
    /// The name of its folder and its containerd namespace; processes are known by it.
    pub mark: String,
    pub folder: PathBuf,
    /// The shim as it was built.
    built: PathBuf,
    daemon: Mutex<Daemon>,
    socket: PathBuf,
}

impl Node {
    /// Prepares a node for the shim `built`, the containerd in `binaries` and the probes in `guests`.
    pub fn new(built: &Path, binaries: &Path, guests: &Path) -> Result<Node> {
        let mark = format!("kubewasi-soak{}", std::process::id());
        let folder = Path::new("/tmp").join(&mark);
        let daemon = Daemon::new(binaries.to_owned(), folder.clone());
        let node = Node {
            mark,
            folder,
            built: built.to_owned(),
            socket: daemon.socket(),
            daemon: Mutex::new(daemon),
        };
        for name in ["bin", "fifos", "layer", "snapshots", "state", "cache"] {
            fs::create_dir_all(node.folder.join(name))?;
        }
        for disk in [node.bundles(), node.cache()] {
            mount(
                "tmpfs",
                &disk,
                "tmpfs",
                MountFlags::empty(),
                Some(c"size=64m,mode=0700"),
            )
            .with_context(|| format!("cannot mount a tmpfs at {}", disk.display()))?;
        }
        node.install_shim()?;
        for program in WORLDS.into_iter().chain([NATIVE]) {
            let copied = fs::copy(guests.join(program), node.layer().join(program));
            copied.with_context(|| format!("no guest {program}"))?;
        }
        fs::write(
            node.options(),
            format!(
                "cache_dir = {:?}\nidle_timeout = 2\n",
                node.cache().display().to_string()
            ),
        )?;
        Ok(node)
    }

    /// The file system of containerd's state, and so of the bundles.
    pub fn bundles(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// The file system of the artifact cache.
    pub fn cache(&self) -> PathBuf {
        self.folder.join("cache")
    }

    pub fn options(&self) -> PathBuf {
        self.folder.join("options.toml")
    }

    /// The folder that holds the probes.
    fn layer(&self) -> PathBuf {
        self.folder.join("layer")
    }

    /// Where fifos are made.
    pub fn fifos(&self) -> PathBuf {
        self.folder.join("fifos")
    }

    /// Makes the writable layer of a container, and tells how to mount its root filesystem.
    pub fn rootfs(&self, id: &str) -> Result<containerd_client::types::Mount> {
        rootfs(&self.layer(), &self.snapshot(id))
    }

    /// The writable layer of a container.
    pub fn snapshot(&self, id: &str) -> PathBuf {
        self.folder.join("snapshots").join(id)
    }

    /// Puts a copy of the shim where containerd finds it, as an upgrade does: by a rename.
    pub fn install_shim(&self) -> Result<()> {
        let shims = self.daemon().shims();
        let new = shims.join("new");
        fs::copy(&self.built, &new).with_context(|| format!("cannot copy {}", self.built.display()))?;
        fs::rename(new, shims.join(SHIM))?;
        Ok(())
    }

    /// Connects to its containerd.
    pub async fn connect(&self) -> Result<Client> {
        let since = Instant::now();
        loop {
            match Client::connect(&self.socket, &self.mark).await {
                Ok(client) => return Ok(client),
                Err(error) if since.elapsed() > START => {
                    return Err(error).context(format!("containerd is not up after {START:?}"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Where containerd takes events.
    pub fn endpoint(&self) -> PathBuf {
        self.socket.with_extension("sock.ttrpc")
    }

    /// Starts containerd behind `gate`.
    pub async fn start(&self, gate: &Gate) -> Result<()> {
        let mut config =
            "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.nri.v1.nri\"]\n"
                .to_owned();
        config += &self.daemon().private();
        self.daemon().start(&config)?;
        tokio::task::block_in_place(|| gate.stand(START))?;
        self.connect().await.map(drop)
    }

    /// Ends containerd by `signal`.
    pub fn end(&self, signal: Signal) -> Result<()> {
        Ok(self.daemon().end(signal)?)
    }

    fn daemon(&self) -> MutexGuard<'_, Daemon> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn servers(&self) -> Vec<i32> {
        machine::running(&self.mark, "serve")
    }

    /// The servers' launchers. What they fork looks like them, but is younger, and soon in a session of its own.
    pub fn launchers(&self) -> Vec<i32> {
        let servers = self.servers();
        let forked = machine::running(&self.mark, "launch");
        let mut kin: Vec<(Kin, i32)> = forked.iter().filter_map(|pid| Some((kin(*pid)?, *pid))).collect();
        kin.sort_by_key(|(kin, _)| kin.started);
        let eldest = |server: &i32| {
            let mut children = kin
                .iter()
                .filter(|(kin, _)| kin.parent == *server && kin.session == *server);
            children.next().map(|(_, pid)| *pid)
        };
        servers.iter().filter_map(eldest).collect()
    }

    /// Unmounts its disks and removes its folder.
    pub fn remove(&self) -> Result<()> {
        for disk in [self.bundles(), self.cache()] {
            unmount(&disk, UnmountFlags::DETACH)?;
        }
        fs::remove_dir_all(&self.folder).with_context(|| format!("cannot remove {}", self.folder.display()))
    }
}

/// Sends SIGKILL to processes and waits until they are gone.
pub fn kill(pids: &[i32]) -> Result<()> {
    for pid in pids.iter().filter_map(|pid| Pid::from_raw(*pid)) {
        // One that has just ended is no failure.
        let _ = kill_process(pid, Signal::KILL);
    }
    let since = Instant::now();
    while pids.iter().any(|pid| alive(*pid)) {
        if since.elapsed() > Duration::from_secs(30) {
            bail!("{pids:?} are still there 30 seconds after SIGKILL");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Whether there is such a process that has not ended; a zombie has.
fn alive(pid: i32) -> bool {
    kin(pid).is_some_and(|kin| !matches!(kin.state, 'Z' | 'X'))
}

/// What /proc/<pid>/stat says of a process (proc_pid_stat(5)).
struct Kin {
    state: char,
    parent: i32,
    session: i32,
    /// In clock ticks since the machine's start.
    started: u64,
}

fn kin(pid: i32) -> Option<Kin> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    Some(Kin {
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}
