//! The native containers of a wasi pod, run by the node's own runc or crun: they get exactly what an ordinary pod's get.
//!
//! ```text
//! server ── rootfs (mounts) ──> <bundle>/rootfs
//!        ── runc create ──────> init, forked by a runc that ends: the subreaper's child, watched by its pidfd
//!        ── runc start, exec, pause, resume, update, ps, delete
//! ```
//!
//! The bundle's config.json is used as it is. runc keeps its state in the bundle too (`--root`), so that nothing is
//! shared between containers and all of it goes with the bundle.

mod calls;
mod console;
mod container;
mod failure;
pub mod record;
mod rootfs;
mod streams;

pub use container::{Container, Request, Runtime};
pub use failure::NativeError;
