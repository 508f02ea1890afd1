//! The process that forks guests: one thread, warm engines and linkers, one request at a time.
//!
//! It reads headers and fds, never a plan: whatever it reads is in the memory of every later child.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Pid, Resource, Rlimit, WaitOptions, waitpid};

use super::attached::{Attached, Inheritance};
use super::child;
use super::filter::Filters;
use super::protocol::{Answer, Command, MESSAGE, decode, encode};
use crate::compile::engine;
use crate::guest::TRAPPED;
use crate::guest::warm::Warm;
use crate::sys::fork::{Fork, exit, fork};
use crate::sys::{pidfd, seqpacket, standard};

/// `containerd-shim-wasi-v1 launch`: serves fork requests from the socket on its standard input until that closes;
/// `engine` is what its engines are like.
pub fn run(engine: &str) -> ! {
    match serve(engine) {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("launcher: {error:#}");
            std::process::exit(1)
        }
    }
}

fn serve(engine: &str) -> wasmtime::Result<()> {
    let socket = standard::take_stdin()?;
    rustix::thread::set_name(c"wasi-launcher")?;
    // Inherited by every guest: what a process of the same user finds in another's /proc is not to be opened.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // Inherited too, and not containerd's business: runc's default mask, and no core that holds other guests' pages.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(Resource::Core, none)?;
    let options =
        engine::of_argument(engine).ok_or_else(|| wasmtime::format_err!("launch is for the server's own use"))?;
    let warm = Warm::new(options)?;
    let filters = Filters::new()?;
    let mut buffer = vec![0; MESSAGE];
    loop {
        let (length, fds) = seqpacket::receive(&socket, &mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        let (answer, handle) = match decode::<Command>(&buffer[..length]) {
            Some(Command::Spawn {
                artifact,
                counters,
                beside,
            }) => match Attached::new(fds, artifact, counters, beside) {
                Some(attached) => spawn(&warm, &filters, attached),
                None => (failed("the command's fds are not those it names"), None),
            },
            None => (failed("the command cannot be decoded"), None),
        };
        let beside: Vec<BorrowedFd<'_>> = handle.iter().map(AsFd::as_fd).collect();
        seqpacket::send(&socket, &encode(&answer), &beside)?;
    }
}

fn failed(message: impl ToString) -> Answer {
    Answer::Failed {
        message: message.to_string(),
    }
}

/// Forks the helper, reaps it and opens the guest's pidfd. The fds are closed here before the next fork.
fn spawn(warm: &Warm, filters: &Filters, attached: Attached) -> (Answer, Option<OwnedFd>) {
    let (reader, writer) = match std::io::pipe() {
        Ok(pipe) => pipe,
        Err(error) => return (failed(format!("make a pipe: {error}")), None),
    };
    let mut reader = std::fs::File::from(OwnedFd::from(reader));
    let inheritance = Inheritance {
        attached,
        pid: writer.into(),
    };
    let helper = match fork() {
        Ok(Fork::Child) => {
            // A panic must not unwind into the launcher's frames: what they own is closed here. Its message is on the
            // guest's stderr by now.
            let _ = catch_unwind(AssertUnwindSafe(|| child::help(warm, filters, inheritance)));
            exit(TRAPPED)
        }
        Ok(Fork::Parent(helper)) => helper,
        Err(error) => return (failed(format!("fork the helper: {error}")), None),
    };
    drop(inheritance);
    // The helper writes the guest's pid and exits; a helper that failed exits without.
    let mut pid = [0; 4];
    let said = reader.read_exact(&mut pid);
    // Reaped before the answer: until then the guest is not yet the server's child.
    if let Err(error) = rustix::io::retry_on_intr(|| waitpid(Some(helper), WaitOptions::empty())) {
        return (failed(format!("reap the helper: {error}")), None);
    }
    match said.ok().and_then(|()| Pid::from_raw(i32::from_ne_bytes(pid))) {
        Some(pid) => match pidfd::open(pid) {
            Ok(handle) => (
                Answer::Forked {
                    pid: pid.as_raw_nonzero().get(),
                },
                Some(handle),
            ),
            Err(error) => (
                failed(format!("open the pidfd of {}: {error}", pid.as_raw_nonzero())),
                None,
            ),
        },
        None => (failed("the helper made no process"), None),
    }
}
