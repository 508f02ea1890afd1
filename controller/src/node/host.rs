//! What the agent finds out about its host before anything is decided; nothing is changed here.
//!
//! The pod sees the host's processes, so the host's files are looked at through theirs: `/proc/1/root` is the host's
//! root, `/proc/PID/root` is containerd's. A mounted folder of sockets would pin the root filesystems of containers that
//! are mounted below it, and a mounted socket is stale after a restart.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;

use super::config::{self, Files, LoadError, Release};
use super::configuration::Configuration;
use super::cri::{Cri, CriError};
use super::disk::HostDisk;
use super::dumper::{DumpError, Dumper};
use super::health::Health;
use super::host_path::{below, resolve};
use super::refusal::Refusal;
use super::restart::LossError;
use super::runtime_socket::{self, Parent};
use super::systemd::{Systemd, SystemdError, Unit};

/// The timeout of a connection to a listener.
const ACCEPT: Duration = Duration::from_secs(5);
/// Sockets of unsupported runtimes, for a better message.
const OTHERS: [(&str, &str); 2] = [
    ("/run/crio/crio.sock", "CRI-O"),
    ("/run/cri-dockerd.sock", "cri-dockerd"),
];
/// containerd's own default.
const CONFIG: &str = "/etc/containerd/config.toml";

