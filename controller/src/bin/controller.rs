//! The controller's command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kubewasi_controller::api::crds;

/// kubewasi's controller: makes nodes run wasm pods, as WasmRuntimes say.
#[derive(Parser)]
#[command(name = "kubewasi-controller", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the custom resource definitions.
    Crds,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Crds => match print_crds() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("kubewasi-controller: {error}");
                ExitCode::FAILURE
            }
        },
    }
}

fn print_crds() -> Result<(), serde_yaml_ng::Error> {
    for (_, yaml) in crds::rendered()? {
        print!("---\n{yaml}");
    }
    Ok(())
}
