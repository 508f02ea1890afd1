//! Programs that this process runs, which are not to outlive it nor to inherit what is its own.

use std::io;

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

/// Has `call`, one system call, made between fork and exec.
fn before_exec(command: &mut Command, call: impl FnMut() -> io::Result<()> + Send + Sync + 'static) {
    #[expect(unsafe_code, reason = "what runs between fork and exec has few calls to choose from")]
    // SAFETY: both callers make one system call (prctl(2), prlimit(2)), which allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(call);
    }
}
