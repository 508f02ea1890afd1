//! Programs that this process runs, which are not to outlive it.

use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::process::Command;

/// Has the kernel kill the program when the thread that spawns it ends, and with it this process: spawn from a thread
/// that lives on, such as the runtime's own.
pub fn die_with_us(command: &mut Command) {
    let ask = || Ok(set_parent_process_death_signal(Some(Signal::KILL))?);
    #[expect(unsafe_code, reason = "what runs between fork and exec has few calls to choose from")]
    // SAFETY: prctl(2) is one system call, which allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(ask);
    }
}
