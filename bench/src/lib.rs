//! What measuring and wearing out have in common: containers through containerd's own API, memory as the kernel
//! counts it, medians, and plots.

pub mod client;
pub mod median;
pub mod memory;
pub mod plot;
