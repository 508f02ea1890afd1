//! The server's side of the launcher: asks for processes, holds their pidfds, hears their reports.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command as Process, Stdio as Streams};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, watch};

use super::plan::{Confinement, Plan};
use super::protocol::{Answer, Command, MESSAGE, Report, START, decode, encode};
use super::record::{self, Record};
use super::resources;
use crate::compile::Artifact;
use crate::sys::cgroup::{self, Cgroup, Hierarchies};
use crate::sys::{fds, memfd, pidfd, seqpacket};

/// The three standard streams of a process; `None` is /dev/null.
#[derive(Debug, Default)]
pub struct Stdio {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 + the signal.
    pub code: u32,
    pub at: SystemTime,
    /// What the guest process said of its end: a trap's message, say.
    pub message: Option<String>,
}

/// Why a process could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("the launcher could not be started")]
    StartLauncher(#[source] io::Error),
    #[error("the launcher died while it made the process")]
    LauncherGone(#[source] io::Error),
    #[error("the bundle {0} could not take its record")]
    Record(String, #[source] io::Error),
    #[error("the cgroup {0} could not be made")]
    Cgroup(String, #[source] io::Error),
    #[error("the limits could not be applied to the cgroup {0}: {1}")]
    Limits(String, String),
    #[error("no {0} for the process")]
    Resource(&'static str, #[source] io::Error),
    /// What the spec asks for could not be done; the process's own words.
    #[error("{0}")]
    Confine(String),
    #[error("the process ended with code {0} before it was ready")]
    Died(u32),
}

/// The launcher of this server; started again when it dies or has forked often enough.
pub struct Launcher {
    hierarchies: Hierarchies,
    max_forks: u64,
    running: Mutex<Running>,
    starts: std::sync::atomic::AtomicU64,
}

struct Running {
    socket: AsyncFd<OwnedFd>,
    process: Option<Child>,
    forks: u64,
}

impl Drop for Running {
    /// The launcher ends when its socket does; a thread waits for that, so that no zombie stays.
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            std::thread::spawn(move || process.wait());
        }
    }
}

impl Launcher {
    /// Starts a launcher process, to be renewed after `max_forks` forks: a new one has another address layout.
    ///
    /// # Errors
    ///
    /// When there is no cgroup file system or the process cannot be started.
    pub async fn start(max_forks: u64) -> Result<Launcher, SandboxError> {
        let hierarchies = Hierarchies::find(Path::new(cgroup::ROOT))
            .map_err(|error| SandboxError::Cgroup(cgroup::ROOT.into(), error))?;
        let running = Mutex::new(Running::start().map_err(SandboxError::StartLauncher)?);
        Ok(Launcher {
            hierarchies,
            max_forks,
            running,
            starts: 1.into(),
        })
    }

    /// Ends the launcher process and reaps it; its guests live on.
    pub async fn stop(&self) {
        let mut running = self.running.lock().await;
        // Its next receive says that the peer is gone, which is its end.
        let _ = rustix::net::shutdown(running.socket.get_ref(), rustix::net::Shutdown::Both);
        if let Some(mut process) = running.process.take() {
            let _ = tokio::task::spawn_blocking(move || process.wait()).await;
        }
    }

    /// How many launchers this server has started.
    pub fn starts(&self) -> u64 {
        self.starts.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Forks a process for `plan`, whose record goes into `bundle` first. When this returns an error nothing is left.
    ///
    /// # Errors
    ///
    /// What could not be made, or what the process said when it could not confine itself or load its program.
    pub async fn spawn(
        &self,
        bundle: &Path,
        plan: &Plan,
        stdio: Stdio,
        artifact: Option<&Artifact>,
    ) -> Result<Guest, SandboxError> {
        let cgroup = self.hierarchies.cgroup(&plan.cgroup);
        let record = Record::new(cgroup.clone());
        record
            .write(bundle)
            .map_err(|error| SandboxError::Record(bundle.display().to_string(), error))?;
        let result = self.try_spawn(bundle, plan, stdio, artifact, cgroup, record).await;
        if result.is_err() {
            let bundle = bundle.to_owned();
            let cleaned = tokio::task::spawn_blocking(move || record::clean(&bundle)).await;
            if let Ok(Err(error)) = cleaned {
                tracing::warn!(%error, "a process that failed left something behind");
            }
        }
        result
    }

    async fn try_spawn(
        &self,
        bundle: &Path,
        plan: &Plan,
        stdio: Stdio,
        artifact: Option<&Artifact>,
        cgroup: Cgroup,
        record: Record,
    ) -> Result<Guest, SandboxError> {
        prepare_cgroup(cgroup.clone(), plan).await?;
        let resource = |what| move |error| SandboxError::Resource(what, error);
        let confinement = Confinement {
            entrances: cgroup.entrances(),
            ..plan.confinement.clone()
        };
        let text = memfd::sealed("plan", &encode(&confinement)).map_err(resource("plan"))?;
        let (ours, theirs) = seqpacket::pair().map_err(resource("report socket"))?;
        rustix::io::ioctl_fionbio(&ours, true)
            .map_err(|error| SandboxError::Resource("report socket", error.into()))?;
        let null = || {
            std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/null")
                .map(OwnedFd::from)
        };
        let mut streams = Vec::new();
        for stream in [stdio.stdin, stdio.stdout, stdio.stderr] {
            streams.push(stream.map_or_else(null, Ok).map_err(resource("standard stream"))?);
        }
        let file = artifact.map(|artifact| artifact.file.clone());
        let fds: Vec<BorrowedFd<'_>> = [text.as_fd(), theirs.as_fd()]
            .into_iter()
            .chain(streams.iter().map(AsFd::as_fd))
            .chain(file.iter().map(|file| file.as_fd()))
            .collect();
        let command = Command::Spawn {
            artifact: file.is_some(),
        };
        let (answer, handle) = self.ask(command, &fds).await?;
        drop(fds);
        drop((text, theirs, streams));
        let socket = fds::polled(ours, Interest::READABLE).map_err(resource("report socket"))?;
        let (pid, handle) = match (answer, handle) {
            (Answer::Forked { pid }, Some(handle)) => (pid, handle),
            (Answer::Failed { message }, _) => {
                // The helper's own words say more than the launcher's.
                return Err(SandboxError::Confine(match receive(&socket).await {
                    Some(Report::Failed { message }) => message,
                    _ => message,
                }));
            }
            (Answer::Forked { .. }, None) => {
                return Err(SandboxError::Resource(
                    "pidfd",
                    io::Error::from(io::ErrorKind::InvalidData),
                ));
            }
        };
        let guest = Guest::new(pid, handle, socket, cgroup)?;
        if let Some(pid) = Pid::from_raw(pid) {
            record
                .with_process(pid)
                .write(bundle)
                .map_err(|error| SandboxError::Record(bundle.display().to_string(), error))?;
        }
        // The guest's parent is this server now. One that has failed meanwhile does not read it, and says why.
        let _ = seqpacket::send(guest.socket.get_ref(), ADOPTED, &[]);
        match receive(&guest.socket).await {
            Some(Report::Ready) => Ok(guest),
            Some(Report::Failed { message } | Report::Ended { message }) => {
                guest.exited().await;
                Err(SandboxError::Confine(message))
            }
            None => Err(SandboxError::Died(guest.exited().await.code)),
        }
    }

    /// One command and its answer. A launcher that is gone is replaced and asked once more: nothing it forked for the
    /// lost command outlives the report socket.
    async fn ask(&self, command: Command, fds: &[BorrowedFd<'_>]) -> Result<(Answer, Option<OwnedFd>), SandboxError> {
        let mut running = self.running.lock().await;
        if running.forks >= self.max_forks {
            self.renew(&mut running)?;
        }
        running.forks += 1;
        match running.ask(command, fds).await {
            Ok(answer) => Ok(answer),
            Err(error) => {
                tracing::warn!(%error, "the launcher is gone; a new one is started");
                self.renew(&mut running)?;
                running.ask(command, fds).await.map_err(SandboxError::LauncherGone)
            }
        }
    }

    fn renew(&self, running: &mut Running) -> Result<(), SandboxError> {
        *running = Running::start().map_err(SandboxError::StartLauncher)?;
        self.starts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
}

/// Tells a guest that its parent is the server from now on.
const ADOPTED: &[u8] = b"a";

async fn prepare_cgroup(cgroup: Cgroup, plan: &Plan) -> Result<(), SandboxError> {
    let resources = plan.resources.clone();
    let name = cgroup.path.display().to_string();
    let work = move || {
        cgroup
            .create()
            .map_err(|error| SandboxError::Cgroup(cgroup.path.display().to_string(), error))?;
        match resources {
            None => Ok(()),
            Some(resources) => resources::apply(&cgroup, &resources)
                .map_err(|error| SandboxError::Limits(cgroup.path.display().to_string(), error)),
        }
    };
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(SandboxError::Cgroup(name, io::Error::other(error))))
}

/// The next report; `None` when the process is gone.
async fn receive(socket: &AsyncFd<OwnedFd>) -> Option<Report> {
    let mut buffer = vec![0; MESSAGE];
    let received = socket
        .async_io(Interest::READABLE, |socket| seqpacket::receive(socket, &mut buffer))
        .await
        .ok()?;
    decode(&buffer[..received.0])
}

impl Running {
    fn start() -> io::Result<Running> {
        let (ours, theirs) = seqpacket::pair()?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let process = Process::new("/proc/self/exe")
            .arg("launch")
            .env_clear()
            .stdin(Streams::from(theirs))
            .stdout(Streams::null())
            .stderr(Streams::null())
            .spawn()?;
        Ok(Running {
            socket: fds::polled(ours, Interest::READABLE | Interest::WRITABLE)?,
            process: Some(process),
            forks: 0,
        })
    }

    async fn ask(&self, command: Command, fds: &[BorrowedFd<'_>]) -> io::Result<(Answer, Option<OwnedFd>)> {
        let bytes = encode(&command);
        self.socket
            .async_io(Interest::WRITABLE, |socket| seqpacket::send(socket, &bytes, fds))
            .await?;
        let mut buffer = vec![0; MESSAGE];
        let (length, mut fds) = self
            .socket
            .async_io(Interest::READABLE, |socket| seqpacket::receive(socket, &mut buffer))
            .await?;
        let answer = decode(&buffer[..length]).ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok((answer, fds.pop()))
    }
}

/// A forked process: confined, loaded, waiting for its start, running, or ended.
pub struct Guest {
    pid: u32,
    handle: Arc<AsyncFd<OwnedFd>>,
    socket: Arc<AsyncFd<OwnedFd>>,
    cgroup: Cgroup,
    exit: watch::Receiver<Option<Exit>>,
}

impl Guest {
    fn new(pid: i32, handle: OwnedFd, socket: AsyncFd<OwnedFd>, cgroup: Cgroup) -> Result<Guest, SandboxError> {
        let resource = |what| move |error| SandboxError::Resource(what, error);
        let pid = u32::try_from(pid).map_err(io::Error::other).map_err(resource("pid"))?;
        let handle = fds::polled(handle, Interest::READABLE).map_err(resource("pidfd"))?;
        let (handle, socket) = (Arc::new(handle), Arc::new(socket));
        let (sender, exit) = watch::channel(None);
        tokio::spawn(watch_exit(handle.clone(), socket.clone(), sender));
        Ok(Guest {
            pid,
            handle,
            socket,
            cgroup,
            exit,
        })
    }

    /// The pid in the server's pid namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets the guest run.
    ///
    /// # Errors
    ///
    /// `EPIPE` when it is already dead.
    pub fn start(&self) -> io::Result<()> {
        seqpacket::send(self.socket.get_ref(), START, &[])
    }

    /// Sends `signal` through the pidfd.
    ///
    /// # Errors
    ///
    /// `ESRCH` when it has exited, `EINVAL` for a number that is no signal.
    pub fn kill(&self, signal: i32) -> io::Result<()> {
        if self.exit.borrow().is_some() {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        pidfd::kill(self.handle.get_ref(), signal)
    }

    /// Resolves when the process has exited; may be awaited by any number of callers, before and after.
    pub async fn exited(&self) -> Exit {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
        // The watcher sends before it ends, so only its own panic leaves nothing.
        ended.unwrap_or(Exit {
            code: 255,
            at: SystemTime::now(),
            message: None,
        })
    }

    /// The cgroup's figures as containerd's `io.containerd.cgroups.v1.Metrics` or `v2.Metrics`: type URL and bytes.
    ///
    /// # Errors
    ///
    /// When a file of the cgroup cannot be read.
    pub fn stats(&self) -> io::Result<(String, Vec<u8>)> {
        resources::metrics(&self.cgroup)
    }
}

/// Waits for the process's end, reaps it and keeps what it said of it.
async fn watch_exit(handle: Arc<AsyncFd<OwnedFd>>, socket: Arc<AsyncFd<OwnedFd>>, sender: watch::Sender<Option<Exit>>) {
    let code = handle
        .async_io(Interest::READABLE, |handle| {
            pidfd::reap(handle)?.ok_or(io::ErrorKind::WouldBlock.into())
        })
        .await
        .unwrap_or(255);
    let mut buffer = vec![0; MESSAGE];
    let message = match seqpacket::receive(socket.get_ref(), &mut buffer) {
        Ok((length, _)) => match decode(&buffer[..length]) {
            Some(Report::Ended { message }) => Some(message),
            _ => None,
        },
        Err(_) => None,
    };
    // Nobody waits when the container is deleted already.
    let _ = sender.send(Some(Exit {
        code,
        at: SystemTime::now(),
        message,
    }));
}
