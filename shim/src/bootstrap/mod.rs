//! How containerd starts us, and how we find the one server.
//!
//! ```text
//! containerd ── exec start ──> lock ── reserve ──> server's control socket      (found)
//!                                 └── spawn serve ─> ready ── reserve            (none lives)
//! containerd ── exec delete ─> server's control socket, or the bundle's record when it refuses
//! ```

pub mod args;
pub mod bundle;
pub mod burial;
pub mod control;
pub mod delete;
pub mod dialect;
pub mod folder;
pub mod info;
pub mod logfmt;
pub mod logging;
pub mod remains;
pub mod sinks;
pub mod start;
pub mod status;
