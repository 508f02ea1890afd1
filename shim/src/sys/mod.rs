//! The kernel's objects, one file each. The only room that may use `unsafe`, beside the loading of an artifact.

pub mod allocator;
pub mod descriptors;
pub mod seccomp;
