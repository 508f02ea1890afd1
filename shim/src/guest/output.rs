//! An output stream of a guest: unbuffered, and a terminal when its file is one.

use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::BorrowedFd;

use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, OutputFile, StdoutStream};
use wasmtime_wasi::p2::OutputStream;

/// Writes at once, so that a kill loses nothing that the guest has written. [`OutputFile`] alone is never a terminal.
#[derive(Clone)]
pub struct Output {
    file: OutputFile,
    terminal: bool,
}

impl Output {
    /// The stream behind `fd`.
    ///
    /// # Errors
    ///
    /// What dup(2) says.
    pub fn new(fd: BorrowedFd<'_>) -> std::io::Result<Output> {
        Ok(Output {
            terminal: fd.is_terminal(),
            file: OutputFile::new(File::from(fd.try_clone_to_owned()?)),
        })
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        self.terminal
    }
}

impl StdoutStream for Output {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        self.file.async_stream()
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        self.file.p2_stream()
    }
}
