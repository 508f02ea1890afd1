//! The standard streams of this process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

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

/// Takes stdin away from the process: the caller has it alone, and what is started later inherits /dev/null.
///
/// # Errors
///
/// What fcntl(2), open(2) and dup2(2) say.
pub fn take_stdin() -> io::Result<OwnedFd> {
    take(io::stdin().as_fd(), libc::STDIN_FILENO)
}

/// As [`take_stdin`], for stdout.
///
/// # Errors
///
/// As [`take_stdin`].
pub fn take_stdout() -> io::Result<OwnedFd> {
    take(io::stdout().as_fd(), libc::STDOUT_FILENO)
}

fn take(stream: BorrowedFd<'_>, number: RawFd) -> io::Result<OwnedFd> {
    let taken = rustix::io::fcntl_dupfd_cloexec(stream, 3)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    install(null.as_fd(), number)?;
    Ok(taken)
}
