//! Why the agent leaves a host alone, as the resource's status says it and as `kubewasi-node check` does.

use std::path::Path;

use super::config::{self, LoadError};
use super::dumper::DumpError;
use super::journal::RecordError;
use super::restart::Losses;

/// A reason to touch nothing, and what an administrator can do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// A word in CamelCase, for programs.
    pub reason: &'static str,
    /// What was found and what mends it, for people.
    pub message: String,
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
            "the host does not run systemd with a system bus, and nothing else could restart containerd and roll it back",
        )
    }

    pub fn other_runtime(name: &str) -> Refusal {
        Refusal::new(
            "NotContainerd",
            format!("pods of this node are run by {name}; only containerd is supported"),
        )
    }

    pub fn no_containerd(sockets: &[&str]) -> Refusal {
        Refusal::new(
            "NotContainerd",
            format!("no containerd that runs this pod listens at {}", sockets.join(" or ")),
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

    /// A configuration of which containerd makes nothing.
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

    pub fn read_only(folder: &Path) -> Refusal {
        Refusal::new(
            "ReadOnly",
            format!(
                "{} is on a read-only file system, so containerd's configuration cannot be changed",
                folder.display()
            ),
        )
    }

    pub fn no_exec(folder: &Path) -> Refusal {
        Refusal::new(
            "NoExec",
            format!(
                "{} is on a file system that forbids programs (noexec), so no shim can live there",
                folder.display()
            ),
        )
    }

    pub fn not_ready() -> Refusal {
        Refusal::new(
            "RuntimeNotReady",
            "CRI says that containerd is not ready; that has to be mended before anything is changed",
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
            config::Refusal::CriDisabled { .. } => "CriDisabled",
            config::Refusal::NoPlace { .. } | config::Refusal::Form { .. } => "ConfigForm",
            config::Refusal::Edited { .. } | config::Refusal::NotRemovable { .. } => "ConfigEdited",
        };
        Refusal::new(reason, error.to_string())
    }
}
