//! From wasm bytes to a trusted artifact: compiled once, cached by content, mapped by every guest.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::image::{Images, Wasm};

pub mod artifact;
pub mod engine;
pub mod worker;

/// The engine settings an artifact is compiled for; both are warm in the launcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Profile {
    /// Runs once to its end: no epoch checks, no fuel.
    Command,
    /// Serves requests: epoch interruption is on.
    Service,
}

/// The world a wasm binary targets, read from its bytes alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum World {
    /// A core module, with or without WASI 0.1 imports.
    Module,
    /// A component that exports `wasi:cli/run` 0.2.
    Command02,
    /// A component that exports `wasi:cli/run` 0.3.
    Command03,
}

/// A compiled module or component, safe to map: verified once by this server.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// The file, open for reading.
    pub file: Arc<OwnedFd>,
    pub world: World,
    pub profile: Profile,
}

/// Where artifacts are kept and what compiling may cost.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The root-only folder of the cache.
    pub folder: PathBuf,
    /// The most bytes the cache keeps.
    pub size: u64,
    /// The longest one compilation may run.
    pub timeout: Duration,
    /// The most memory one compilation may use, in bytes.
    pub memory: u64,
}

/// How often the cache did what, since the server started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counters {
    pub hits: u64,
    pub compiled: u64,
    pub failed: u64,
}

/// The artifacts of a node.
pub struct Artifacts;

/// Why there is no artifact.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error("{name}: the file is empty, not a wasm module or component")]
    Empty { name: String },
}

impl Artifacts {
    /// Opens the cache, making its folder when it is missing.
    pub fn open(_settings: Settings) -> Result<Artifacts, CompileError> {
        todo!()
    }

    /// The artifact of `wasm`, from the cache or compiled now; two callers for one key compile once.
    pub async fn get(&self, _images: &Images, _wasm: &Wasm, _profile: Profile) -> Result<Artifact, CompileError> {
        todo!()
    }

    pub fn counters(&self) -> Counters {
        todo!()
    }
}
