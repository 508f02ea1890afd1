//! containerd's configuration: which files it reads, what the agent's text in them is, and what a dump says of both.
//!
//! Pure: texts and dumps in, texts and refusals out. What containerd makes of its files is asked of containerd
//! (`config dump`); these are the facts that decide where the agent writes:
//!
//! - containerd 1.x replaces the CRI plugin's table by that of an imported file, and the built-in map of runtimes by the
//!   one that is written. So there a handler is written where the CRI plugin's table is, with a copy of what would be lost.
//! - containerd 2.x merges deeply, so there a file of the agent's own is enough wherever the root file imports its
//!   directory. Which plugin has the runtimes depends on the format versions of all files.

mod block;
mod candidate;
mod dump;
mod entry;
mod files;
mod line;
mod path_pattern;
mod refusal;
mod release;

pub use block::{ForeignLine, copies, has_local_pull, is_marked};
pub use candidate::{Change, Edit, cuts, places, written};
pub use dump::{Dump, Mismatch, Ours, verify};
pub use entry::{Entry, Handler, LOCAL_PULL};
pub use files::{DisabledPlugin, Disk, File, Files, LoadError, Overlay};
pub use path_pattern::clean;
pub use refusal::Refusal;
pub use release::Release;
