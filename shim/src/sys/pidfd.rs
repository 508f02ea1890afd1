//! Processes by pidfd: no pid is ever reused under us.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};

use super::stat::Stat;

/// Opens the process `pid`, non-blocking so that it can be polled.
///
/// # Errors
///
/// `ESRCH` when there is none.
pub fn open(pid: Pid) -> io::Result<OwnedFd> {
    Ok(pidfd_open(pid, PidfdFlags::NONBLOCK)?)
}

/// Sends `signal`.
///
/// # Errors
///
/// `ESRCH` when the process has exited and was reaped, `EINVAL` for a number that is no signal.
pub fn kill(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let signal = Signal::from_named_raw(signal).map_or_else(|| realtime(signal), Ok)?;
    Ok(pidfd_send_signal(pidfd, signal)?)
}

fn realtime(signal: i32) -> io::Result<Signal> {
    if !(libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&signal) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    #[expect(unsafe_code, reason = "rustix has no names for realtime signals")]
    // SAFETY: the number is in the range that libc leaves to programs.
    Ok(unsafe { Signal::from_raw_unchecked(signal) })
}

/// Reaps the child behind `pidfd`, if it has exited: its exit code, or 128 + the signal that ended it.
///
/// # Errors
///
/// What waitid(2) says; `ECHILD` while another process is its parent.
pub fn reap(pidfd: impl AsFd) -> io::Result<Option<u32>> {
    let status = rustix::io::retry_on_intr(|| {
        waitid(
            WaitId::PidFd(pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        )
    });
    match status {
        Ok(None) | Err(rustix::io::Errno::AGAIN) => Ok(None),
        Ok(Some(status)) => {
            let code = status
                .exit_status()
                .or_else(|| status.terminating_signal().map(|signal| 128 + signal));
            Ok(code.and_then(|code| u32::try_from(code).ok()).or(Some(255)))
        }
        Err(error) => Err(error.into()),
    }
}

/// The start time of `pid` in clock ticks since boot, field 22 of proc(5)'s stat: with the pid it names a process.
pub fn start_time(pid: Pid) -> Option<u64> {
    Stat::of(pid.as_raw_nonzero()).ok()?.started()
}
