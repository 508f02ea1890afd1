//! The scripts of `hack/`, which build what tests run against when it is missing.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Runs a script of `hack/` and returns the path that it prints last.
pub fn hack(script: &str, args: &[&str]) -> PathBuf {
    // Asked when it runs: checkouts share a target folder, and what one has built may serve another.
    let crate_folder = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests");
    let path = PathBuf::from(crate_folder).join("../hack").join(script);
    let output = Command::new(&path)
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(
        output.status.success(),
        "{} {args:?}: {}",
        path.display(),
        output.status
    );
    let said = String::from_utf8(output.stdout).expect("a script prints text");
    PathBuf::from(said.lines().last().expect("a script prints a path"))
}
