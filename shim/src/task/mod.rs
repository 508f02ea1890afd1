//! What containerd sees: the task API of all containers, their states, their events.
//!
//! ```text
//! containerd ── ttrpc v2, v3 ──> service ──> containers ──> container ──> process ── phase (pure) ──> events ──> containerd
//! start, delete ── JSON line ──> server                        └──> body ──> sandbox
//! ```

pub mod answer;
pub mod body;
pub mod container;
pub mod containers;
pub mod control;
pub mod create;
pub mod error;
pub mod events;
pub mod exec;
pub mod forward;
mod guest_exec;
pub mod phase;
mod pids;
pub mod process;
pub mod search;
pub mod server;
pub mod service;
pub mod sockets;
