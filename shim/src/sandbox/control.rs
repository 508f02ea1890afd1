//! The server's side of the launcher: asks for processes, holds their pidfds, hears their verdicts.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::SystemTime;

use super::plan::Plan;
use crate::compile::Artifact;

/// The three standard streams of a process; `None` is /dev/null.
#[derive(Debug, Default)]
pub struct Stdio {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 + the signal.
    pub code: u32,
    pub at: SystemTime,
    /// What the guest process said of its end: a trap's message, say.
    pub message: Option<String>,
}

/// Why a process could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("the launcher is gone")]
    LauncherGone(#[source] io::Error),
}

/// The launcher of this server; started again when it dies.
pub struct Launcher;

/// A forked process: confined, loaded, waiting for its start.
pub struct Guest;

impl Launcher {
    /// Starts a launcher process.
    pub async fn start() -> Result<Launcher, SandboxError> {
        todo!()
    }

    /// Forks a process for `plan`, whose record goes into `bundle` first. When this returns an error nothing is left.
    pub async fn spawn(
        &self,
        _bundle: &Path,
        _plan: &Plan,
        _stdio: Stdio,
        _artifact: Option<&Artifact>,
    ) -> Result<Guest, SandboxError> {
        todo!()
    }
}

impl Guest {
    /// The pid in the server's pid namespace.
    pub fn pid(&self) -> u32 {
        todo!()
    }

    /// Lets the guest run. An error when it is already dead.
    pub fn start(&self) -> io::Result<()> {
        todo!()
    }

    /// Sends `signal` through the pidfd; `ESRCH` when it has exited.
    pub fn kill(&self, _signal: i32) -> io::Result<()> {
        todo!()
    }

    /// Resolves when the process has exited; may be awaited by any number of callers, before and after.
    pub async fn exited(&self) -> Exit {
        todo!()
    }

    /// The cgroup's figures as containerd's `io.containerd.cgroups.v1.Metrics` or `v2.Metrics`: type URL and bytes.
    pub fn stats(&self) -> io::Result<(String, Vec<u8>)> {
        todo!()
    }
}
