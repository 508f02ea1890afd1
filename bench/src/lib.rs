//! What measuring and wearing out have in common: containers through containerd's own API, and memory as the kernel
//! counts it.

pub mod client;
pub mod memory;
