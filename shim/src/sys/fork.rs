//! Fork without exec: libc's own fork, from a process that is proven to have one thread.

use std::io;

use rustix::process::Pid;

use super::stat::Stat;

/// Which side of a fork this is.
pub enum Fork {
    /// The parent, with the child's pid in the parent's pid namespace.
    Parent(Pid),
    /// The child.
    Child,
}

/// Forks the calling process.
///
/// libc's fork, not a raw clone: it runs the atfork handlers and renews libc's cached thread id, without which an
/// abort in the child would hit the parent.
///
/// # Errors
///
/// `EDEADLK` when the process has more than one thread: a lock that another thread holds would stay locked in the
/// child for ever. Else what fork(2) says.
pub fn fork() -> io::Result<Fork> {
    if threads()? != 1 {
        return Err(io::Error::from_raw_os_error(libc::EDEADLK));
    }
    #[expect(unsafe_code, reason = "rustix offers no fork")]
    // SAFETY: the process has one thread, so no lock is held by a thread that the child lacks, and every libc and
    // allocator call is allowed in the child.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Pid::from_raw(pid)
            .map(Fork::Parent)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// The number of threads of this process.
///
/// # Errors
///
/// When `/proc` is not there or not what proc(5) says.
pub fn threads() -> io::Result<usize> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "/proc/self/stat has no num_threads");
    Stat::own()?.threads().ok_or_else(invalid)
}

/// Ends the process now, without destructors or atexit handlers, as a forked child must.
pub fn exit(code: i32) -> ! {
    #[expect(unsafe_code, reason = "rustix offers no _exit with libc's semantics")]
    // SAFETY: _exit never returns and touches no memory of the process.
    unsafe {
        libc::_exit(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fork_is_refused_while_a_second_thread_lives() {
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || receiver.recv());
        assert!(matches!(fork(), Err(error) if error.raw_os_error() == Some(libc::EDEADLK)));
        drop(sender);
        other.join().unwrap().unwrap_err();
    }
}
