//! Why the agent leaves a host alone, as the resource's status says it and as `kubewasi-node check` does.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::api::wasm_node;

use super::config::{self, LoadError};
use super::dumper::DumpError;
use super::durable::WriteError;
use super::journal::RecordError;
use super::restart::Losses;
use super::systemd::Job;

/// A reason to touch nothing, and what an administrator can do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// A word in CamelCase, for programs.
    pub reason: &'static str,
    /// What was found and how to fix it, for people.
    pub message: String,
}

impl From<Refusal> for wasm_node::Refusal {
    fn from(refusal: Refusal) -> wasm_node::Refusal {
        wasm_node::Refusal {
            reason: refusal.reason.to_owned(),
            message: refusal.message,
        }
    }
}

impl Refusal {
    fn new(reason: &'static str, message: impl Into<String>) -> Refusal {
        Refusal {
            reason,
            message: message.into(),
        }
    }

    pub fn no_systemd() -> Refusal {
        Refusal::new(
            "NoSystemd",
            "the host does not run systemd with a system bus, and no other service manager can restart containerd and roll it back",
        )
    }

    pub fn other_runtime(name: &str) -> Refusal {
        Refusal::new(
            "NotContainerd",
            format!("pods of this node are run by {name}; only containerd is supported"),
        )
    }

    pub fn no_containerd(sockets: &[PathBuf]) -> Refusal {
        let sockets: Vec<_> = sockets.iter().map(|socket| socket.display().to_string()).collect();
        Refusal::new(
            "NotContainerd",
            format!("no containerd that runs this pod listens at {}", sockets.join(" or ")),
        )
    }

    /// A socket at which no connection is accepted.
    pub fn down(socket: &Path, why: &str) -> Refusal {
        Refusal::new(
            "ContainerdDown",
            format!(
                "nothing answers at {}, the socket of the node's containerd: {why}; see `systemctl status containerd` and \
                 `journalctl -u containerd`, and start it",
                socket.display()
            ),
        )
    }

    /// A containerd that accepts connections and does not answer.
    pub fn no_answer(socket: &Path, pid: u32, is_stopped: bool, what: &dyn Display) -> Refusal {
        let fix = match is_stopped {
            true => format!("it is stopped by a signal: continue it with `kill -CONT {pid}`"),
            false => "see its log for what holds it up, and restart it".to_owned(),
        };
        Refusal::new(
            "ContainerdNotResponding",
            format!("the containerd at {}, pid {pid}: {what}; {fix}", socket.display()),
        )
    }

    /// A containerd without CRI that no file disables.
    pub fn no_cri(socket: &Path) -> Refusal {
        Refusal::new(
            "CriDisabled",
            format!(
                "the containerd at {} runs without its CRI plugin, and no file of its configuration disables that now: \
                 restart containerd, or install a build of containerd that has CRI",
                socket.display()
            ),
        )
    }

    pub fn cri_not_loaded(socket: &Path, config: &Path, cause: &str) -> Refusal {
        Refusal::new(
            "CriNotLoaded",
            format!(
                "the CRI plugin of the containerd at {} did not load: {cause}; correct {} and restart containerd",
                socket.display(),
                config.display()
            ),
        )
    }

    pub fn cri_version(socket: &Path) -> Refusal {
        Refusal::new(
            "UnsupportedContainerd",
            format!(
                "the containerd at {} does not serve version 1 of CRI: 1.6, 1.7 and 2.x are supported",
                socket.display()
            ),
        )
    }

    /// containerd cannot be asked, for a reason that no other refusal covers.
    pub fn unreachable(cause: &dyn Display) -> Refusal {
        Refusal::new(
            "ContainerdNotResponding",
            format!("the node's containerd cannot be asked: {cause}; see its log"),
        )
    }

    pub fn systemd(cause: &dyn Display) -> Refusal {
        Refusal::new(
            "SystemdNotResponding",
            format!(
                "the host's systemd cannot be asked about containerd's service: {cause}; see `systemctl status dbus` and \
                 `journalctl -b`, and get `systemctl list-jobs` to answer"
            ),
        )
    }

