//! Programs that this process runs, which are not to outlive it nor to inherit what is its own.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::process::Command;

use super::{credentials, open_files};

/// Has the kernel kill the program when the thread that spawns it ends, and with it this process: spawn from a thread
/// that lives on, such as the runtime's own.
pub fn die_with_us(command: &mut Command) {
    before_exec(command, || Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
}

/// Gives the program the limit of open files that this process began with.
pub fn limit_open_files(command: &mut Command) {
    if let Some(limit) = open_files::before() {
        before_exec(command, move || credentials::limit(limit));
    }
}

/// Has the program lead a session of its own.
pub fn new_session(command: &mut Command) {
    before_exec(command, || Ok(rustix::process::setsid().map(drop)?));
}

/// The first fd after the standard streams.
const FIRST_PASSED: RawFd = 3;

/// Has the program get `files` as its fds 3 and on. What comes back is to be kept until it has been spawned, and dropped
/// then.
///
/// # Errors
///
/// What fcntl(2) says.
pub fn pass_files<const N: usize>(command: &mut Command, files: [OwnedFd; N]) -> io::Result<Vec<OwnedFd>> {
    let after = FIRST_PASSED + RawFd::try_from(N).map_err(io::Error::other)?;
    let mut kept = Vec::with_capacity(3 * N);
    for (file, target) in files.iter().zip(FIRST_PASSED..) {
        let copy = fcntl_dupfd_cloexec(file, after)?;
        let number = copy.as_raw_fd();
        kept.push(copy);
        before_exec(command, move || place(number, target));
    }
    for file in &files {
        // Takes those of the numbers that are free: the pipe by which a spawn hears of a failed exec must not be there.
        kept.push(fcntl_dupfd_cloexec(file, FIRST_PASSED)?);
    }
    // They may have such numbers themselves, which would be free without them.
    kept.extend(files);
    Ok(kept)
}

/// Puts a copy of the open file `number` at `target`, in a process that is about to execute another program.
fn place(number: RawFd, target: RawFd) -> io::Result<()> {
    #[expect(unsafe_code, reason = "dup2 onto a number whose owner stays behind in the parent")]
    // SAFETY: both are plain numbers; what was open at `target` is closed in this process alone, before its exec.
    match unsafe { libc::dup2(number, target) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Has `call`, one system call, made between fork and exec.
fn before_exec(command: &mut Command, call: impl FnMut() -> io::Result<()> + Send + Sync + 'static) {
    #[expect(unsafe_code, reason = "what runs between fork and exec has few calls to choose from")]
    // SAFETY: the callers make one system call (prctl(2), prlimit(2), dup2(2), setsid(2)), which allocates nothing and takes
    // no lock.
    unsafe {
        command.pre_exec(call);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passed_files_keep_their_numbers_taken_until_the_spawn() {
        let files = [io::pipe().unwrap().0, io::pipe().unwrap().0].map(OwnedFd::from);
        let numbers = [files[0].as_raw_fd(), files[1].as_raw_fd()];
        let kept = pass_files(&mut Command::new("/bin/true"), files).unwrap();
        for number in numbers {
            assert!(kept.iter().any(|file| file.as_raw_fd() == number), "{number}");
        }
    }
}
