//! The standard streams of a container, as containerd names them: fifos, files, nothing.

pub mod streams;
