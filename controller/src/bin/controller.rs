//! The controller's command line.

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kubewasi_controller::api::crds;
use kubewasi_controller::operator::run::{self, Run};
use kubewasi_controller::operator::uninstall::{self, Uninstall};
use tracing_subscriber::EnvFilter;

/// kubewasi's controller: makes nodes run wasm pods, as WasmRuntimes say.
#[derive(Parser)]
#[command(name = "kubewasi-controller", version)]
struct Arguments {
    /// What is logged, in the syntax of RUST_LOG.
    #[arg(long, env = "RUST_LOG", default_value = "info", global = true)]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Apply the custom resource definitions, wait for the lease, and reconcile.
    Run(Run),
    /// Delete all WasmRuntimes, and wait until their nodes are clean.
    Uninstall(Uninstall),
    /// Print the custom resource definitions.
    Crds,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match execute(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kubewasi-controller: {error}");
            ExitCode::FAILURE
        }
    }
}

fn execute(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let logged = EnvFilter::try_new(&arguments.log)?;
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(logged)
        .with_writer(std::io::stderr)
        .init();
    // Most of the time is spent waiting; more threads would only be more memory.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match arguments.command {
        Command::Run(arguments) => runtime.block_on(run::run(arguments))?,
        Command::Uninstall(arguments) => runtime.block_on(uninstall::uninstall(arguments))?,
        Command::Crds => {
            for (_, yaml) in crds::rendered()? {
                print!("---\n{yaml}");
            }
        }
    }
    Ok(())
}
