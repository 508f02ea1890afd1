//! Opens a container's streams: one end goes to the guest as it is, the other stays here to keep the fifo alive.
//!
//! ```text
//! stdin   containerd ──> fifo ──> guest     we hold a write end until CloseIO: containerd may restart meanwhile
//! stdout  containerd <── fifo <── guest     we hold a read end until Delete: no SIGPIPE, no lost output meanwhile;
//!                                           what is unread then stays for a reader that is on its way
//! ```
//!
//! A reader that comes after the guest's end would wait in its open(2) for a writer for ever (fifo(7)), as a client may that
//! had no cpu for as long as an exec took: from the end on we are that writer until a reader is there.
//!
//! No open blocks: the end that would wait is opened when its opposite is already there.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::Stdio;
use super::logger::{self, Logger};
use super::uri::{Target, target};
use crate::sys::children::Children;

/// How often one looks whether it was read.
const LOOK: Duration = Duration::from_millis(50);

/// The longest time until it is looked again whether a reader has come.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// The streams as the Create request names them; empty for none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    /// containerd's namespace, and the id of the container, or of the exec: what a logger is told.
    pub namespace: String,
    pub id: String,
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
}

/// Our ends of the fifos. Dropping them is what ends the streams.
#[derive(Debug, Default)]
pub struct Kept {
    stdin: Option<OwnedFd>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    /// It reads both outputs.
    logger: Option<Logger>,
}

/// Our end of an output's fifo.
#[derive(Debug)]
enum Output {
    /// For reading, while the process may write.
    Open(OwnedFd),
    /// For writing: the process has ended, and nobody reads yet.
    Awaited(OwnedFd),
    /// For reading: somebody has come who reads too.
    Met(OwnedFd),
}

impl Output {
    fn end(&self) -> &OwnedFd {
        match self {
            Output::Open(end) | Output::Awaited(end) | Output::Met(end) => end,
        }
    }

    /// What is held once the process has ended: our end for reading is closed, since it would be taken for a reader.
    fn awaited(self) -> Output {
        match self {
            Output::Open(end) => open_again(&end, OFlags::WRONLY).map_or(Output::Met(end), Output::Awaited),
            other => other,
        }
    }

    /// Whether it is awaited, and a reader is there: without one, an open for writing is refused (fifo(7)).
    fn has_reader(&self) -> bool {
        matches!(self, Output::Awaited(end) if open_again(end, OFlags::WRONLY).is_ok())
    }

    /// What is held once a reader is there.
    fn met(self) -> Output {
        match self {
            Output::Awaited(end) => open_again(&end, OFlags::RDONLY).map_or(Output::Awaited(end), Output::Met),
            other => other,
        }
    }
}

impl Kept {
    /// Ends the guest's stdin, when containerd's client has closed its own end.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// The process has ended: ends its streams, the outputs for readers that have come; false while one is awaited.
    pub fn end(&mut self) -> bool {
        self.close_stdin();
        let outputs = [&mut self.stdout, &mut self.stderr];
        // Both may be one fifo, where each is a reader for the other: first none of them reads.
        let awaited = outputs.map(|output| {
            *output = output.take().map(Output::awaited);
            output
        });
        let answered = awaited.map(|output| (output.as_ref().is_some_and(Output::has_reader), output));
        for (has_reader, output) in answered {
            if has_reader {
                *output = output.take().map(Output::met);
            }
        }
        !self.outputs().any(|output| matches!(output, Output::Awaited(_)))
    }

    /// Waits for the end of the logger of a process that is gone, which has to write what it has read.
    pub async fn end_logger(&mut self) {
        if let Some(logger) = self.logger.take() {
            logger.end().await;
        }
    }

