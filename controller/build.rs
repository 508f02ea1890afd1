//! Assembles the module by which the node agent proves a node.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let source = "src/node/smoke.wat";
    println!("cargo::rerun-if-changed={source}");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("smoke.wasm"), wat::parse_file(source)?)?;
    Ok(())
}
