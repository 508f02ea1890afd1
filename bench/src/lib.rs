//! What measuring and wearing out have in common: containers through containerd's own API, memory as the kernel
//! counts it, medians, plots, and the comparison of builds.

pub mod baseline;
pub mod client;
pub mod median;
pub mod memory;
pub mod plot;
pub mod verdict;
