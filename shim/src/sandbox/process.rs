//! A forked process as the server holds it: by pidfd, with its reports, until its exit is known.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use oci_spec::runtime::LinuxResources;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::control::SandboxError;
use super::group::{Group, GroupError};
use super::protocol::{ADOPTED, MADE, MESSAGE, Report, START, decode};
use crate::sys::cgroup::Cgroup;
use crate::sys::child::Child;
use crate::sys::children::Children;
use crate::sys::{freezer, seqpacket};

/// The next report; `None` when the process is gone.
pub async fn receive(socket: &AsyncFd<OwnedFd>) -> Option<Report> {
    let mut buffer = vec![0; MESSAGE];
    let received = socket
        .async_io(Interest::READABLE, |socket| seqpacket::receive(socket, &mut buffer))
        .await
        .ok()?;
    decode(&buffer[..received.0])
}

/// A forked process: confined, loaded, waiting for its start, running, or ended.
pub struct Guest {
    child: Arc<Child>,
    socket: Arc<AsyncFd<OwnedFd>>,
    group: Group,
    /// Where it counts, if it is a service.
    counters: Option<Arc<File>>,
}

impl Guest {
    /// Watches the forked process `raw`, whose reports arrive at `socket`.
    ///
    /// # Errors
    ///
    /// When its pidfd cannot be polled.
    pub fn new(
        raw: i32,
        handle: OwnedFd,
        socket: AsyncFd<OwnedFd>,
        group: Group,
        counters: Option<File>,
        children: &Arc<Children>,
    ) -> Result<Guest, SandboxError> {
        let socket = Arc::new(socket);
        let reports = socket.clone();
        let child = children
            .watch(raw, handle, move || last_words(&reports))
            .map_err(|error| SandboxError::Resource("pidfd", error))?;
        Ok(Guest {
            child: Arc::new(child),
            socket,
            group,
            counters: counters.map(Arc::new),
        })
    }

    /// The process itself.
    pub fn child(&self) -> &Arc<Child> {
        &self.child
    }

    /// The counters of a service, see [`crate::guest::http::figures`].
    pub fn counters(&self) -> Option<&Arc<File>> {
        self.counters.as_ref()
    }

    /// Tells the process that the scope it waits for is there.
    ///
    /// # Errors
    ///
    /// `EPIPE` when it is already dead.
    pub fn enter(&self) -> io::Result<()> {
        seqpacket::send(self.socket.get_ref(), MADE, &[])
    }

    /// Tells the process that its parent is this server now.
    ///
    /// # Errors
    ///
    /// `EPIPE` when it is already dead.
    pub fn adopt(&self) -> io::Result<()> {
        seqpacket::send(self.socket.get_ref(), ADOPTED, &[])
    }

    /// The next report; `None` when the process is gone.
    pub async fn report(&self) -> Option<Report> {
        receive(&self.socket).await
    }

    /// Lets the guest run.
    ///
    /// # Errors
    ///
    /// `EPIPE` when it is already dead.
    pub fn start(&self) -> io::Result<()> {
        seqpacket::send(self.socket.get_ref(), START, &[])
    }

    /// The cgroup that it lives in, and its scope.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// The cgroup that it lives in.
    pub fn cgroup(&self) -> &Cgroup {
        &self.group.cgroup
    }

    /// Sends `signal` through the pidfd. SIGKILL also thaws the cgroup, where a frozen process of v1 would not take it;
    /// all other signals wait until the container is resumed, as runc has it.
    ///
    /// # Errors
    ///
    /// `ESRCH` when it has exited, `EINVAL` for a number that is no signal; what thawing says.
    pub fn kill(&self, signal: i32) -> io::Result<()> {
        self.child.kill(signal)?;
        if signal == libc::SIGKILL {
            freezer::thaw(&self.group.cgroup)?;
        }
        Ok(())
    }

    /// Sends `signal` to every process of the cgroup, this one first.
    ///
    /// # Errors
    ///
    /// As [`Guest::kill`].
    pub fn kill_all(&self, signal: i32) -> io::Result<()> {
        self.kill(signal)?;
        self.group.cgroup.signal_others(self.child.pid(), signal);
        Ok(())
    }

    /// Freezes every process of the cgroup, two seconds at most. Blocks.
    ///
    /// # Errors
    ///
    /// What the cgroup's files say, `TimedOut` when a process does not freeze; then all run on.
    pub fn freeze(&self) -> io::Result<()> {
        let frozen = freezer::freeze(&self.group.cgroup);
        if self.child.was_killed() {
            // The SIGKILL came first, and its thawing may have been for nothing.
            freezer::thaw(&self.group.cgroup)?;
        }
        frozen
    }

    /// Lets every process of the cgroup run on.
    ///
    /// # Errors
    ///
    /// What the cgroup's files say.
    pub fn thaw(&self) -> io::Result<()> {
        freezer::thaw(&self.group.cgroup)
    }

    /// Changes the cgroup's limits; what `limits` leaves out stays. Blocks.
    ///
    /// # Errors
    ///
    /// What systemd or the controller says of a limit that it does not take, with the file and the value.
    pub fn update(&self, limits: &LinuxResources) -> Result<(), GroupError> {
        self.group.update(limits)
    }
}

/// What an ended process said of its end.
fn last_words(socket: &AsyncFd<OwnedFd>) -> Option<String> {
    let mut buffer = vec![0; MESSAGE];
    let (length, _) = seqpacket::receive(socket.get_ref(), &mut buffer).ok()?;
    match decode(&buffer[..length]) {
        Some(Report::Ended { message } | Report::Failed { message }) => Some(message),
        _ => None,
    }
}
