//! The kubewasi shim: one binary that containerd starts, that serves the node, and that runs guests.

mod bootstrap;
mod compile;
mod guest;
mod image;
mod native;
mod observe;
mod sandbox;
mod stdio;
mod sys;
mod task;

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use bootstrap::args::{self, Command};

fn main() -> ExitCode {
    let command = match args::parse(std::env::args().skip(1)) {
        Ok(command) => command,
        Err(error) => return fail(&error),
    };
    match command {
        Command::Launch(engine) => sandbox::launcher::run(&engine),
        Command::Compile => compile::worker::run(),
        Command::Sweep => print(sandbox::record::sweep(io::stdin().lock()).map(|()| Vec::new())),
        Command::Serve(folder) => task::server::run(&folder),
        Command::Start(flags) => print(bootstrap::start::run(&flags)),
        Command::Delete(flags) => print(bootstrap::delete::run(&flags)),
        Command::Info => print(bootstrap::info::info()),
        Command::Status => print(bootstrap::status::run()),
        Command::Version => print::<io::Error>(Ok(bootstrap::args::version().into_bytes())),
        Command::Help => print::<io::Error>(Ok(bootstrap::args::help().into_bytes())),
    }
}

/// Writes the answer to stdout, alone: containerd reads stderr into it.
fn print<E: Display>(answer: Result<Vec<u8>, E>) -> ExitCode {
    match answer {
        Ok(bytes) => match io::stdout().write_all(&bytes).and_then(|()| io::stdout().flush()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        },
        Err(error) => fail(&error),
    }
}

fn fail(error: &dyn Display) -> ExitCode {
    // Nobody is left to tell when stderr is closed too.
    let _ = writeln!(io::stderr(), "containerd-shim-wasi-v1: {error}");
    ExitCode::FAILURE
}
