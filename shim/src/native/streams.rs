//! The standard streams of a native process: handed to runc, whose own are the process's, or a terminal between, which
//! runc makes in the container and sends back.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio as Stream;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use runc::Command;

use super::console::ConsoleSocket;
use super::failure::NativeError;
use crate::stdio::terminal::{self, Waiting};
use crate::stdio::{Console, Kept, Stdio, Streams, streams};
use crate::sys::children::Children;

/// What stays here of the streams while runc makes the process.
pub struct Ends {
    handed: Arc<HandOver>,
    ours: Ours,
}

enum Ours {
    Streams(Kept),
    Terminal { socket: ConsoleSocket, streams: Waiting },
}

impl Ends {
    /// Opens the streams; a terminal is waited for at the socket `name` in `bundle`.
    /// A logger is among `children`.
    ///
    /// # Errors
    ///
    /// Names the stream, or the socket, that cannot be opened.
    pub async fn open(
        streams: &Streams,
        terminal: bool,
        bundle: &Path,
        name: &str,
        children: &Arc<Children>,
    ) -> Result<Ends, NativeError> {
        let (stdio, ours) = if terminal {
            let streams = terminal::wait(streams, children).await?;
            let socket = ConsoleSocket::bind(bundle, name).map_err(|cause| NativeError::Bundle {
                act: "listen at",
                path: bundle.join(name),
                cause,
            })?;
            (Stdio::default(), Ours::Terminal { socket, streams })
        } else {
            let (stdio, kept) = streams::open(streams, children).await?;
            (stdio, Ours::Streams(kept))
        };
        Ok(Ends {
            handed: Arc::new(HandOver(Mutex::new(stdio))),
            ours,
        })
    }

    /// The streams of the call.
    pub fn handed(&self) -> Arc<HandOver> {
        self.handed.clone()
    }

    /// Where the call is to send the terminal.
    pub fn console_socket(&self) -> Option<PathBuf> {
        match &self.ours {
            Ours::Streams(_) => None,
            Ours::Terminal { socket, .. } => Some(socket.address().to_owned()),
        }
    }

    /// What stays here for the process's life, once it is there.
    ///
    /// # Errors
    ///
    /// When no terminal came.
    pub async fn settle(self) -> io::Result<(Kept, Option<Console>)> {
        match self.ours {
            Ours::Streams(kept) => Ok((kept, None)),
            Ours::Terminal { socket, streams } => {
                let (kept, console) = streams.attach(socket.receive().await?)?;
                Ok((kept, Some(console)))
            }
        }
    }
}

/// Gives the streams to one call of runc; none of them stays here.
#[derive(Debug)]
pub struct HandOver(Mutex<Stdio>);

#[async_trait]
impl runc::Io for HandOver {
    async fn set(&self, command: &mut Command) -> io::Result<()> {
        let stdio = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let stream = |end: Option<_>| end.map_or_else(Stream::null, Stream::from);
        command
            .stdin(stream(stdio.stdin))
            .stdout(stream(stdio.stdout))
            .stderr(stream(stdio.stderr));
        Ok(())
    }

    async fn close_after_start(&self) {}
}
