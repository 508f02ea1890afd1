//! How code is compiled and run: one engine for all guests of a handler.

use serde::{Deserialize, Serialize};

/// How hard the compiler tries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimization {
    /// Compiles fastest.
    None,
    /// Runs fastest.
    #[default]
    Speed,
    /// Runs fast and is small.
    SpeedAndSize,
}

/// The options of the engine. Each changes what compiled code is or what it may do, so none but the stack is a pod's to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    pub optimization: Optimization,
    /// The most stack that a guest's calls may take, in bytes, when its pod says nothing.
    pub stack_size: u64,
    /// Proposals of WebAssembly, by their names there.
    pub gc: bool,
    pub exceptions: bool,
    pub threads: bool,
    pub tail_call: bool,
    pub memory64: bool,
    pub wide_arithmetic: bool,
}

impl Default for Engine {
    /// The values of the table.
    fn default() -> Engine {
        crate::Options::default().engine
    }
}
