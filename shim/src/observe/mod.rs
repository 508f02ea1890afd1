//! What is seen of a container from outside: the kills that the kernel does when memory ends.

pub mod oom;
