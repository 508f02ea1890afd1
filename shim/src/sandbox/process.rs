//! A forked process as the server holds it: by pidfd, with its reports, until its exit is known.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use oci_spec::runtime::LinuxResources;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::children::Children;
use super::control::SandboxError;
use super::protocol::{ADOPTED, MESSAGE, Report, START, decode};
use super::resources;
use crate::sys::cgroup::Cgroup;
use crate::sys::{fds, freezer, pidfd, seqpacket};

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 + the signal.
    pub code: u32,
    pub at: SystemTime,
    /// What the guest process said of its end: a trap's message, say.
    pub message: Option<String>,
}

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
    pid: u32,
    handle: Arc<AsyncFd<OwnedFd>>,
    socket: Arc<AsyncFd<OwnedFd>>,
    cgroup: Cgroup,
    exit: watch::Receiver<Option<Exit>>,
    /// SIGKILL was sent: nothing may stay frozen that would keep it from working.
    killed: AtomicBool,
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
        cgroup: Cgroup,
        children: Arc<Children>,
    ) -> Result<Guest, SandboxError> {
        let resource = |what| move |error| SandboxError::Resource(what, error);
        let pid = u32::try_from(raw).map_err(io::Error::other).map_err(resource("pid"))?;
        let handle = fds::polled(handle, Interest::READABLE).map_err(resource("pidfd"))?;
        let (handle, socket) = (Arc::new(handle), Arc::new(socket));
        let (sender, exit) = watch::channel(None);
        children.watch(raw);
        let (watched, reports) = (handle.clone(), socket.clone());
        tokio::spawn(async move {
            let code = reaped(&watched).await;
            children.forget(raw);
            let message = last_words(&reports);
            // Nobody waits when the container is deleted already.
            let _ = sender.send(Some(Exit {
                code,
                at: SystemTime::now(),
                message,
            }));
        });
        Ok(Guest {
            pid,
            handle,
            socket,
            cgroup,
            exit,
            killed: AtomicBool::new(false),
        })
    }

    /// The pid in the server's pid namespace.
    pub fn pid(&self) -> u32 {
        self.pid
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

    /// The cgroup that it lives in.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Sends `signal` through the pidfd. SIGKILL also thaws the cgroup, where a frozen process of v1 would not take it;
    /// all other signals wait until the container is resumed, as runc has it.
    ///
    /// # Errors
    ///
    /// `ESRCH` when it has exited, `EINVAL` for a number that is no signal; what thawing says.
    pub fn kill(&self, signal: i32) -> io::Result<()> {
        if self.exit.borrow().is_some() {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        pidfd::kill(self.handle.get_ref(), signal)?;
        if signal == libc::SIGKILL {
            self.killed.store(true, Ordering::SeqCst);
            freezer::thaw(&self.cgroup)?;
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
        for pid in self.cgroup.pids() {
            let myself = u32::try_from(pid.as_raw_nonzero().get()) == Ok(self.pid);
            // The pid of a process that has ended may be another's by now: what counts is who is in the cgroup while we
            // hold its pidfd.
            let Some(handle) = (!myself).then(|| pidfd::open(pid).ok()).flatten() else {
                continue;
            };
            if self.cgroup.pids().contains(&pid) {
                // One that ends by itself is what was wanted.
                let _ = pidfd::kill(&handle, signal);
            }
        }
        Ok(())
    }

    /// Freezes every process of the cgroup, two seconds at most. Blocks.
    ///
    /// # Errors
    ///
    /// What the cgroup's files say, `TimedOut` when a process does not freeze; then all run on.
    pub fn freeze(&self) -> io::Result<()> {
        let frozen = freezer::freeze(&self.cgroup);
        if self.killed.load(Ordering::SeqCst) {
            // The SIGKILL came first, and its thawing may have been for nothing.
            freezer::thaw(&self.cgroup)?;
        }
        frozen
    }

    /// Lets every process of the cgroup run on.
    ///
    /// # Errors
    ///
    /// What the cgroup's files say.
    pub fn thaw(&self) -> io::Result<()> {
        freezer::thaw(&self.cgroup)
    }

    /// Changes the cgroup's limits; what `limits` leaves out stays. Blocks.
    ///
    /// # Errors
    ///
    /// What the controller says of a limit that it does not take, with the file and the value.
    pub fn update(&self, limits: &LinuxResources) -> Result<(), String> {
        resources::apply(&self.cgroup, limits)
    }

    /// Resolves when the process has exited; may be awaited by any number of callers, before and after.
    pub async fn exited(&self) -> Exit {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
        // The watcher sends before it ends, so only its own panic leaves nothing.
        ended.unwrap_or(Exit {
            code: 255,
            at: SystemTime::now(),
            message: None,
        })
    }

    /// The cgroup's figures as containerd's `io.containerd.cgroups.v1.Metrics` or `v2.Metrics`: type URL and bytes.
    ///
    /// # Errors
    ///
    /// When a file of the cgroup cannot be read.
    pub fn stats(&self) -> io::Result<(String, Vec<u8>)> {
        resources::metrics(&self.cgroup)
    }
}

/// Waits for the process's end and reaps it: its exit code.
async fn reaped(handle: &AsyncFd<OwnedFd>) -> u32 {
    let reap = |handle: &OwnedFd| pidfd::reap(handle)?.ok_or(io::ErrorKind::WouldBlock.into());
    handle.async_io(Interest::READABLE, reap).await.unwrap_or(255)
}

/// What an ended process said of its end.
fn last_words(socket: &AsyncFd<OwnedFd>) -> Option<String> {
    let mut buffer = vec![0; MESSAGE];
    let (length, _) = seqpacket::receive(socket.get_ref(), &mut buffer).ok()?;
    match decode(&buffer[..length]) {
        Some(Report::Ended { message }) => Some(message),
        _ => None,
    }
}
