//! What runs only inside a sandboxed process: an artifact becomes a program, the program becomes an outcome.

use std::os::fd::OwnedFd;
use std::path::Path;

use tokio::runtime::{Builder, Runtime};

use crate::compile::World;
use crate::compile::artifact::{self, Loaded};

use limits::Budget;

pub mod context;
pub mod http;
pub mod limits;
mod outbound;
mod output;
pub mod p1;
pub mod p2;
pub mod p3;
pub mod trap;
pub mod warm;

pub use trap::{TRAPPED, log, tell};

/// What a program is given.
pub struct Settings<'a> {
    pub arguments: &'a [String],
    pub environment: &'a [(String, String)],
    pub working_directory: &'a str,
    /// The cpu limit in thousandths of a cpu.
    pub cpus: Option<u64>,
    pub options: &'a kubewasi_options::Guest,
}

/// A program that is loaded and linked, and the event loop it runs in; only instantiating is left.
pub struct Ready {
    /// One thread: a guest is one program, and its process ends with it.
    runtime: Runtime,
    program: Program,
    budget: Budget,
}

enum Program {
    Module(p1::Program),
    Command02(p2::Program),
    Command03(p3::Program),
    Service(http::Service),
}

/// How a program ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With an exit code of its own.
    Exit(i32),
    /// By a trap: its message and wasm backtrace.
    Trap(String),
}

/// The engines there are for a program.
pub struct Engines<'a> {
    pub warm: &'a warm::Warm,
    /// A service's own.
    pub serving: Option<Box<warm::Serving>>,
}

/// Loads an artifact and links it against its world; its memory is limited by `budget`. The working directory is this
/// process's `/proc/self/fd`.
///
/// # Errors
///
/// Names the import that is missing, or the export; or says why there is no event loop.
pub fn load(
    engines: &Engines<'_>,
    file: OwnedFd,
    world: World,
    export: Option<&str>,
    settings: &Settings<'_>,
    budget: Budget,
) -> wasmtime::Result<Ready> {
    let Engines { warm, serving } = engines;
    let engine = serving.as_ref().map_or(&warm.engine, |serving| &serving.engine);
    let program = match (artifact::load(engine, file, Path::new("."), world)?, serving) {
        (Loaded::Module(module), _) => Program::Module(p1::link(warm, &module, export)?),
        (Loaded::Component(component), Some(serving)) => {
            no_export(export)?;
            Program::Service(http::link(serving, &component, world, settings)?)
        }
        (Loaded::Component(component), None) if world == World::Command03 => {
            Program::Command03(p3::link(warm, &component, export)?)
        }
        (Loaded::Component(component), None) => Program::Command02(p2::link(warm, &component, export)?),
    };
    let runtime = event_loop()?;
    Ok(Ready {
        runtime,
        program,
        budget,
    })
}

/// So many tasks an event loop runs before it looks for events, if it always has some: those of an instance's concurrent
/// requests, or their answers would be written in parts.
const TURN: u32 = 128;

/// The event loop of one thread.
fn event_loop() -> std::io::Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .event_interval(TURN)
        .on_thread_park(http::busy_poll::before_sleep)
        .build()
}

/// Runs a program to its end.
pub fn run(ready: Ready, settings: &Settings<'_>) -> Outcome {
    let Ready {
        runtime,
        program,
        budget,
    } = ready;
    let result = runtime.block_on(async {
        match program {
            Program::Module(program) => program.run(settings, budget.limits()).await,
            Program::Command02(program) => program.run(settings, budget.limits()).await,
            Program::Command03(program) => program.run(settings, budget.limits()).await,
            Program::Service(service) => service.run(settings, budget).await,
        }
    });
    // Blocking threads, such as one that waits for input, end with the process.
    std::mem::forget(runtime);
    match result {
        Ok(code) => Outcome::Exit(code),
        Err(error) => trap::outcome(&error),
    }
}

/// A component has one entry point, so an export cannot be chosen.
fn no_export(export: Option<&str>) -> wasmtime::Result<()> {
    match export {
        None => Ok(()),
        Some(export) => wasmtime::bail!(
            "the export {export:?} cannot be called: a component runs its wasi:cli/run or serves its wasi:http handler; #export is for core modules"
        ),
    }
}
