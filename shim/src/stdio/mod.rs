//! The standard streams of a process, as containerd names them: fifos, files, loggers, nothing; or a terminal between.

use std::os::fd::OwnedFd;
use std::sync::Arc;

mod logger;
pub mod streams;
pub mod terminal;
mod uri;

use crate::sys::children::Children;

pub use streams::{Kept, StreamError, Streams};
pub use terminal::{Console, Size};

/// The three standard streams of a process; `None` is /dev/null.
#[derive(Debug, Default)]
pub struct Stdio {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// Streams that were opened: the process's ends and what stays here.
pub struct Opened {
    pub stdio: Stdio,
    pub kept: Kept,
    /// The terminal that the streams are.
    pub console: Option<Console>,
}

/// Opens the streams as a request names them, with a terminal of `size` between when there is to be one. A
/// logger is among `children`.
///
/// # Errors
///
/// Names the stream that cannot be opened and why.
pub async fn open(
    streams: &Streams,
    terminal: bool,
    size: Option<Size>,
    children: &Arc<Children>,
) -> Result<Opened, StreamError> {
    if terminal {
        return terminal::open(streams, size, children).await;
    }
    let (stdio, kept) = streams::open(streams, children).await?;
    Ok(Opened {
        stdio,
        kept,
        console: None,
    })
}
