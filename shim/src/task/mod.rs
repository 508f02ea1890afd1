//! What containerd sees: the task API of all containers, their states, their events.
//!
//! ```text
//! containerd ── ttrpc v2, v3 ──> service ──> containers ──> container ── phase (pure) ──> events ──> containerd
//! start, delete ── JSON line ──> server                        └──> sandbox, stdio
//! ```

pub mod answer;
pub mod container;
pub mod containers;
pub mod control;
pub mod create;
pub mod error;
pub mod events;
pub mod forward;
pub mod phase;
pub mod server;
pub mod service;
pub mod sockets;
