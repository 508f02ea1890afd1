//! A child of this process that is watched by its pidfd and reaped when it ends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::{fds, pidfd};

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 + the signal.
    pub code: u32,
    pub at: SystemTime,
    /// What the process said of its end: a trap's message, say.
    pub message: Option<String>,
}

/// A process whose end is waited for; its pid is not used again before.
pub struct Child {
    pid: u32,
    handle: Arc<AsyncFd<OwnedFd>>,
    exit: watch::Receiver<Option<Exit>>,
    killed: AtomicBool,
}

impl Child {
    /// Watches the child `raw`, whose pidfd is `handle`. Once it is reaped, `last_words` says what it said of its end.
    ///
    /// # Errors
    ///
    /// When the pidfd cannot be polled, or `raw` is no pid.
    pub fn watch(
        raw: i32,
        handle: OwnedFd,
        last_words: impl FnOnce() -> Option<String> + Send + 'static,
    ) -> io::Result<Child> {
        let pid = u32::try_from(raw).map_err(io::Error::other)?;
        let handle = Arc::new(fds::polled(handle, Interest::READABLE)?);
        let (sender, exit) = watch::channel(None);
        let watched = handle.clone();
        tokio::spawn(async move {
            let code = reaped(&watched).await;
            // Nobody waits when the container is deleted already.
            let _ = sender.send(Some(Exit {
                code,
                at: SystemTime::now(),
                message: last_words(),
            }));
        });
        Ok(Child {
            pid,
            handle,
            exit,
            killed: AtomicBool::new(false),
        })
    }

    /// The pid in the server's pid namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The pidfd, by which its namespaces can be joined.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.handle.get_ref().as_fd()
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
        if signal == libc::SIGKILL {
            self.killed.store(true, Ordering::SeqCst);
        }
        pidfd::kill(self.handle.get_ref(), signal)
    }

    /// Whether SIGKILL was sent.
    pub fn was_killed(&self) -> bool {
        self.killed.load(Ordering::SeqCst)
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
}

/// Waits for the process's end and reaps it: its exit code.
async fn reaped(handle: &AsyncFd<OwnedFd>) -> u32 {
    let reap = |handle: &OwnedFd| pidfd::reap(handle)?.ok_or(io::ErrorKind::WouldBlock.into());
    handle.async_io(Interest::READABLE, reap).await.unwrap_or(255)
}
