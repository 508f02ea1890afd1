//! The file descriptor table of a forked process: CLOEXEC does nothing without exec, so it is pruned by hand.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

/// Closes every fd from 3 up but those in `keep`.
///
/// # Errors
///
/// What close_range(2) says (Linux 5.9).
pub fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).filter(|fd| *fd > 2).collect();
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
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Puts `fd` at number `target`, closing what was there, and forgets ownership of both: for the standard streams,
/// which live as long as the process.
///
/// # Errors
///
/// What dup2(2) says.
pub fn install(fd: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    #[expect(unsafe_code, reason = "dup2 onto a number that nothing owns")]
    // SAFETY: `target` is one of 0, 1, 2, which no OwnedFd of this process owns; it is forgotten again at once.
    let mut place = unsafe { OwnedFd::from_raw_fd(target) };
    let result = rustix::io::dup2(fd, &mut place);
    let _ = place.into_raw_fd();
    Ok(result?)
}

/// Takes ownership of the standard input and leaves /dev/null in its place: how a child receives its one socket.
///
/// # Errors
///
/// What dup(2) and open(2) say.
pub fn take_stdin() -> io::Result<OwnedFd> {
    let socket = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    let null = std::fs::File::open("/dev/null")?;
    install(null.as_fd(), 0)?;
    Ok(socket)
}
