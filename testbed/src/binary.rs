//! Which binary a test runs: the one that cargo built with it, or another commit's.

use std::path::PathBuf;

/// The binary `name`: the one in the directory `TEST_BINARIES` where that is set, else the one at `built`, which cargo built
/// for the test.
///
/// # Panics
///
/// Where `TEST_BINARIES` is set and has no such file.
pub fn under_test(name: &str, built: &str) -> PathBuf {
    let Some(directory) = std::env::var_os("TEST_BINARIES") else {
        return PathBuf::from(built);
    };
    let path = PathBuf::from(directory).join(name);
    assert!(
        path.is_file(),
        "TEST_BINARIES has no {name}: {} is missing",
        path.display()
    );
    path
}
