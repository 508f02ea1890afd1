//! What a container's processes run in: a sandbox of ours, with one way for the requests to act on it.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use oci_spec::runtime::LinuxResources;

use super::error::TaskError;
use super::guest_exec;
use super::process::Process;
use super::service::Node;
use crate::image::Image;
use crate::native;
use crate::sandbox::process::Guest;
use crate::sandbox::resources;
use crate::sys::cgroup::Cgroup;
use crate::sys::child::Child;

/// What a container is.
#[derive(Clone)]
pub enum Body {
    /// A guest or a pod's holder.
    Guest(Arc<Guest>),
    Native(Arc<native::Container>),
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
            Body::Native(container) => container.child(),
        }
    }

    /// The cgroup that its processes live in.
    pub fn cgroup(&self) -> &Cgroup {
        match self {
            Body::Guest(guest) => guest.cgroup(),
            Body::Native(container) => container.cgroup(),
        }
    }

    /// Lets the first process run.
    ///
    /// # Errors
    ///
    /// When it is dead already, or what a native container's runtime says.
    pub async fn start(&self, id: &str) -> Result<(), TaskError> {
        match self {
            Body::Guest(guest) => guest.start().map_err(|error| {
                tracing::warn!(%error, "the start could not be given");
                TaskError::DeadAtStart { id: id.to_owned() }
            }),
            Body::Native(container) => Ok(container.start().await?),
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
            Body::Native(container) => container.kill(signal, all).await,
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
            Body::Native(container) => container.pause().await.map_err(io::Error::other),
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
            Body::Native(container) => container.resume().await.map_err(io::Error::other),
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
            Body::Native(container) => container.update(&limits).await.map_err(io::Error::other),
        }
    }

    /// The figures of its cgroup: type URL and bytes, see [`resources::metrics`].
    ///
    /// # Errors
    ///
    /// When a file of the cgroup cannot be read.
    pub async fn stats(&self) -> io::Result<(String, Vec<u8>)> {
        let cgroup = self.cgroup().clone();
        blocking(move || resources::metrics(&cgroup)).await?
    }

    /// The pids of all processes that live, in the server's namespace.
    ///
    /// # Errors
    ///
    /// What a native container's runtime says.
    pub async fn pids(&self) -> io::Result<Vec<u32>> {
        match self {
            Body::Guest(guest) => {
                let pids = guest.cgroup().pids().into_iter();
                Ok(pids
                    .filter_map(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok())
                    .collect())
            }
            Body::Native(container) => container.pids().await.map_err(io::Error::other),
        }
    }

    /// Ends what has outlived the first process, where no pid namespace ended with that.
    ///
    /// # Errors
    ///
    /// `TimedOut` when processes are left after two seconds.
    pub async fn end_rest(&self) -> io::Result<()> {
        match self {
            // What was exec'd beside it was ended, but not what that has started itself.
            Body::Guest(guest) => {
                let cgroup = guest.cgroup().clone();
                blocking(move || cgroup.kill()).await?
            }
            Body::Native(container) => container.end_rest().await,
        }
    }

    /// Runs `process`, which is no first one, and gives it its streams; `image` is the container's, where that is known.
    ///
    /// # Errors
    ///
    /// What cannot be run, and why.
    pub async fn exec(
        &self,
        node: &Node,
        process: &Process,
        image: Option<&Image>,
        deadline: Option<Instant>,
    ) -> Result<(), TaskError> {
        match self {
            Body::Guest(guest) => guest_exec::run(node, guest, process, image, deadline).await,
            Body::Native(container) => {
                let Some(spec) = &process.spec else {
                    return Err(process.facts.unknown());
                };
                let facts = &process.facts;
                let born = container.exec(spec, &facts.streams, facts.terminal).await?;
                process.adopt(born.child, born.kept, born.console);
                Ok(())
            }
        }
    }
}
