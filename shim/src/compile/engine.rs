//! The only wasmtime configuration: what guests run with and artifacts are compiled for.

use super::Profile;

/// The engine of `profile`. Deterministic: equal builds on equal CPUs give equal compatibility hashes.
pub fn engine(_profile: Profile) -> wasmtime::Result<wasmtime::Engine> {
    todo!()
}
