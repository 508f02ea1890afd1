//! The end of a guest that did not end by itself.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use wasmtime_wasi::I32Exit;

use super::Outcome;

/// The exit code of a trap: what a native program that aborts gives (128 + SIGABRT).
pub const TRAPPED: i32 = 134;

/// Where Kubernetes reads why a container ended (`terminationMessagePath`, its default).
const TERMINATION_LOG: &str = "/dev/termination-log";

/// An exit code that came as an error, or a trap with its message and wasm backtrace.
pub fn outcome(error: &wasmtime::Error) -> Outcome {
    match error.downcast_ref::<I32Exit>() {
        // What exit(3) keeps of a code.
        Some(I32Exit(code)) => Outcome::Exit(code & 0xff),
        None if error.is::<wasmtime::Trap>() => Outcome::Trap(format!("wasm trap: {error:?}")),
        // Not the program's own doing: its root could not be opened, say.
        None => Outcome::Trap(format!("the program could not run: {error:?}")),
    }
}

/// Tells a trap's message on stderr.
pub fn tell(message: &str) {
    // A reader that is gone must not keep the guest from ending.
    let _ = writeln!(std::io::stderr(), "{message}");
}

/// Leaves a trap's message in the termination log, where there is an empty one.
pub fn log(message: &str) {
    let log = Path::new(TERMINATION_LOG);
    if fs::metadata(log).is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0)
        && let Ok(mut file) = OpenOptions::new().write(true).open(log)
    {
        // The kubelet reads at most 4096 bytes.
        let end = (0..=message.len().min(4096))
            .rev()
            .find(|end| message.is_char_boundary(*end))
            .unwrap_or(0);
        let _ = file.write_all(&message.as_bytes()[..end]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_comes_through_as_exit_keeps_it() {
        assert_eq!(outcome(&I32Exit(7).into()), Outcome::Exit(7));
        assert_eq!(outcome(&I32Exit(256 + 3).into()), Outcome::Exit(3));
    }

    #[test]
    fn a_trap_keeps_its_message() {
        let error = wasmtime::Error::from(wasmtime::Trap::UnreachableCodeReached);
        let is_told = |message: &str| message.starts_with("wasm trap: ") && message.contains("unreachable");
        assert!(matches!(outcome(&error), Outcome::Trap(message) if is_told(&message)));
    }

    #[test]
    fn what_is_no_trap_is_not_called_one() {
        let error = wasmtime::Error::msg("Permission denied");
        assert_eq!(
            outcome(&error),
            Outcome::Trap("the program could not run: Permission denied".to_owned())
        );
    }
}
