//! Writes the programs of the image `broken`: each is wrong in one way, and its pod is to say which.
//!
//!     broken-guests FOLDER WASM-MODULE

use std::error::Error;
use std::fs;
use std::path::PathBuf;

/// A component that is neither a command nor an HTTP handler, and wants what no host has.
const ODD_WORLD: &str = r#"(component
    (import "acme:db/query" (instance (export "run" (func))))
    (core module $m (func (export "f")))
    (core instance $i (instantiate $m))
    (func $f (canon lift (core func $i "f")))
    (instance $out (export "go" (func $f)))
    (export "acme:job/work" (instance $out)))"#;

const UNKNOWN_IMPORT: &str = r#"(module
    (import "env" "launch_rocket" (func $f))
    (memory (export "memory") 1)
    (func (export "_start") (call $f)))"#;

const NO_ENTRY_FUNCTION: &str = r#"(module (memory (export "memory") 1) (func (export "other")))"#;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(folder), Some(module)) = (arguments.next(), arguments.next()) else {
        return Err("usage: broken-guests FOLDER WASM-MODULE".into());
    };
    let whole = fs::read(module)?;
    let files = [
        ("empty.wasm", Vec::new()),
        ("text.wasm", b"hello, I am text\n".to_vec()),
        ("half.wasm", whole[..whole.len() / 2].to_vec()),
        ("odd-world.wasm", wat::parse_str(ODD_WORLD)?),
        ("unknown-import.wasm", wat::parse_str(UNKNOWN_IMPORT)?),
        ("no-entry-function.wasm", wat::parse_str(NO_ENTRY_FUNCTION)?),
    ];
    for (name, bytes) in files {
        fs::write(folder.join(name), bytes)?;
    }
    Ok(())
}