    pub fn no_service(cause: &dyn Display) -> Refusal {
        Refusal::new(
            "NoService",
            format!(
                "containerd is not run by a service of systemd's: {cause}; run it as one, with KillMode=process, so that it can \
                 be restarted and rolled back"
            ),
        )
    }

    /// Something about the host that is neither containerd's nor systemd's.
    pub fn host(cause: &dyn Display) -> Refusal {
        Refusal::new("HostUnreadable", format!("the host could not be examined: {cause}"))
    }

    pub fn write(error: &WriteError) -> Refusal {
        Refusal::new("NotWritable", error.to_string())
    }

    pub fn queued(unit: &str, job: &Job) -> Refusal {
        Refusal::new(
            "RestartQueued",
            format!(
                "{job} has not ended, and a restart of {unit} would have to wait for it without a containerd: see \
                 `systemctl list-jobs`; the agent goes on by itself when the job has ended"
            ),
        )
    }

    pub fn unreadable_release(release: &str) -> Refusal {
        Refusal::new(
            "UnsupportedContainerd",
            format!("containerd's release {release:?} is not readable: 1.6, 1.7 and 2.x are supported"),
        )
    }

    pub fn no_config(path: &Path) -> Refusal {
        let directory = path.parent().unwrap_or(Path::new("/")).display();
        let path = path.display();
        Refusal::new(
            "NoConfig",
            format!(
                "containerd runs without {path}: write one with \
                 `mkdir -p {directory} && containerd config default >{path}`"
            ),
        )
    }

    /// A configuration that containerd rejects.
    pub fn dump(error: &DumpError) -> Refusal {
        Refusal::new("ConfigRejected", error.to_string())
    }

    /// Files that cannot be followed; `binary` is containerd's program.
    pub fn load(error: LoadError, binary: &Path) -> Refusal {
        match error {
            LoadError::Read { path, cause } if cause.kind() == std::io::ErrorKind::InvalidData => {
                config::Refusal::Encoding { file: path }.into()
            }
            LoadError::Read { path, cause } => Refusal::unreadable(&path, &cause),
            LoadError::Missing { importer, path } => config::Refusal::MissingImport { importer, path }.into(),
            LoadError::Imports { path } => config::Refusal::Imports { file: path }.into(),
            LoadError::Unparsable { path, cause } => config::Refusal::Unparsable {
                advice: config::Refusal::rewriting(binary, &path),
                file: path,
                cause,
            }
            .into(),
        }
    }

    pub fn unreadable(path: &Path, cause: &std::io::Error) -> Refusal {
        if cause.kind() == std::io::ErrorKind::PermissionDenied {
            let path = path.display();
            return Refusal::new(
                "ConfigUnreadable",
                format!(
                    "{path} cannot be read by the agent, which is root without CAP_DAC_OVERRIDE: {cause}; make it and its \
                     directory belong to root (`chown root {path}`) or be readable for others"
                ),
            );
        }
        Refusal::new(
            "ConfigUnreadable",
            format!(
                "{} cannot be read, and containerd would not start again with it: {cause}",
                path.display()
            ),
        )
    }

    pub fn record(error: &RecordError) -> Refusal {
        Refusal::new("RecordUnreadable", error.to_string())
    }

    pub fn kill_mode(unit: &str, kill_mode: &str) -> Refusal {
        Refusal::new(
            "RestartEndsPods",
            format!(
                "{unit} has KillMode={kill_mode}, so its restart would end the node's pods: set KillMode=process, as containerd's own unit does"
            ),
        )
    }

    pub fn losses(losses: &Losses) -> Refusal {
        Refusal::new(
            "RestartEndsPods",
            format!(
                "containerd's shims name no process of these, so a restart of it would end them: {losses}; have the node use \
                 cgroup v2, the cgroupfs driver or containerd 2.x, or set containerdRestart to Never and restart containerd \
                 when that does no harm"
            ),
        )
    }

    /// A plan that goes on once somebody has restarted containerd.
    pub fn awaits_restart(cause: &dyn Display) -> Refusal {
        Refusal::new("AwaitsRestart", cause.to_string())
    }

    pub fn read_only(path: &Path, what: &str) -> Refusal {
        let path = path.display();
        Refusal::new(
            "ReadOnly",
            format!("{path} is on a read-only file system, so {what} cannot be written: mount it read-write"),
        )
    }

