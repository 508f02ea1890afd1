//! What is seen of containers from outside: the kills that the kernel does when memory ends, and metrics.

pub mod exits;
pub mod identity;
pub mod metrics;
pub mod oom;