/// Why the host could not be examined; a retry may succeed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error(transparent)]
    Cri(#[from] CriError),
    #[error(transparent)]
    Systemd(#[from] SystemdError),
    #[error(transparent)]
    Loss(#[from] LossError),
    #[error("cannot read {path}: {cause}", path = path.display())]
    Read { path: PathBuf, cause: io::Error },
    #[error("{path} is not of the form that proc(5) gives it: {text:?}", path = path.display())]
    Proc { path: PathBuf, text: String },
    /// Something is in a state that the end of a restart may fix; a host that stays so is refused.
    #[error("{0}")]
    Unavailable(Refusal),
    #[error(transparent)]
    Dump(#[from] DumpError),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl HostError {
    /// The refusal to report if the host stays like this.
    pub fn refusal(&self) -> Refusal {
        match self {
            HostError::Refused(refusal) | HostError::Unavailable(refusal) => refusal.clone(),
            HostError::Cri(_) | HostError::Loss(_) => Refusal::unreachable(self),
            HostError::Systemd(_) | HostError::Dump(DumpError::Systemd(_)) => Refusal::systemd(self),
            HostError::Dump(DumpError::Write(error)) => Refusal::write(error),
            HostError::Dump(error @ (DumpError::Rejected(_) | DumpError::Output(_) | DumpError::Load(_))) => {
                Refusal::dump(error)
            }
            HostError::Dump(DumpError::Run { .. } | DumpError::TimedOut { .. }) => Refusal::unreachable(self),
            HostError::Read { .. } | HostError::Proc { .. } => Refusal::host(self),
        }
    }
}

/// The host, seen from where this program runs.
#[derive(Clone, Debug)]
pub struct Host {
    /// The host's root.
    pub root: PathBuf,
    /// A procfs of the host's pids.
    pub processes: PathBuf,
    /// What asks the host's containerd about its files.
    pub dumper: Dumper,
}

/// A running containerd and all that is known of it.
#[derive(Clone, Debug)]
pub struct Containerd {
    pub pid: u32,
    /// Its socket, as the host names it.
    pub socket: PathBuf,
    /// Its program, as the host names it.
    pub binary: PathBuf,
    /// When the kernel started it, in clock ticks after boot: with the boot id, another process for another value.
    pub started: u64,
    /// Its service.
    pub unit: Unit,
    pub health: Health,
    /// Its configuration as it is on disk now.
    pub configuration: Configuration,
}

impl Host {
    /// The host of the pod that this runs in, which shares the host's pids.
    pub fn of_pod() -> Host {
        Host {
            root: PathBuf::from("/proc/1/root"),
            processes: PathBuf::from("/proc"),
            dumper: Dumper::new(Path::new("/proc/1/root")),
        }
    }

    /// The machine that this runs on, without a pod.
    pub fn itself() -> Host {
        Host {
            root: PathBuf::from("/"),
            processes: PathBuf::from("/proc"),
            dumper: Dumper::new(Path::new("/")),
        }
    }

    /// A path of the host's, in this process's view. Symbolic links are followed below the host's root, where those that are
    /// absolute would lead a system call out of it.
    pub fn path(&self, path: &Path) -> PathBuf {
        below(
            &self.root,
            &resolve(&self.root, path).unwrap_or_else(|_| path.to_owned()),
        )
    }

    /// The boot that this is.
    pub fn boot_id(&self) -> Result<String, HostError> {
        let text = read(&self.processes.join("sys/kernel/random/boot_id"))?;
        Ok(text.trim().to_owned())
    }

    /// Finds the containerd that runs the pod with `pod_uid`, or the one that runs the host's pods when no pod is named.
    ///
    /// # Errors
    ///
    /// When there is none that the agent can work with; each call that it takes ends within ten seconds.
    pub async fn containerd(&self, pod_uid: Option<&str>) -> Result<Containerd, HostError> {
        if !super::systemd::socket(&self.root).exists() || !self.path(Path::new("/run/systemd/system")).exists() {
            return Err(Refusal::no_systemd().into());
        }
        let Found {
            socket,
            pid,
            config,
            mut cri,
            health,
        } = self.find(pod_uid).await?;
        let process = self.processes.join(pid.to_string());
        let binary = program(&read_link(&process.join("exe"))?);
        let unit = match Systemd::connect(&self.root).await?.unit_of(pid).await {
            Err(error @ (SystemdError::NoUnit { .. } | SystemdError::NoService { .. })) => {
                return Err(Refusal::no_service(&error).into());
            }
            unit => unit?,
        };
        let configuration = self.configuration(&process.join("root"), &binary, &config, &health)?;
        let started = started(&process)?;
        // Whoever restarts it while we look would have us mix two.
        cri.health().await?;
        Ok(Containerd {
            pid,
            socket,
            binary,
            started,
            unit,
            health,
            configuration,
        })
    }

    /// The sockets at which the containerd may listen that runs the pod, or the host's pods; the likeliest first.
    fn sockets(&self, pod_uid: Option<&str>) -> Result<Vec<PathBuf>, Refusal> {
        match pod_uid.and_then(|_| runtime_socket::parent(&self.processes, "self")) {
            Some(Parent::Containerd(socket)) => Ok(vec![socket]),
            Some(Parent::Other(name)) => Err(Refusal::other_runtime(name)),
            None => Ok(runtime_socket::candidates(&self.processes)
                .into_iter()
                .filter(|socket| self.path(socket).symlink_metadata().is_ok())
                .collect()),
        }
    }

    /// The socket whose CRI lists the pod.
    async fn find(&self, pod_uid: Option<&str>) -> Result<Found, HostError> {
        let sockets = self.sockets(pod_uid)?;
        let mut unusable = None;
        for socket in &sockets {
            match self.ask(socket, pod_uid).await {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(error) => _ = unusable.get_or_insert(error),
            }
        }
        let other = OTHERS.iter().find(|(socket, _)| self.path(Path::new(socket)).exists());
        Err(match (unusable, other) {
            (Some(error), _) => error,
            (None, Some((_, name))) => Refusal::other_runtime(name).into(),
            (None, None) if sockets.is_empty() => {
                Refusal::no_containerd(&runtime_socket::KNOWN.map(PathBuf::from)).into()
            }
            (None, None) => Refusal::no_containerd(&sockets).into(),
        })
    }

    /// The containerd at a socket, if it runs the pod.
    async fn ask(&self, socket: &Path, pod_uid: Option<&str>) -> Result<Option<Found>, HostError> {
        let pid = self.listener(socket).await?;
        let process = self.processes.join(pid.to_string());
        let config = config_file(&process)?;
        let asked = async {
            let mut cri = Cri::connect(&self.path(socket)).await?;
            let health = cri.health().await?;
            let is_ours = match pod_uid {
                Some(uid) if health.runtime_name == "containerd" => cri.has_pod(uid).await?,
                _ => true,
            };
            Ok((cri, health, is_ours))
        };
        let (cri, health, is_ours) = asked.await.map_err(|error| match error {
            CriError::Disabled => without_cri(&process, &config, || Refusal::no_cri(socket)).into(),
            CriError::NotLoaded { cause } => {
                without_cri(&process, &config, || Refusal::cri_not_loaded(socket, &config, &cause)).into()
            }
            CriError::OtherVersion => Refusal::cri_version(socket).into(),
            CriError::NoAnswer { .. } => {
                HostError::Unavailable(Refusal::no_answer(socket, pid, is_stopped(&process), &error))
            }
            error => error.into(),
        })?;
        if health.runtime_name != "containerd" {
            return Err(Refusal::other_runtime(&health.runtime_name).into());
        }
        let socket = socket.to_owned();
        Ok(is_ours.then_some(Found {
            socket,
            pid,
            config,
            cri,
            health,
        }))
    }

    /// When the process was started that listens where containerd does, in clock ticks after boot; none where none does.
    pub async fn listener_started(&self, pod_uid: Option<&str>) -> Option<u64> {
        for socket in self.sockets(pod_uid).unwrap_or_default() {
            if let Ok(pid) = self.listener(&socket).await {
                return started(&self.processes.join(pid.to_string())).ok();
            }
        }
        None
    }

    /// The process that listens at a socket: SO_PEERCRED has who called listen(2).
    async fn listener(&self, socket: &Path) -> Result<u32, HostError> {
        let path = self.path(socket);
        let down = |why: &str| HostError::Unavailable(Refusal::down(socket, why));
        match fs::metadata(&path) {
            Err(error) => return Err(down(&error.to_string())),
            Ok(found) if !found.file_type().is_socket() => return Err(down("it is a file of another kind")),
            Ok(_) => {}
        }
        let stream = match tokio::time::timeout(ACCEPT, UnixStream::connect(&path)).await {
            Ok(stream) => stream.map_err(|error| down(&error.to_string()))?,
            Err(_) => return Err(down("it accepts no connection")),
        };
        let credentials = rustix::net::sockopt::socket_peercred(&stream)
            .map_err(io::Error::from)
            .map_err(read_error(&path))?;
        Ok(credentials.pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// Reads the configuration of a containerd whose root directory is `root`: its program and its root file as it names
    /// them.
    ///
    /// # Errors
    ///
    /// A refusal where the files cannot be followed.
    pub fn configuration(
        &self,
        root: &Path,
        binary: &Path,
        config: &Path,
        health: &Health,
    ) -> Result<Configuration, HostError> {
        let release: Release = health
            .release
            .parse()
            .map_err(|()| Refusal::unreadable_release(&health.release))?;
        let disk = HostDisk { root: root.to_owned() };
        let files = files_of(config, binary, &disk)?;
        Ok(Configuration {
            release,
            binary: binary.to_owned(),
            files,
            disk,
            dumper: self.dumper.clone(),
        })
    }
}

/// A containerd that answers, and how it was started.
struct Found {
    socket: PathBuf,
    pid: u32,
    config: PathBuf,
    cri: Cri,
    health: Health,
}

/// The root configuration file of a containerd: a relative path is relative to its working directory.
///
/// # Errors
///
/// When procfs cannot be read.
fn config_file(process: &Path) -> Result<PathBuf, HostError> {
    let cmdline = process.join("cmdline");
    let config = config_of(&fs::read(&cmdline).map_err(read_error(&cmdline))?);
    if config.is_absolute() {
        return Ok(config);
    }
    Ok(config::clean(&read_link(&process.join("cwd"))?.join(config)))
}

/// The files of a containerd whose root file is `config`.
fn files_of(config: &Path, binary: &Path, disk: &HostDisk) -> Result<Files, Refusal> {
    Files::load(config, disk).map_err(|error| match error {
        LoadError::Read { path, cause } if path == config && cause.kind() == io::ErrorKind::NotFound => {
            Refusal::no_config(config)
        }
        error => Refusal::load(error, binary),
    })
}

/// Why a containerd that answers serves no CRI: its files disable it or cannot be read, or `otherwise`.
fn without_cri(process: &Path, config: &Path, otherwise: impl FnOnce() -> Refusal) -> Refusal {
    let disk = HostDisk {
        root: process.join("root"),
    };
    match files_of(config, Path::new("containerd"), &disk) {
        Err(refusal) => refusal,
        Ok(files) => match files.disabled_cri() {
            disabled if disabled.is_empty() => otherwise(),
            disabled => config::Refusal::CriDisabled(disabled).into(),
        },
    }
}

/// `--config` or `-c` of a command line, else the default.
fn config_of(cmdline: &[u8]) -> PathBuf {
    let mut arguments = cmdline.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    while let Some(argument) = arguments.next() {
        let name = argument.trim_start_matches('-');
        if argument.starts_with('-') && matches!(name, "config" | "c") {
            return arguments
                .next()
                .map_or_else(|| CONFIG.into(), |path| path.into_owned().into());
        }
        if let Some(path) = name.strip_prefix("config=").or_else(|| name.strip_prefix("c=")) {
            return path.into();
        }
    }
    CONFIG.into()
}

/// What `/proc/PID/exe` leads to; of a program that was replaced since it was started, the new one.
fn program(link: &Path) -> PathBuf {
    let text = link.to_string_lossy();
    PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(&text))
}

/// The start time of proc_pid_stat(5), in clock ticks after boot.
pub fn started(process: &Path) -> Result<u64, HostError> {
    let path = process.join("stat");
    let text = read(&path)?;
    // The name, in parentheses, may have spaces and parentheses; the start is the 20th field after it.
    let rest = text.rsplit_once(") ").map(|(_, rest)| rest);
    let field = rest
        .and_then(|rest| rest.split(' ').nth(19))
        .and_then(|field| field.parse().ok());
    field.ok_or(HostError::Proc { path, text })
}

/// Whether a process is stopped by a signal, by the state in proc_pid_stat(5).
fn is_stopped(process: &Path) -> bool {
    let text = fs::read_to_string(process.join("stat")).unwrap_or_default();
    text.rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with(['T', 't']))
}

fn read(path: &Path) -> Result<String, HostError> {
    fs::read_to_string(path).map_err(read_error(path))
}

fn read_link(path: &Path) -> Result<PathBuf, HostError> {
    fs::read_link(path).map_err(read_error(path))
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> HostError {
    let path = path.to_owned();
    move |cause| HostError::Read { path, cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_the_one_that_containerd_was_started_with() {
        let of = |line: &str| config_of(line.replace(' ', "\0").as_bytes());
        assert_eq!(of("/usr/bin/containerd"), Path::new(CONFIG));
        assert_eq!(
            of("containerd --log-level debug --config /a.toml"),
            Path::new("/a.toml")
        );
        assert_eq!(of("containerd -c /a.toml"), Path::new("/a.toml"));
        assert_eq!(of("containerd --config=/a.toml --root /r"), Path::new("/a.toml"));
    }

    #[test]
    fn a_program_that_was_replaced_is_known_by_its_path() {
        assert_eq!(
            program(Path::new("/usr/bin/containerd (deleted)")),
            Path::new("/usr/bin/containerd")
        );
        assert_eq!(
            program(Path::new("/usr/bin/containerd")),
            Path::new("/usr/bin/containerd")
        );
    }

    #[test]
    fn a_start_is_read_behind_a_name_with_spaces_and_parentheses() {
        let folder = tempfile::tempdir().unwrap();
        let numbers: Vec<String> = (4..60).map(|number| number.to_string()).collect();
        fs::write(folder.path().join("stat"), format!("7 (a) b) S {}", numbers.join(" "))).unwrap();
        assert_eq!(started(folder.path()).unwrap(), 22);
        assert!(started(Path::new("/proc/self")).unwrap() > 0);
    }

    #[test]
    fn a_relative_configuration_is_where_containerd_works() {
        let process = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/var/lib/somewhere", process.path().join("cwd")).unwrap();
        let of = |line: &str| {
            fs::write(process.path().join("cmdline"), line.replace(' ', "\0")).unwrap();
            config_file(process.path()).unwrap()
        };
        assert_eq!(
            of("containerd -c config.toml"),
            Path::new("/var/lib/somewhere/config.toml")
        );
        assert_eq!(of("containerd --config=./../c.toml"), Path::new("/var/lib/c.toml"));
        assert_eq!(of("containerd -c /a.toml"), Path::new("/a.toml"));
    }
}