    pub fn no_exec(folder: &Path) -> Refusal {
        Refusal::new(
            "NoExec",
            format!(
                "{} is on a file system that forbids programs (noexec), so no shim can live there: mount it without noexec",
                folder.display()
            ),
        )
    }

    pub fn immutable(path: &Path, what: &str) -> Refusal {
        let path = path.display();
        Refusal::new(
            "Immutable",
            format!(
                "{path} has the attribute immutable or append-only, so {what} cannot be written: `chattr -i -a {path}`"
            ),
        )
    }

    /// A mount point cannot be renamed over, rename(2).
    pub fn mount_point(path: &Path) -> Refusal {
        let path = path.display();
        Refusal::new(
            "MountPoint",
            format!(
                "{path} is a mount point (a bind mount of a single file), which cannot be replaced in one step: mount its \
                 directory instead, or make it an ordinary file with `cp -p {path} {path}.copy && umount {path} && \
                 mv {path}.copy {path}`"
            ),
        )
    }

    pub fn hidden(path: &Path) -> Refusal {
        let path = path.display();
        Refusal::new(
            "ConfigHidden",
            format!(
                "containerd has another {path} than the host, by mounts of its own: remove BindPaths=, \
                 BindReadOnlyPaths= and the like for it from containerd's unit"
            ),
        )
    }

    pub fn full(path: &Path, wanted: u64) -> Refusal {
        let path = path.display();
        Refusal::new(
            "DiskFull",
            format!("the file system of {path} has no room for a file of {wanted} bytes: make room there"),
        )
    }

    pub fn not_writable(path: &Path, cause: &dyn Display) -> Refusal {
        let path = path.display();
        Refusal::new(
            "NotWritable",
            format!(
                "the agent, which is root without CAP_DAC_OVERRIDE, cannot write into {path}: {cause}; make it a \
                 directory of root's (`chown root {path}; chmod u+wx {path}`)"
            ),
        )
    }

    /// A change that was reverted `times` times; `signature` is when its file was last written, in seconds
    /// since the epoch, and its first line.
    pub fn overwritten(file: &Path, times: u32, signature: Option<(i64, String)>, until: Timestamp) -> Refusal {
        let who = match signature {
            Some((written, line)) => {
                let written = Timestamp::from_second(written).unwrap_or_default();
                format!("it was last written at {written} and begins with {line:?}")
            }
            None => "it no longer exists".to_owned(),
        };
        Refusal::new(
            "ConfigOverwritten",
            format!(
                "the agent changed {file} {times} times in a row, and each change was reverted: {who}; have whatever writes \
                 it, such as a configuration management system, write what the agent does; containerd is not restarted for \
                 it again before {until}",
                file = file.display()
            ),
        )
    }

    pub fn not_ready() -> Refusal {
        Refusal::new(
            "RuntimeNotReady",
            "CRI says that containerd is not ready; that has to be fixed before anything is changed",
        )
    }

    pub fn shim(message: String) -> Refusal {
        Refusal::new("BadShimImage", message)
    }

    pub fn options(message: String) -> Refusal {
        Refusal::new("BadOptions", message)
    }
}

impl From<config::Refusal> for Refusal {
    fn from(error: config::Refusal) -> Refusal {
        let reason = match error {
            config::Refusal::Release(_) => "UnsupportedContainerd",
            config::Refusal::Unparsable { .. } => "ConfigUnparsable",
            config::Refusal::Encoding { .. } => "ConfigUnreadable",
            config::Refusal::MissingImport { .. }
            | config::Refusal::Imports { .. }
            | config::Refusal::Unfollowed { .. }
            | config::Refusal::Version { .. } => "ConfigImports",
            config::Refusal::Rejected { .. } => "ConfigRejected",
            config::Refusal::Foreign { .. } | config::Refusal::Left { .. } => "HandlerTaken",
            config::Refusal::CriDisabled(_) => "CriDisabled",
            config::Refusal::ImagePull { .. } => "ImagePullSet",
            config::Refusal::NoPlace { .. } | config::Refusal::Form { .. } => "ConfigForm",
            config::Refusal::Edited { .. } | config::Refusal::NotRemovable { .. } => "ConfigEdited",
        };
        Refusal::new(reason, error.to_string())
    }
}
