//! A forked process as the server holds it: by pidfd, with its reports, until its exit is known.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::children::Children;
use super::control::SandboxError;
use super::protocol::{ADOPTED, MESSAGE, Report, START, decode};
use super::resources;
use crate::sys::cgroup::Cgroup;
use crate::sys::{fds, pidfd, seqpacket};

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

    /// Sends `signal` through the pidfd.
    ///
    /// # Errors
    ///
    /// `ESRCH` when it has exited, `EINVAL` for a number that is no signal.
    pub fn kill(&self, signal: i32) -> io::Result<()> {
        if self.exit.borrow().is_some() {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        pidfd::kill(self.handle.get_ref(), signal)
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
