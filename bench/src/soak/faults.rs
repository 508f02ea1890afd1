//! Performs faults, and waits until the node has got over each: two at once would excuse each other's damage.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;
use rustix::process::Signal;
use tokio::time::sleep;

use crate::events::Listener;
use crate::gate::Gate;
use crate::history::History;
use crate::ledger::Ledger;
use crate::node::{Node, kill};
use crate::plan::Fault;

/// How long events that containerd has taken need to us.
const DRAIN: Duration = Duration::from_millis(200);

pub struct Faults {
    pub node: Arc<Node>,
    pub gate: Gate,
    pub events: Listener,
    pub history: Arc<History>,
    pub ledger: Arc<Ledger>,
}

impl Faults {
    /// Lets `fault` happen and pass.
    pub async fn inject(&self, fault: Fault) -> Result<()> {
        let _lasting = self.history.begin(fault);
        match fault {
            Fault::ServerKilled => {
                let servers = self.node.servers();
                self.ledger.servers_die();
                tokio::task::block_in_place(|| kill(&servers))?;
                // containerd gives each container's `delete` five seconds; an exit is told after it.
                self.until_bundles_of_the_dead_are_gone().await
            }
            Fault::LauncherKilled => {
                let launchers = self.node.launchers();
                tokio::task::block_in_place(|| kill(&launchers))
            }
            Fault::ContainerdKilled(away) => self.restart(Signal::KILL, away).await,
            Fault::ContainerdStopped(away) => self.restart(Signal::TERM, away).await,
            Fault::ShimReplaced => self.node.install_shim(),
            Fault::EventsDown(lasts) => {
                self.gate.shut().await;
                sleep(lasts).await;
                self.gate.open().await;
                Ok(())
            }
            Fault::BundlesFull(lasts) => full(&self.node.bundles(), lasts).await,
            Fault::CacheFull(lasts) => {
                empty(&self.node.cache())?;
                full(&self.node.cache(), lasts).await
            }
            Fault::PidsSpent(lasts) => self.spend_pids(lasts).await,
        }
    }

    async fn restart(&self, signal: Signal, away: Duration) -> Result<()> {
        self.gate.shut().await;
        sleep(DRAIN).await;
        tokio::task::block_in_place(|| self.node.end(signal))?;
        sleep(away).await;
        self.node.start(&self.gate).await?;
        self.events.ready().await;
        self.gate.open().await;
        Ok(())
    }

    /// Waits until containerd has cleaned up after dead servers: every bundle that names an address has a server there.
    async fn until_bundles_of_the_dead_are_gone(&self) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(60);
        let folder = self
            .node
            .bundles()
            .join("io.containerd.runtime.v2.task")
            .join(&self.node.mark);
        let bundles = || -> Vec<PathBuf> {
            let entries = fs::read_dir(&folder).into_iter().flatten();
            entries.flatten().map(|entry| entry.path()).collect()
        };
        let dead = bundles();
        let since = tokio::time::Instant::now();
        while bundles()
            .iter()
            .any(|bundle| dead.contains(bundle) && bundle.join("kubewasi.json").exists())
        {
            if since.elapsed() > PATIENCE {
                bail!("bundles of killed servers are still there after {PATIENCE:?}");
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Puts servers and launchers into a cgroup that allows no more processes than they have.
    async fn spend_pids(&self, lasts: Duration) -> Result<()> {
        let root = [Path::new("/sys/fs/cgroup/pids"), Path::new("/sys/fs/cgroup")];
        let root = root.into_iter().find(|path| path.exists()).context("no pids cgroup")?;
        let group = root.join(&self.node.mark).join("spent");
        fs::create_dir_all(&group)?;
        let victims = [self.node.servers(), self.node.launchers()].concat();
        for pid in &victims {
            enter(&group, *pid)?;
        }
        fs::write(group.join("pids.max"), "1")?;
        sleep(lasts).await;
        fs::write(group.join("pids.max"), "max")?;
        // What they made meanwhile goes back too: where they came from, or to the root of this node.
        let members = fs::read_to_string(group.join("cgroup.procs"))?;
        for pid in members.lines().filter_map(|line| line.parse().ok()) {
            enter(root, pid)?;
        }
        while let Err(error) = fs::remove_dir(&group) {
            if error.kind() != ErrorKind::ResourceBusy {
                return Err(error).context("cannot remove the cgroup");
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

/// Moves a process into a cgroup; one that has ended needs not.
fn enter(group: &Path, pid: i32) -> Result<()> {
    match fs::write(group.join("cgroup.procs"), pid.to_string()) {
        Err(error) if error.raw_os_error() != Some(Errno::SRCH.raw_os_error()) => {
            Err(error).with_context(|| format!("cannot move {pid} into {}", group.display()))
        }
        _ => Ok(()),
    }
}

/// Fills the disk at `folder` to its last byte for a while.
async fn full(folder: &Path, lasts: Duration) -> Result<()> {
    let path = folder.join(".full");
    let mut filled = Ok(());
    let file = File::create(&path)?;
    // Others take and give meanwhile: a second piece takes what is left.
    for piece in 0..2 {
        let disk = statvfs(folder)?;
        let room = disk.f_bavail * disk.f_frsize;
        filled = fallocate(&file, FallocateFlags::empty(), piece << 30, room);
    }
    sleep(lasts).await;
    fs::remove_file(&path)?;
    match filled {
        Err(error) if error != Errno::NOSPC && error != Errno::INVAL => {
            Err(error).with_context(|| format!("cannot fill {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Removes all files of a folder.
fn empty(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}
