//! The server's side of the launcher: asks for processes, holds their pidfds, hears their reports.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command as Process, Stdio as Streams};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kubewasi_options::Options;
use oci_spec::runtime::LinuxResources;
use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::group::{Group, GroupError};
use super::hooks::{HookError, Hooks};
use super::plan::{Confinement, Plan, Role};
use super::process::{Guest, receive};
use super::protocol::{Answer, Command, MESSAGE, Report, decode, encode};
use super::record::{self, Record};
use crate::compile::{Artifact, Profile, engine};
use crate::guest::http::figures::COUNTERS;
use crate::image::memory;
use crate::stdio::Stdio;
use crate::sys::cgroup::{self, Hierarchies};
use crate::sys::children::Children;
use crate::sys::memory::MemoryFolder;
use crate::sys::{counters, fds, mounts, seqpacket};

/// Why a process could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("the launcher could not be started")]
    StartLauncher(#[source] io::Error),
    #[error("the launcher died while it made the process")]
    LauncherGone(#[source] io::Error),
    #[error("the bundle {0} could not take its record")]
    Record(String, #[source] io::Error),
    #[error("the cgroups of this machine could not be read")]
    Cgroups(#[source] io::Error),
    #[error(transparent)]
    Group(#[from] GroupError),
    #[error("the cgroup {0} (linux.cgroupsPath) already holds processes: use another path")]
    CgroupInUse(String),
    #[error("no {0} for the process")]
    Resource(&'static str, #[source] io::Error),
    /// What the spec asks for could not be done; the process's own words.
    #[error("{0}")]
    Confine(String),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error("container {0} was given up before it was created: its client went away")]
    GivenUp(String),
    #[error("the process was not ready after {0} seconds: look for a volume that hangs")]
    NotReady(u64),
    #[error("the process ended with code {0} before it was ready")]
    Died(u32),
}

/// The launcher of this server; started again when it dies, has forked often enough or is old.
pub struct Launcher {
    hierarchies: Hierarchies,
    /// This program, read-only: what is forked from a launcher and executes files of a container can have its
    /// `/proc/self/exe` executed, and would else reach the file that way.
    program: OwnedFd,
    /// The host's `/dev`, read-only: a process that is root changes no mode or owner through its /dev/null.
    devices: OwnedFd,
    max_forks: u64,
    max_age: Duration,
    engine: kubewasi_options::Engine,
    running: Mutex<Running>,
    children: Arc<Children>,
    starts: std::sync::atomic::AtomicU64,
}

struct Running {
    socket: AsyncFd<OwnedFd>,
    process: Option<Child>,
    since: Instant,
    forks: u64,
}

impl Drop for Running {
    /// The launcher ends when its socket does; a thread waits for that, so that no zombie stays.
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Without a thread for it, it is reaped with the orphans.
            let _ = std::thread::Builder::new().spawn(move || process.wait());
        }
    }
}

impl Launcher {
    /// Starts a launcher process with the engine of `options`, to be renewed after so many forks and so long as they say:
    /// a new one has another address layout. What it forks is among `children`.
    ///
    /// # Errors
    ///
    /// When there is no cgroup file system or the process cannot be started.
    pub async fn start(options: &Options, children: Arc<Children>) -> Result<Launcher, SandboxError> {
        let hierarchies = Hierarchies::find(Path::new(cgroup::ROOT)).map_err(SandboxError::Cgroups)?;
        let program = mounts::open_read_only(Path::new("/proc/self/exe")).map_err(SandboxError::StartLauncher)?;
        let running = Running::start(&program, &options.engine).map_err(SandboxError::StartLauncher)?;
        Ok(Launcher {
            hierarchies,
            program,
            devices: mounts::open_read_only(Path::new("/dev"))
                .map_err(|error| SandboxError::Resource("view of /dev", error))?,
            max_forks: options.launcher_max_forks,
            max_age: options.launcher_max_age,
            engine: options.engine,
            running: Mutex::new(running),
            children,
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

    /// Runs the poststop hooks of a container of this server; see [`Hooks::poststop_until`].
    pub async fn poststop(&self, hooks: Hooks, given_up: impl Future<Output = ()>) {
        hooks.poststop_until(&self.children, given_up).await;
    }

    /// Among whom is what this server has made.
    pub fn children(&self) -> &Arc<Children> {
        &self.children
    }

    /// How many launchers this server has started.
    pub fn starts(&self) -> u64 {
        self.starts.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Forks a process for `plan`, whose record goes into `bundle` first, and runs the plan's hooks. When this returns an
    /// error nothing is left; it does so too once what `given_up` returns resolves while a hook runs.
    ///
    /// # Errors
    ///
    /// What could not be made, or what the process said when it could not confine itself or load its program; the hook
    /// that failed.
    pub async fn spawn<F: Future<Output = ()>>(
        &self,
        id: &str,
        bundle: &Path,
        plan: &Plan,
        stdio: Stdio,
        artifact: Option<&Artifact>,
        given_up: impl Fn() -> F,
    ) -> Result<Guest, SandboxError> {
        let group = Group::at(&plan.cgroup, &self.hierarchies, cgroup::systemd_runs(Path::new("/run")))
            .map_err(SandboxError::Cgroups)?;
        // What is in it is somebody else's, and cleaning up would end it.
        if !group.cgroup.pids().is_empty() {
            return Err(SandboxError::CgroupInUse(group.cgroup.path.display().to_string()));
        }
        let record = Record::new(group.clone(), plan.hooks.clone());
        record
            .write(bundle)
            .map_err(|error| SandboxError::Record(bundle.display().to_string(), error))?;
        let made = async {
            let guest = self.try_spawn(bundle, plan, stdio, artifact, group, record).await?;
            let pid = i32::try_from(guest.child().pid()).map_err(|error| SandboxError::Confine(error.to_string()))?;
            tokio::select! {
                ran = plan.hooks.create(pid, &self.children) => ran?,
                () = given_up() => return Err(SandboxError::GivenUp(id.to_owned())),
            }
            Ok(guest)
        };
        let result = made.await;
        if result.is_err() {
            let bundle = bundle.to_owned();
            let cleaned = tokio::task::spawn_blocking(move || record::clean(&bundle)).await;
            match cleaned {
                Ok(Ok(Some(hooks))) => hooks.poststop_until(&self.children, given_up()).await,
                Ok(Err(error)) => tracing::warn!(%error, "a process that failed left something behind"),
                Ok(Ok(None)) | Err(_) => {}
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
        group: Group,
        record: Record,
    ) -> Result<Guest, SandboxError> {
        if group.scope.is_none() {
            on_group(&group, plan, |group, limits| group.make(limits)).await?;
        }
        let confinement = Confinement {
            awaits_scope: group.scope.is_some(),
            ..plan.confinement.clone()
        };
        let settle = async |pid: Pid| {
            record
                .with_process(pid)
                .write(bundle)
                .map_err(|error| SandboxError::Record(bundle.display().to_string(), error))?;
            match group.scope.clone() {
                Some(scope) => on_group(&group, plan, move |group, limits| group.make_scope(&scope, pid, limits)).await,
                None => Ok(()),
            }
        };
        self.fork(confinement, stdio, artifact, None, group.clone(), settle)
            .await
    }

    /// Forks a process for `confinement` into the cgroup, the namespaces and the root of `container`, its first process.
    /// When this returns an error nothing is left of it.
    ///
    /// # Errors
    ///
    /// As [`Launcher::spawn`].
    pub async fn exec(
        &self,
        container: &Guest,
        confinement: &Confinement,
        stdio: Stdio,
        artifact: Option<&Artifact>,
    ) -> Result<Guest, SandboxError> {
        let group = container.group().clone();
        let beside = Some(container.child().pidfd());
        // The container's record names the cgroup, by which this process is found too.
        self.fork(confinement.clone(), stdio, artifact, beside, group, async |_| Ok(()))
            .await
    }

    /// Forks a process and waits until it is ready; `settle` is run while its pid cannot be another's.
    async fn fork(
        &self,
        confinement: Confinement,
        stdio: Stdio,
        artifact: Option<&Artifact>,
        beside: Option<BorrowedFd<'_>>,
        group: Group,
        settle: impl AsyncFnOnce(Pid) -> Result<(), SandboxError>,
    ) -> Result<Guest, SandboxError> {
        let resource = |what| move |error| SandboxError::Resource(what, error);
        let confinement = Confinement {
            entrances: group.cgroup.entrances(),
            memory: MemoryFolder::of(&group.cgroup),
            ..confinement
        };
        let text = memory::sealed("plan", &encode(&confinement)).map_err(resource("plan"))?;
        let null = || {
            let flags = OFlags::RDWR | OFlags::CLOEXEC;
            Ok(rustix::fs::openat(&self.devices, "null", flags, Mode::empty())?)
        };
        let mut fds = vec![text];
        for stream in [stdio.stdin, stdio.stdout, stdio.stderr] {
            fds.push(stream.map_or_else(null, Ok).map_err(resource("standard stream"))?);
        }
        let artifact = artifact.map(|artifact| artifact.file.clone());
        // A launcher that dies is replaced and asked once more, with another report socket: whatever it forked for the
        // first one waits there for a word that never comes, and ends when our side is gone.
        let artifact = artifact.as_deref().map(AsFd::as_fd);
        let serves = matches!(confinement.role, Role::Guest { world, .. } if world.profile() == Profile::Service);
        let counters = serves.then(|| counters::create("counters", COUNTERS)).transpose();
        let counters = counters.map_err(resource("counters"))?;
        let shared = counters.as_ref().map(AsFd::as_fd);
        let expected = self.children.expect();
        let (socket, answer, handle) = match self.request(&fds, artifact, shared, beside).await {
            Err(SandboxError::LauncherGone(_)) => self.request(&fds, artifact, shared, beside).await?,
            result => result?,
        };
        drop(fds);
        let (pid, handle) = match (answer, handle) {
            (Answer::Forked { pid }, Some(handle)) => (pid, handle),
            (answer, _) => {
                // A guest that lost its helper reads that nobody is there, and ends.
                let _ = rustix::net::shutdown(socket.get_ref(), rustix::net::Shutdown::Write);
                drop(expected);
                self.children.sweep_soon();
                let said = match answer {
                    Answer::Failed { message } => message,
                    Answer::Forked { pid } => format!("the process {pid} came without a pidfd"),
                };
                // The helper's own words say more than the launcher's.
                return Err(SandboxError::Confine(match timeout(READY, receive(&socket)).await {
                    Ok(Some(Report::Failed { message })) => message,
                    _ => said,
                }));
            }
        };
        // While it is expected nobody reaps it: until then the pid is its own, and so is the start time.
        if let Some(own) = Pid::from_raw(pid)
            && let Err(error) = settle(own).await
        {
            // Nobody will wait for it. It ends with its socket.
            drop(expected);
            self.children.sweep_soon();
            return Err(error);
        }
        let guest = Guest::new(pid, handle, socket, group, counters, &self.children)?;
        drop(expected);
        if confinement.awaits_scope {
            // One that has ended meanwhile is heard of below.
            let _ = guest.enter();
        }
        // The guest's parent is this server now. One that has failed meanwhile does not read it, and says why.
        let _ = guest.adopt();
        match timeout(READY, guest.report()).await {
            Ok(Some(Report::Ready)) => Ok(guest),
            Ok(Some(Report::Failed { message } | Report::Ended { message })) => {
                guest.child().exited().await;
                Err(SandboxError::Confine(message))
            }
            // Who reaped it may have heard its last words before us.
            Ok(None) => {
                let exit = guest.child().exited().await;
                let died = SandboxError::Died(exit.code);
                Err(exit.message.map_or(died, SandboxError::Confine))
            }
            Err(_) => {
                // A container's own process is looked for in the cgroup once more, in `spawn`.
                let _ = guest.kill(libc::SIGKILL);
                Err(SandboxError::NotReady(READY.as_secs()))
            }
        }
    }

    /// Asks for a process whose reports arrive at the socket that comes back.
    async fn request(
        &self,
        fds: &[OwnedFd],
        artifact: Option<BorrowedFd<'_>>,
        counters: Option<BorrowedFd<'_>>,
        beside: Option<BorrowedFd<'_>>,
    ) -> Result<(AsyncFd<OwnedFd>, Answer, Option<OwnedFd>), SandboxError> {
        let resource = |error| SandboxError::Resource("report socket", error);
        let (ours, theirs) = seqpacket::pair().map_err(resource)?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(|error| resource(error.into()))?;
        let socket = fds::polled(ours, Interest::READABLE).map_err(resource)?;
        let attached: Vec<BorrowedFd<'_>> = [fds[0].as_fd(), theirs.as_fd()]
            .into_iter()
            .chain(fds[1..].iter().map(AsFd::as_fd))
            .chain(artifact)
            .chain(counters)
            .chain(beside)
            .collect();
        let command = Command::Spawn {
            artifact: artifact.is_some(),
            counters: counters.is_some(),
            beside: beside.is_some(),
        };
        let (answer, handle) = self.ask(command, &attached).await?;
        Ok((socket, answer, handle))
    }

    /// One command and its answer.
    ///
    /// # Errors
    ///
    /// When the launcher is gone or silent: a new one is there for the next command.
    async fn ask(&self, command: Command, fds: &[BorrowedFd<'_>]) -> Result<(Answer, Option<OwnedFd>), SandboxError> {
        let mut running = self.running.lock().await;
        if running.forks >= self.max_forks || running.since.elapsed() >= self.max_age {
            self.renew(&mut running)?;
        }
        running.forks += 1;
        let answer = timeout(ANSWER, running.ask(command, fds)).await;
        match answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(answer) => Ok(answer),
            Err(error) => {
                tracing::warn!(%error, "the launcher is gone; a new one is started");
                running.kill();
                self.renew(&mut running)?;
                self.children.sweep_soon();
                Err(SandboxError::LauncherGone(error))
            }
        }
    }

    fn renew(&self, running: &mut Running) -> Result<(), SandboxError> {
        *running = Running::start(&self.program, &self.engine).map_err(SandboxError::StartLauncher)?;
        self.starts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
}

/// A helper only enters namespaces and forks: one that takes so long hangs, and every start of the node with it.
const ANSWER: Duration = Duration::from_secs(10);

/// The longest a guest may take to confine itself: a mount of a dead server hangs for ever.
const READY: Duration = Duration::from_secs(60);

/// Does what blocks to the cgroup, with the plan's limits.
async fn on_group(
    group: &Group,
    plan: &Plan,
    work: impl FnOnce(&Group, Option<&LinuxResources>) -> Result<(), GroupError> + Send + 'static,
) -> Result<(), SandboxError> {
    let (group, limits) = (group.clone(), plan.resources.clone());
    match tokio::task::spawn_blocking(move || work(&group, limits.as_ref())).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(SandboxError::Cgroups(io::Error::other(error))),
    }
}

impl Running {
    fn kill(&mut self) {
        if let Some(process) = &mut self.process {
            // One that is dead already is what we want.
            let _ = process.kill();
        }
    }

    fn start(program: &OwnedFd, engine: &kubewasi_options::Engine) -> io::Result<Running> {
        let (ours, theirs) = seqpacket::pair()?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let process = Process::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
            // The path by which ps(1) shows it: the program's own has no name behind the mount.
            .arg0(std::env::current_exe()?)
            .arg("launch")
            .arg(engine::argument(engine))
            .env_clear()
            .stdin(Streams::from(theirs))
            .stdout(Streams::null())
            .stderr(Streams::null())
            .spawn()?;
        Ok(Running {
            socket: fds::polled(ours, Interest::READABLE | Interest::WRITABLE)?,
            process: Some(process),
            since: Instant::now(),
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
