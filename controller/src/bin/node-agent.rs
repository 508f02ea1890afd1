//! The node agent's command line.

use clap::Parser;

/// kubewasi's node agent: installs the shim on its node, and proves that it works.
#[derive(Parser)]
#[command(name = "kubewasi-node", version)]
struct Arguments {}

fn main() {
    Arguments::parse();
}
