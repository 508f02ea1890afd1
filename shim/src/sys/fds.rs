//! File descriptors: the table of a forked process, where CLOEXEC does nothing without exec, and polling.

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Closes every fd from 3 up but those in `keep`.
///
/// # Errors
///
/// What close_range(2) says (Linux 5.9).
pub fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep
        .iter()
        .filter_map(|fd| u32::try_from(*fd).ok())
        .filter(|fd| *fd > 2)
        .collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    #[expect(unsafe_code, reason = "rustix offers no close_range")]
    // SAFETY: the caller's contract: a forked child that owns no fd object outside of `keep`.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Registers `fd` with the event loop of the calling task.
///
/// # Errors
///
/// What epoll_ctl(2) says.
pub fn polled(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(unsafe_code, reason = "tokio leaves to the caller that the value keeps its fd")]
    // SAFETY: an OwnedFd names one fd for as long as it lives, and keeps it open.
    let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
    registered.map_err(io::Error::from)
}
