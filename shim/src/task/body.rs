//! What a container's processes run in: a sandbox of ours, with one way for the requests to act on it.

use std::io;
use std::sync::Arc;

use oci_spec::runtime::LinuxResources;

use super::error::TaskError;
use super::guest_exec;
use super::process::Process;
use super::service::Node;
use crate::sandbox::process::Guest;
use crate::sys::cgroup::Cgroup;
use crate::sys::child::Child;

/// What a container is.
#[derive(Clone)]
pub enum Body {
    /// A guest or a pod's holder.
    Guest(Arc<Guest>),
}

/// Does what blocks in a thread that may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

impl Body {
    /// The container's first process.
    pub fn child(&self) -> &Arc<Child> {
        match self {
            Body::Guest(guest) => guest.child(),
        }
    }

    /// The cgroup that its processes live in.
    pub fn cgroup(&self) -> &Cgroup {
        match self {
            Body::Guest(guest) => guest.cgroup(),
        }
    }

    /// Lets the first process run.
    ///
    /// # Errors
    ///
    /// When it is dead already.
    pub async fn start(&self) -> io::Result<()> {
        match self {
            Body::Guest(guest) => guest.start(),
        }
    }

    /// Sends `signal` to the first process, or to all.
    ///
    /// # Errors
    ///
    /// `ESRCH` when it has exited, else what kill(2) says.
    pub async fn kill(&self, signal: i32, all: bool) -> io::Result<()> {
        match self {
            Body::Guest(guest) if all => {
                let guest = guest.clone();
                blocking(move || guest.kill_all(signal)).await?
            }
            Body::Guest(guest) => guest.kill(signal),
        }
    }

    /// Freezes all processes.
    ///
    /// # Errors
    ///
    /// What the cgroup's files say; then all run on.
    pub async fn pause(&self) -> io::Result<()> {
        match self {
            Body::Guest(guest) => {
                let guest = guest.clone();
                blocking(move || guest.freeze()).await?
            }
        }
    }

    /// Lets frozen processes run on.
    ///
    /// # Errors
    ///
    /// What the cgroup's files say.
    pub async fn resume(&self) -> io::Result<()> {
        match self {
            Body::Guest(guest) => {
                let guest = guest.clone();
                blocking(move || guest.thaw()).await?
            }
        }
    }

    /// Changes the limits; what `limits` leaves out stays.
    ///
    /// # Errors
    ///
    /// What the controller says of a limit that it does not take, with the file and the value.
    pub async fn update(&self, limits: LinuxResources) -> io::Result<()> {
        match self {
            Body::Guest(guest) => {
                let guest = guest.clone();
                blocking(move || guest.update(&limits)).await?.map_err(io::Error::other)
            }
        }
    }

    /// The figures of its cgroup: type URL and bytes, see [`Guest::stats`].
    ///
    /// # Errors
    ///
    /// When a file of the cgroup cannot be read.
    pub async fn stats(&self) -> io::Result<(String, Vec<u8>)> {
        match self {
            Body::Guest(guest) => {
                let guest = guest.clone();
                blocking(move || guest.stats()).await?
            }
        }
    }

    /// Runs `process`, which is no first one, and gives it its streams.
    ///
    /// # Errors
    ///
    /// What cannot be run, and why.
    pub async fn exec(&self, node: &Node, process: &Process) -> Result<(), TaskError> {
        match self {
            Body::Guest(guest) => guest_exec::run(node, guest, process).await,
        }
    }
}
