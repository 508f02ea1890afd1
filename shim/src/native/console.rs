//! The socket at which runc hands over the terminal of a process (runc, docs/terminals.md, "detached").

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixListener;
use tokio::time::timeout;

use crate::sys::{mounts, seqpacket};

/// runc sends the terminal's name beside it, a path of the container.
const NAME_MAX: usize = 4096;

/// A runtime that has succeeded has sent its terminal already.
const PATIENCE: Duration = Duration::from_secs(10);

/// A socket in the bundle that waits for one terminal.
#[derive(Debug)]
pub struct ConsoleSocket {
    listener: UnixListener,
    file: PathBuf,
    /// The path by which others connect: a bundle's own may be longer than a socket's address (unix(7)), one through
    /// our open folder never is.
    address: PathBuf,
    _folder: OwnedFd,
}

impl ConsoleSocket {
    /// Binds `name` in `bundle`.
    ///
    /// # Errors
    ///
    /// What openat(2) and bind(2) say.
    pub fn bind(bundle: &Path, name: &str) -> io::Result<ConsoleSocket> {
        let folder = mounts::open_directory(bundle)?;
        let address = PathBuf::from(format!("/proc/{}/fd/{}/{name}", std::process::id(), folder.as_raw_fd()));
        Ok(ConsoleSocket {
            listener: UnixListener::bind(&address)?,
            file: bundle.join(name),
            address,
            _folder: folder,
        })
    }

    /// What runc connects to.
    pub fn address(&self) -> &Path {
        &self.address
    }

    /// Waits for the terminal: the end that is not the container's.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` when runc hung up without a terminal, `TimedOut` when it never called.
    pub async fn receive(&self) -> io::Result<OwnedFd> {
        let (stream, _) = timeout(PATIENCE, self.listener.accept()).await??;
        let mut name = vec![0; NAME_MAX];
        let (_, mut fds) = stream
            .async_io(Interest::READABLE, || seqpacket::receive(&stream, &mut name))
            .await?;
        fds.pop().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        // The bundle may be gone already, and takes the socket along.
        let _ = fs::remove_file(&self.file);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn a_terminal_arrives_also_where_the_bundles_path_is_longer_than_an_address() {
        let bundle = std::env::temp_dir()
            .join(format!("kubewasi-console-{}", std::process::id()))
            .join("long".repeat(40));
        fs::create_dir_all(&bundle).unwrap();
        let socket = ConsoleSocket::bind(&bundle, "console.sock").unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let stream = UnixStream::connect(socket.address()).unwrap();
        seqpacket::send(&stream, b"/dev/pts/0", &[writer.as_fd()]).unwrap();
        drop(writer);
        let received = socket.receive().await.unwrap();
        fs::File::from(received).write_all(b"through it").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through it");
        drop(socket);
        assert_eq!(fs::read_dir(&bundle).unwrap().count(), 0);
        fs::remove_dir_all(bundle.parent().unwrap()).unwrap();
    }

    #[tokio::test]
    async fn a_runtime_that_hangs_up_without_a_terminal_is_an_error() {
        let bundle = std::env::temp_dir().join(format!("kubewasi-console-{}-none", std::process::id()));
        fs::create_dir_all(&bundle).unwrap();
        let socket = ConsoleSocket::bind(&bundle, "console.sock").unwrap();
        drop(UnixStream::connect(socket.address()).unwrap());
        let error = socket.receive().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        drop(socket);
        fs::remove_dir_all(bundle).unwrap();
    }
}
