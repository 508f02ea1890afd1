//! The kernel's objects, one file each. Beside the one function that loads an artifact, the only room with `unsafe`.

pub mod allocator;
pub mod cgroup;
pub mod child;
pub mod children;
pub mod command;
pub mod counters;
pub mod credentials;
pub mod fds;
pub mod fork;
pub mod freezer;
pub mod kept;
mod kept_blocks;
pub mod keyring;
pub mod labels;
pub mod memory;
pub mod mounts;
pub mod namespaces;
pub mod oom;
pub mod open_files;
pub mod pidfd;
pub mod pty;
pub mod seccomp;
pub mod seqpacket;
pub mod signals;
pub mod standard;
pub mod stat;
pub mod user_namespace;
