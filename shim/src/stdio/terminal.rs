//! A terminal between a process and its streams: the server copies between the streams and the terminal's master.
//!
//! ```text
//! containerd ── stdin fifo ──> server ──> master ═ terminal ═ process
//! containerd <── stdout fifo ── server <── master
//! ```
//!
//! There is no stderr. The process's end hangs the terminal up, which ends the output once all of it was read.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::Process;
use rustix::fs::{FileType, fstat};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::streams::{self, Kept, StreamError, Streams};
use super::{Opened, Stdio};
use crate::sys::children::Children;
use crate::sys::{fds, pty};

pub use crate::sys::pty::Size;

/// What is copied at once; a terminal itself holds 4 KiB in each direction.
const PIECE: usize = 8 * 1024;

/// How long an exit waits for a reader that takes no output.
const PATIENCE: Duration = Duration::from_secs(10);

/// The master of a process's terminal. Dropping it hangs the terminal up.
pub struct Console {
    master: Arc<AsyncFd<OwnedFd>>,
    copies: Vec<AbortHandle>,
    /// Its sender is gone when all output is copied.
    drained: watch::Receiver<()>,
}

impl Drop for Console {
    fn drop(&mut self) {
        self.copies.iter().for_each(AbortHandle::abort);
    }
}

/// The size of the terminal that a process asks for (OCI runtime spec, `process.consoleSize`).
pub fn size_of(process: &Process) -> Option<Size> {
    let size = process.console_size()?;
    let cut = |length: u64| u16::try_from(length).unwrap_or(u16::MAX);
    Some(Size {
        columns: cut(size.width()),
        rows: cut(size.height()),
    })
}

/// Opens streams with a terminal of `size` between; a logger is among `children`.
///
/// # Errors
///
/// Names the stream that cannot be opened and why.
pub async fn open(streams: &Streams, size: Option<Size>, children: &Arc<Children>) -> Result<Opened, StreamError> {
    let waiting = wait(streams, children).await?;
    let connected = || {
        let (master, terminal) = pty::pair()?;
        if let Some(size) = size {
            pty::resize(&master, size)?;
        }
        let stdio = Stdio {
            stdin: Some(terminal.try_clone()?),
            stdout: Some(terminal.try_clone()?),
            stderr: Some(terminal),
        };
        let (kept, console) = waiting.attach(master)?;
        Ok(Opened {
            stdio,
            kept,
            console: Some(console),
        })
    };
    connected().map_err(StreamError::Terminal)
}

/// Open streams whose terminal somebody else makes.
pub struct Waiting {
    ends: Stdio,
    kept: Kept,
}

/// Opens streams for a terminal that is still to come; a logger is among `children`.
///
/// # Errors
///
/// As [`open`].
pub async fn wait(streams: &Streams, children: &Arc<Children>) -> Result<Waiting, StreamError> {
    let only_two = Streams {
        stderr: String::new(),
        ..streams.clone()
    };
    let (ends, kept) = streams::open(&only_two, children).await?;
    Ok(Waiting { ends, kept })
}

impl Waiting {
    /// Copies between the streams and the terminal whose master this is.
    ///
    /// # Errors
    ///
    /// When one of them cannot be polled.
    pub fn attach(self, master: OwnedFd) -> io::Result<(Kept, Console)> {
        rustix::io::ioctl_fionbio(&master, true)?;
        Ok((self.kept, connect(self.ends, master)?))
    }
}

fn connect(ends: Stdio, master: OwnedFd) -> io::Result<Console> {
    let master = Arc::new(fds::polled(master, Interest::READABLE | Interest::WRITABLE)?);
    let sink = ends.stdout.map(Sink::new).transpose()?;
    let (done, drained) = watch::channel(());
    let mut copies = Vec::new();
    if let Some(stdin) = ends.stdin {
        rustix::io::ioctl_fionbio(&stdin, true)?;
        let source = fds::polled(stdin, Interest::READABLE)?;
        copies.push(tokio::spawn(input(source, master.clone())).abort_handle());
    }
    let from = master.clone();
    let copy = async move {
        output(&from, sink).await;
        drop(done);
    };
    copies.push(tokio::spawn(copy).abort_handle());
    Ok(Console {
        master,
        copies,
        drained,
    })
}

impl Console {
    /// Sets the terminal's size.
    ///
    /// # Errors
    ///
    /// What ioctl(2) says.
    pub fn resize(&self, size: Size) -> io::Result<()> {
        pty::resize(self.master.get_ref(), size)
    }

    /// Whether all that the process wrote is where it leads.
    pub fn is_drained(&self) -> bool {
        self.drained.has_changed().is_err()
    }

    /// Waits until all that the process, which has ended, wrote is where it leads; at most ten seconds for a reader that
    /// takes nothing: the rest stays until Delete.
    pub async fn drained(&self) {
        let mut drained = self.drained.clone();
        // An error is the sender's end, which is what is waited for.
        if timeout(PATIENCE, drained.changed()).await.is_err() {
            tracing::warn!("nobody reads what is left in the terminal");
        }
    }
}

/// Where a terminal's output leads.
enum Sink {
    Fifo(AsyncFd<OwnedFd>),
    /// A file cannot be polled, and does not need to be.
    File(tokio::fs::File),
}

