//! From an OCI spec and an artifact to an isolated process.
//!
//! ```text
//! server                    launcher (one thread)      helper              guest
//! plan ──> control ──────> receives header and fds
//!            │               └─ fork ────────────> enters namespaces
//!            │                                       └─ fork ────────> cgroup, mounts, pivot, ids,
//!            │  <─ pid, pidfd ─ reaps the helper     exits             capabilities, artifact,
//!            │  <────────────────── report: ready ───────────────────── filters
//!            └─ start byte ──────────────────────────────────────────> wasm
//! ```

mod attached;
mod beside;
pub mod child;
pub mod control;
mod environment;
pub mod exec;
mod execute;
pub mod failure;
pub mod filter;
pub mod group;
pub mod hooks;
pub mod launcher;
pub mod limits;
pub mod plan;
pub mod process;
pub mod profile;
pub mod protocol;
pub mod record;
pub mod resources;
pub mod root;
pub mod scope;
mod systemd;
pub mod users;
pub mod volumes;
mod working_directory;
