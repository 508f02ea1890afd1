//! What measuring and wearing out have in common: containers through containerd's own API, memory as the kernel
//! counts it, and medians.

pub mod client;
pub mod median;
pub mod memory;