impl Sink {
    fn new(end: OwnedFd) -> io::Result<Sink> {
        if FileType::from_raw_mode(fstat(&end)?.st_mode) == FileType::RegularFile {
            return Ok(Sink::File(tokio::fs::File::from_std(File::from(end))));
        }
        rustix::io::ioctl_fionbio(&end, true)?;
        Ok(Sink::Fifo(fds::polled(end, Interest::WRITABLE)?))
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Sink::Fifo(fifo) => write(fifo, bytes).await,
            Sink::File(file) => {
                file.write_all(bytes).await?;
                file.flush().await
            }
        }
    }
}

async fn read(from: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    from.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *buffer)?))
        .await
}

async fn write(to: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = to
            .async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?))
            .await?;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// Copies until the stream ends, which is at CloseIO: the terminal stays open.
async fn input(source: AsyncFd<OwnedFd>, master: Arc<AsyncFd<OwnedFd>>) {
    let mut buffer = vec![0; PIECE];
    while let Ok(length @ 1..) = read(&source, &mut buffer).await {
        if write(&master, &buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// Copies until the terminal is hung up. What cannot be written is dropped: the process must not wait for a full disk.
async fn output(master: &AsyncFd<OwnedFd>, mut sink: Option<Sink>) {
    let mut buffer = vec![0; PIECE];
    // After the last writer the kernel says EIO.
    while let Ok(length @ 1..) = read(master, &mut buffer).await {
        if let Some(to) = &mut sink
            && let Err(error) = to.write(&buffer[..length]).await
        {
            tracing::warn!(%error, "output of a terminal is lost");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read, Write};

    use rustix::fs::{CWD, Mode, mknodat};
    use rustix::termios::tcgetwinsize;

    use super::*;

    fn fifo(folder: &tempfile::TempDir, name: &str) -> String {
        let path = folder.path().join(name);
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        path.display().to_string()
    }

    /// Everything in a file once the terminal is drained.
    fn text(path: &str) -> Vec<u8> {
        let mut all = Vec::new();
        let mut file = fs::File::options().read(true).write(true).open(path).unwrap();
        rustix::io::ioctl_fionbio(&file, true).unwrap();
        let _ = file.read_to_end(&mut all);
        all
    }

    #[tokio::test]
    async fn what_is_typed_is_echoed_and_read_and_what_is_written_arrives() {
        let folder = tempfile::tempdir().unwrap();
        let streams = Streams {
            stdin: fifo(&folder, "0"),
            stdout: fifo(&folder, "1"),
            stderr: "/nowhere".to_owned(),
            ..Streams::default()
        };
        let opened = open(&streams, None, &Arc::default()).await.unwrap();
        fs::File::options()
            .write(true)
            .open(&streams.stdin)
            .unwrap()
            .write_all(b"typed\n")
            .unwrap();
        let mut process = File::from(opened.stdio.stdin.unwrap());
        let read = tokio::task::spawn_blocking(move || {
            let mut buffer = [0; 64];
            let length = process.read(&mut buffer).unwrap();
            process.write_all(b"answer\n").unwrap();
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        });
        assert_eq!(read.await.unwrap(), "typed\n");
        drop((opened.stdio.stdout, opened.stdio.stderr));
        opened.console.unwrap().drained().await;
        assert_eq!(String::from_utf8(text(&streams.stdout)).unwrap(), "typed\r\nanswer\r\n");
    }

    #[tokio::test]
    async fn a_terminal_without_streams_swallows_output() {
        let opened = open(&Streams::default(), None, &Arc::default()).await.unwrap();
        let mut process = File::from(opened.stdio.stdout.unwrap());
        drop((opened.stdio.stdin, opened.stdio.stderr));
        let wrote = tokio::task::spawn_blocking(move || process.write_all(&[b'x'; 100_000]));
        wrote.await.unwrap().unwrap();
        opened.console.unwrap().drained().await;
    }

    #[tokio::test]
    async fn output_goes_to_a_file_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log").display().to_string();
        let streams = Streams {
            stdout: format!("file://{path}"),
            ..Streams::default()
        };
        let opened = open(&streams, None, &Arc::default()).await.unwrap();
        File::from(opened.stdio.stdout.unwrap()).write_all(b"line\n").unwrap();
        drop((opened.stdio.stdin, opened.stdio.stderr));
        opened.console.unwrap().drained().await;
        assert_eq!(fs::read(&path).unwrap(), b"line\r\n");
    }

    #[tokio::test]
    async fn the_size_is_the_one_asked_for_and_then_the_one_it_is_resized_to() {
        let process: Process = serde_json::from_str(
            r#"{"user":{"uid":0,"gid":0},"cwd":"/","args":["x"],"consoleSize":{"width":100,"height":30}}"#,
        )
        .unwrap();
        let opened = open(&Streams::default(), size_of(&process), &Arc::default())
            .await
            .unwrap();
        let terminal = opened.stdio.stdin.as_ref().unwrap();
        let size = || tcgetwinsize(terminal).map(|size| (size.ws_col, size.ws_row)).unwrap();
        assert_eq!(size(), (100, 30));
        let console = opened.console.as_ref().unwrap();
        console.resize(Size { columns: 7, rows: 8 }).unwrap();
        assert_eq!(size(), (7, 8));
    }
}