    /// Lets go of the streams of a process that is gone: a fifo's content goes with its last open end, so output that is
    /// still unread is held for its reader, for `longest` at most.
    pub async fn linger(mut self, longest: Duration) {
        let read = async {
            loop {
                self.end();
                if !self.unread() {
                    return;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(longest, read).await.is_err() {
            tracing::warn!("output that nobody has read in {longest:?} is lost");
        }
    }

    fn unread(&self) -> bool {
        self.outputs()
            .any(|output| rustix::io::ioctl_fionread(output.end()).is_ok_and(|bytes| bytes > 0))
    }

    fn outputs(&self) -> impl Iterator<Item = &Output> {
        [&self.stdout, &self.stderr].into_iter().flatten()
    }
}

/// Calls `end`, which is that of [`Kept`], until nobody is awaited any more.
pub async fn await_readers(mut end: impl FnMut() -> bool) {
    let mut pause = LOOK;
    while !end() {
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(LONGEST_LOOK);
    }
}

/// Why a stream cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("cannot open {stream} at {}: {cause}", path.display())]
    Open {
        stream: &'static str,
        path: PathBuf,
        cause: io::Error,
    },
    #[error("{stream} {uri:?}: streams of scheme {scheme:?} are not supported, use a fifo, file:// or binary://")]
    Scheme {
        stream: &'static str,
        uri: String,
        scheme: String,
    },
    #[error("{stream} {uri:?} is not valid: it must have an absolute path, as in file:///var/log/container")]
    Path { stream: &'static str, uri: String },
    #[error("cannot start the logger {} (stdout): {cause}", path.display())]
    Logger { path: PathBuf, cause: io::Error },
    #[error("stderr {0:?} is not valid: a logger takes both outputs, so it must be stdout's too")]
    LoggerOfStderr(String),
    #[error("cannot open a terminal: {0}")]
    Terminal(io::Error),
    #[error("stdin {} is not a fifo", .0.display())]
    StdinNotFifo(PathBuf),
}

/// Opens the three streams: the guest's ends and ours. As in containerd's own shim, where stdout leads to a logger or a
/// file, stderr leads there too. A logger is among `children`.
///
/// # Errors
///
/// Names the stream that cannot be opened, or the logger that cannot be started.
pub async fn open(streams: &Streams, children: &Arc<Children>) -> Result<(Stdio, Kept), StreamError> {
    match target("stdout", &streams.stdout)? {
        Target::Logger(program) => {
            let (stdin, kept_stdin) = input(&streams.stdin)?;
            let started = logger::start(&program, &streams.namespace, &streams.id, children).await;
            let started = started.map_err(|cause| StreamError::Logger {
                path: program.path,
                cause,
            })?;
            let stdio = Stdio {
                stdin,
                stdout: Some(started.stdout),
                stderr: Some(started.stderr),
            };
            let kept = Kept {
                stdin: kept_stdin,
                logger: Some(started.logger),
                ..Kept::default()
            };
            Ok((stdio, kept))
        }
        stdout => open_files(streams, &stdout),
    }
}

/// As [`open`], where no logger is to be started.
fn open_files(streams: &Streams, stdout: &Target) -> Result<(Stdio, Kept), StreamError> {
    let shared = matches!(stdout, Target::File(_)) && !streams.stderr.is_empty();
    let stderr = if shared {
        None
    } else {
        Some(target("stderr", &streams.stderr)?)
    };
    let (stdin, kept_stdin) = input(&streams.stdin)?;
    let (stdout, kept_stdout) = output("stdout", &streams.stdout, stdout)?;
    let (stderr, kept_stderr) = match &stderr {
        Some(stderr) => output("stderr", &streams.stderr, stderr)?,
        None => {
            let both = stdout.as_ref().map(OwnedFd::try_clone).transpose();
            (
                both.map_err(|cause| open_error("stderr", Path::new(&streams.stdout), cause))?,
                None,
            )
        }
    };
    Ok((
        Stdio { stdin, stdout, stderr },
        Kept {
            stdin: kept_stdin,
            stdout: kept_stdout.map(Output::Open),
            stderr: kept_stderr.map(Output::Open),
            logger: None,
        },
    ))
}

fn open_error(stream: &'static str, path: &Path, cause: io::Error) -> StreamError {
    StreamError::Open {
        stream,
        path: path.to_owned(),
        cause,
    }
}

type Ends = (Option<OwnedFd>, Option<OwnedFd>);

fn input(name: &str) -> Result<Ends, StreamError> {
    match target("stdin", name)? {
        Target::Nothing => Ok((None, None)),
        Target::File(path) => Err(StreamError::StdinNotFifo(path)),
        Target::Logger(_) => Err(StreamError::StdinNotFifo(name.into())),
        Target::Fifo(path) => {
            let failed = |cause| open_error("stdin", &path, cause);
            if !is_fifo(&path).map_err(failed)? {
                return Err(StreamError::StdinNotFifo(path));
            }
            let guest = open_end(&path, OFlags::RDONLY).map_err(failed)?;
            let kept = open_end(&path, OFlags::WRONLY).map_err(failed)?;
            block(&guest).map_err(failed)?;
            Ok((Some(guest), Some(kept)))
        }
    }
}

fn output(stream: &'static str, name: &str, target: &Target) -> Result<Ends, StreamError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |cause| open_error(stream, &path, cause)
    };
    match target {
        Target::Nothing => Ok((None, None)),
        Target::Logger(_) => Err(StreamError::LoggerOfStderr(name.to_owned())),
        Target::File(path) if !is_fifo(path).unwrap_or(false) => {
            if let Some(folder) = path.parent() {
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o755)
                    .create(folder)
                    .map_err(failed(path))?;
            }
            Ok((Some(append(path).map_err(failed(path))?), None))
        }
        Target::File(path) | Target::Fifo(path) if is_fifo(path).map_err(failed(path))? => {
            let kept = open_end(path, OFlags::RDONLY).map_err(failed(path))?;
            let guest = open_end(path, OFlags::WRONLY).map_err(failed(path))?;
            block(&guest).map_err(failed(path))?;
            Ok((Some(guest), Some(kept)))
        }
        // Some clients name a plain file without a scheme.
        Target::File(path) | Target::Fifo(path) => Ok((Some(append(path).map_err(failed(path))?), None)),
    }
}

fn is_fifo(path: &Path) -> io::Result<bool> {
    Ok(fs::metadata(path)?.file_type().is_fifo())
}

fn append(path: &Path) -> io::Result<OwnedFd> {
    let file = File::options()
        .create(true)
        .append(true)
        .mode(0o644)
        // A fifo may have taken its place since.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let file = OwnedFd::from(file);
    block(&file)?;
    Ok(file)
}

fn open_end(path: &Path, direction: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        path,
        direction | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Opens the fifo of `end` once more, wherever it is by now.
fn open_again(end: &OwnedFd, direction: OFlags) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", end.as_raw_fd());
    open_end(Path::new(&path), direction)
}

/// Clears `O_NONBLOCK`, which the open needed and a guest's program does not expect.
fn block(end: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(end)?;
    Ok(rustix::fs::fcntl_setfl(end, flags - OFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use rustix::fs::{CWD, FileType};

    use super::*;

    fn open(streams: &Streams) -> Result<(Stdio, Kept), StreamError> {
        open_files(streams, &target("stdout", &streams.stdout)?)
    }

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("kubewasi-streams-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn fifo(folder: &Path, name: &str) -> String {
        let path = folder.join(name);
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        path.display().to_string()
    }

    fn file(fd: Option<OwnedFd>) -> File {
        File::from(fd.unwrap())
    }

    /// What a reader that does not wait for a writer gets of a fifo.
    fn rest(path: &str) -> String {
        let end = open_end(Path::new(path), OFlags::RDONLY).unwrap();
        let mut all = String::new();
        File::from(end).read_to_string(&mut all).unwrap();
        all
    }

    /// What a reader gets that comes after the end, and waits for a writer as open(2) does. It must not wait for ever.
    async fn late(path: &str) -> String {
        let path = path.to_owned();
        let reading = tokio::task::spawn_blocking(move || fs::read_to_string(path).unwrap());
        tokio::time::timeout(Duration::from_secs(20), reading)
            .await
            .unwrap()
            .unwrap()
    }

    #[test]
    fn nothing_is_opened_for_empty_names() {
        let (stdio, kept) = open(&Streams::default()).unwrap();
        assert!(stdio.stdin.is_none() && stdio.stdout.is_none() && stdio.stderr.is_none());
        assert!(kept.stdin.is_none());
    }

    #[test]
    fn a_fifo_that_a_file_uri_names_opens_without_a_reader() {
        let folder = scratch("file-fifo");
        let path = fifo(&folder, "1");
        let streams = Streams {
            stdout: format!("file://{path}"),
            stderr: format!("file://{path}"),
            ..Streams::default()
        };
        let (stdio, _kept) = open(&streams).unwrap();
        file(stdio.stdout).write_all(b"out").unwrap();
        file(stdio.stderr).write_all(b"err").unwrap();
        assert_eq!(rest(&path), "outerr");
    }

    #[test]
    fn fifos_open_without_anybody_at_the_other_end_and_block_for_the_guest() {
        let folder = scratch("alone");
        let streams = Streams {
            stdin: fifo(&folder, "0"),
            stdout: fifo(&folder, "1"),
            stderr: format!("fifo://{}", fifo(&folder, "2")),
            ..Streams::default()
        };
        let (stdio, _kept) = open(&streams).unwrap();
        for end in [&stdio.stdin, &stdio.stdout, &stdio.stderr] {
            let flags = rustix::fs::fcntl_getfl(end.as_ref().unwrap()).unwrap();
            assert!(!flags.contains(OFlags::NONBLOCK));
        }
    }

    #[test]
    fn stdin_ends_at_close_io_and_not_when_a_client_goes_away() {
        let folder = scratch("stdin");
        let path = fifo(&folder, "0");
        let (stdio, mut kept) = open(&Streams {
            stdin: path.clone(),
            ..Streams::default()
        })
        .unwrap();
        let mut stdin = file(stdio.stdin);
        let mut client = File::options().write(true).open(&path).unwrap();
        client.write_all(b"one").unwrap();
        drop(client);
        let mut client = File::options().write(true).open(&path).unwrap();
        client.write_all(b"two").unwrap();
        drop(client);
        kept.close_stdin();
        let mut all = String::new();
        stdin.read_to_string(&mut all).unwrap();
        assert_eq!(all, "onetwo");
    }

    #[test]
    fn output_written_while_nobody_reads_is_there_for_the_next_reader() {
        let folder = scratch("stdout");
        let path = fifo(&folder, "1");
        let (stdio, kept) = open(&Streams {
            stdout: path.clone(),
            ..Streams::default()
        })
        .unwrap();
        let mut stdout = file(stdio.stdout);
        let first = File::options().read(true).open(&path).unwrap();
        drop(first);
        stdout.write_all(b"still here").unwrap();
        let mut second = File::options().read(true).open(&path).unwrap();
        drop((stdout, kept));
        let mut all = String::new();
        second.read_to_string(&mut all).unwrap();
        assert_eq!(all, "still here");
    }

    #[tokio::test]
    async fn output_that_is_unread_at_the_end_is_held_until_it_is_read_or_the_time_is_up() {
        let folder = scratch("linger");
        let written = |name| {
            let path = fifo(&folder, name);
            let streams = Streams {
                stdout: path.clone(),
                ..Streams::default()
            };
            let (stdio, kept) = open(&streams).unwrap();
            file(stdio.stdout).write_all(b"unread").unwrap();
            (path, kept)
        };
        let (path, kept) = written("read");
        let lingering = tokio::spawn(kept.linger(Duration::MAX));
        tokio::time::sleep(3 * LOOK).await;
        assert!(!lingering.is_finished());
        assert_eq!(late(&path).await, "unread");
        lingering.await.unwrap();

        let (path, kept) = written("unread");
        kept.linger(LOOK).await;
        assert_eq!(rest(&path), "");
    }

    #[tokio::test]
    async fn a_reader_that_comes_after_the_end_gets_the_output_and_its_end_and_a_third_one_gets_nothing() {
        let folder = scratch("late");
        for (text, both) in [("unread", false), ("", false), ("of both", true)] {
            let path = fifo(&folder, &format!("1{text}"));
            let streams = Streams {
                stdout: path.clone(),
                stderr: if both { path.clone() } else { String::new() },
                ..Streams::default()
            };
            let (stdio, mut kept) = open(&streams).unwrap();
            file(stdio.stdout).write_all(text.as_bytes()).unwrap();
            drop(stdio.stderr);
            assert!(!kept.end(), "nobody has come");
            let ending = tokio::spawn(async move {
                await_readers(|| kept.end()).await;
                kept
            });
            assert_eq!(late(&path).await, text);
            let kept = ending.await.unwrap();
            assert!(matches!(kept.stdout, Some(Output::Met(_))));
            assert_eq!(rest(&path), "");
        }
    }

    #[test]
    fn a_reader_that_is_there_at_the_end_is_not_awaited_and_gets_what_is_written() {
        let folder = scratch("early");
        let path = fifo(&folder, "1");
        let streams = Streams {
            stdout: path.clone(),
            ..Streams::default()
        };
        let (stdio, mut kept) = open(&streams).unwrap();
        let mut reader = File::options().read(true).open(&path).unwrap();
        file(stdio.stdout).write_all(b"read").unwrap();
        assert!(kept.end());
        let mut all = String::new();
        reader.read_to_string(&mut all).unwrap();
        assert_eq!(all, "read");
        drop(reader);
        assert!(kept.end(), "nor when it has gone");
    }

    #[test]
    fn a_file_is_made_and_appended_to() {
        let path = scratch("file").join("logs/out");
        let uri = format!("file://{}", path.display());
        for line in ["one\n", "two\n"] {
            let (stdio, _kept) = open(&Streams {
                stdout: uri.clone(),
                ..Streams::default()
            })
            .unwrap();
            file(stdio.stdout).write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn where_stdout_is_a_file_stderr_goes_there_too() {
        let path = scratch("both").join("out");
        let (stdio, _kept) = open(&Streams {
            stdout: format!("file://{}?max=1", path.display()),
            stderr: "file:///nowhere/else".into(),
            ..Streams::default()
        })
        .unwrap();
        file(stdio.stdout).write_all(b"out\n").unwrap();
        file(stdio.stderr).write_all(b"err\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "out\nerr\n");
    }

    #[test]
    fn what_is_not_supported_or_missing_is_named() {
        let refused = |streams: Streams| open(&streams).unwrap_err().to_string();
        assert_eq!(
            refused(Streams {
                stdout: "tcp://host:1".into(),
                ..Streams::default()
            }),
            "stdout \"tcp://host:1\": streams of scheme \"tcp\" are not supported, use a fifo, file:// or binary://"
        );
        assert_eq!(
            refused(Streams {
                stderr: "/nowhere/2".into(),
                ..Streams::default()
            }),
            "cannot open stderr at /nowhere/2: No such file or directory (os error 2)"
        );
        assert_eq!(
            refused(Streams {
                stderr: "binary:///bin/logger".into(),
                ..Streams::default()
            }),
            "stderr \"binary:///bin/logger\" is not valid: a logger takes both outputs, so it must be stdout's too"
        );
        assert_eq!(
            refused(Streams {
                stdin: "file:///etc/passwd".into(),
                ..Streams::default()
            }),
            "stdin /etc/passwd is not a fifo"
        );
    }
}
