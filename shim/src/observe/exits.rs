//! Why a container's first process has ended.

use crate::sys::child::Exit;

/// A cause, as metrics have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Code 0.
    Success,
    /// Another code of its own.
    Error,
    /// A trap, with a message.
    Trap,
    /// A signal, or a code by which one is told: above 128.
    Signal,
    /// The kernel killed it when memory had ended.
    OutOfMemory,
}

/// The codes by which shells tell signals begin here.
const SIGNALS: u32 = 128;

/// 128 + SIGABRT, see [`crate::guest::TRAPPED`].
const TRAPPED: u32 = crate::guest::TRAPPED.unsigned_abs();

/// 128 + SIGKILL.
const KILLED: u32 = 137;

impl Cause {
    /// How `exit` came, `kills` OOM kills after the container was made.
    pub fn of(exit: &Exit, kills: u64) -> Cause {
        match exit.code {
            0 => Cause::Success,
            TRAPPED if exit.message.is_some() => Cause::Trap,
            KILLED if kills > 0 => Cause::OutOfMemory,
            code if code > SIGNALS => Cause::Signal,
            _ => Cause::Error,
        }
    }

    /// The value of its label.
    pub fn name(self) -> &'static str {
        match self {
            Cause::Success => "success",
            Cause::Error => "error",
            Cause::Trap => "trap",
            Cause::Signal => "signal",
            Cause::OutOfMemory => "oom",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_cause_is_told_by_code_message_and_kills() {
        let cause = |code, message: Option<&str>, kills| {
            let exit = Exit {
                code,
                at: SystemTime::UNIX_EPOCH,
                message: message.map(str::to_owned),
            };
            Cause::of(&exit, kills).name()
        };
        assert_eq!(cause(0, None, 0), "success");
        assert_eq!(cause(1, None, 1), "error");
        assert_eq!(cause(134, Some("wasm trap: unreachable"), 0), "trap");
        assert_eq!(cause(134, None, 0), "signal");
        assert_eq!(cause(143, None, 0), "signal");
        assert_eq!(cause(137, None, 0), "signal");
        assert_eq!(cause(137, None, 2), "oom");
    }
}
