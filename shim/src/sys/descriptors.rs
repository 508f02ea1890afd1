//! The process's table of file descriptors.
#![expect(
    unsafe_code,
    reason = "close_range(2) has no safe wrapper: it closes what others may own"
)]

use std::io;

/// Closes all descriptors from `first` on, whoever owns them: only for a process that has just begun and owns none.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: close_range takes no memory. Descriptors that Rust values own would dangle; callers have none yet.
    match unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
