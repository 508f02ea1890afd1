//! The standard streams of a container, as containerd names them: fifos, files, nothing.

use std::os::fd::OwnedFd;

pub mod streams;

/// The three standard streams of a process; `None` is /dev/null.
#[derive(Debug, Default)]
pub struct Stdio {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}
