//! containerd's configuration on disk: how it is read, what is changed in it, and whether a change did only that.
//!
//! Pure: texts in, texts and refusals out. What containerd does with a file is in node-setup of the documentation; the
//! two facts that shape this room:
//!
//! - containerd 1.x replaces the CRI plugin's table by that of an imported file, and the built-in map of runtimes by the
//!   one that is written. So there a handler is written into the root file, and never alone.
//! - containerd 2.x merges deeply, so there a file of ours is enough wherever the root file imports its folder.

mod difference;
mod edit;
mod root;
mod tables;

pub use difference::{Difference, DifferenceError, difference};
pub use edit::{Edit, Refusal, Shape, install, trial, uninstall};
pub use root::{Release, Root, RootError};
pub use tables::Handler;
