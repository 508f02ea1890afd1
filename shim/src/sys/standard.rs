//! The standard streams of this process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Takes stdout away from the process: the caller has it alone, and what is spawned later inherits /dev/null.
pub fn take_stdout() -> io::Result<OwnedFd> {
    let taken = io::stdout().as_fd().try_clone_to_owned()?;
    let null = File::options().write(true).open("/dev/null")?;
    // SAFETY: dup2 between two open descriptors touches no memory; nobody holds an owned descriptor 1, which std itself
    // treats as always open.
    if unsafe { libc::dup2(null.as_raw_fd(), libc::STDOUT_FILENO) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(taken)
}
