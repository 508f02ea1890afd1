//! The signals of a guest: as pid 1 of its namespace the default actions do nothing, so they are handlers here.

use std::io;

/// The signals that end a command at once.
const ENDING: [libc::c_int; 5] = [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGUSR1];

/// Makes every ending signal exit the process with 128 + its number, also while it waits for its start, and lets the
/// kernel reap: as pid 1 it becomes the parent of what processes exec'd beside it leave behind.
///
/// # Errors
///
/// What sigaction(2) says.
pub fn end_on_signals() -> io::Result<()> {
    extern "C" fn end(signal: libc::c_int) {
        crate::sys::fork::exit(128 + signal)
    }
    ENDING
        .iter()
        .try_for_each(|signal| handle(*signal, end as *const () as libc::sighandler_t))?;
    handle(libc::SIGCHLD, libc::SIG_IGN)
}

/// Makes TERM and INT exit with 0, as the pause container does, and lets the kernel reap orphans.
///
/// # Errors
///
/// What sigaction(2) says.
pub fn hold_like_pause() -> io::Result<()> {
    extern "C" fn end(_: libc::c_int) {
        crate::sys::fork::exit(0)
    }
    handle(libc::SIGTERM, end as *const () as libc::sighandler_t)?;
    handle(libc::SIGINT, end as *const () as libc::sighandler_t)?;
    handle(libc::SIGCHLD, libc::SIG_IGN)
}

/// Has `register` handle SIGTERM in place of [`end_on_signals`], whose handler it would else run too: a library that
/// handles signals calls whoever did before it. One that comes meanwhile is kept for it.
///
/// # Errors
///
/// What sigaction(2), sigprocmask(2) and `register` say.
pub fn hand_over_termination<T>(register: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    mask(&[libc::SIGTERM])?;
    handle(libc::SIGTERM, libc::SIG_DFL)?;
    let registered = register()?;
    unblock_all()?;
    Ok(registered)
}

/// Gives every signal its default action, before another program is executed: what is ignored stays so over execve(2),
/// and whoever started containerd may have ignored some. The C library keeps its own to itself.
///
/// # Errors
///
/// What sigaction(2) says.
pub fn default_all() -> io::Result<()> {
    (1..32)
        .chain(libc::SIGRTMIN()..=libc::SIGRTMAX())
        .filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal))
        .try_for_each(|signal| handle(signal, libc::SIG_DFL))
}

fn handle(signal: libc::c_int, handler: libc::sighandler_t) -> io::Result<()> {
    #[expect(unsafe_code, reason = "rustix leaves sigaction to libc")]
    // SAFETY: the handlers call _exit alone, which is async-signal-safe; the struct is zeroed, then filled. A guest's
    // stack may be a fiber's or exhausted, so the handler runs on the alternate stack when there is one.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_ONSTACK;
        libc::sigaction(signal, &action, std::ptr::null_mut())
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Unblocks every signal: the mask is inherited through forks.
///
/// # Errors
///
/// What sigprocmask(2) says.
pub fn unblock_all() -> io::Result<()> {
    mask(&[])
}

/// Blocks these signals and no others.
fn mask(blocked: &[libc::c_int]) -> io::Result<()> {
    #[expect(unsafe_code, reason = "rustix leaves sigprocmask to libc")]
    // SAFETY: the set is initialised by sigemptyset before it is read, and the signals are constants of libc.
    let result = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in blocked {
            libc::sigaddset(&mut set, *signal);
        }
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut())
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
