//! The change that may break a node: containerd's configuration and its restart, with a way back.
//!
//! This runs on the host, in a unit of its own: a kubelet whose containerd is broken cannot start the agent's pod, so the
//! agent cannot be the rescuer. Each phase is on disk before it begins, and each can be done twice.
//!
//! ```text
//! Checking ──> Writing ──> Restarting ──> Verifying ──> Committed
//!    │            │             └─────────────┴──> RollingBack ──> RolledBack
//!    └────────────┴──> Refused: nothing was changed
//! ```

use std::fmt::Display;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::config::{Change, Edit, Files};
use super::configuration::Configuration;
use super::cri::Cri;
use super::disk::HostDisk;
use super::dumper::Dumper;
use super::durable::{self, WriteError};
use super::fault;
use super::health::{Health, compare};
use super::journal::{self, RecordError};

/// How often a containerd that comes up is asked.
const ASK: Duration = Duration::from_millis(500);

/// What the helper is to do; written by the agent, and not changed any more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// containerd's service.
    pub unit: String,
    pub binary: PathBuf,
    /// Its root configuration file.
    pub config: PathBuf,
    pub socket: PathBuf,
    /// The change; none when containerd is only to read what it has.
    pub change: Option<Change>,
    pub handler: String,
    /// Whether the handler is to be listed afterwards.
    pub listed: bool,
    /// Whether containerd is to be restarted.
    pub restart: bool,
    /// How containerd was before.
    pub before: Health,
    /// How many seconds containerd has to be healthy again, after its restart.
    pub patience: u64,
    /// The folder whose artifacts are removed when all is committed: those of a runtime that leaves.
    pub cache: Option<PathBuf>,
}

/// How far the helper is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Progress {
    #[default]
    Checking,
    Writing,
    Restarting,
    Verifying,
    Committed,
    /// Nothing was changed.
    Refused(String),
    RollingBack(String),
    RolledBack {
        reason: String,
        /// Why containerd is not as it was before, in spite of the old configuration.
        unhealthy: Option<String>,
    },
}

impl Progress {
    /// Whether nothing more happens.
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Progress::Committed | Progress::Refused(_) | Progress::RolledBack { .. }
        )
    }

    fn name(&self) -> &'static str {
        match self {
            Progress::Checking => "Checking",
            Progress::Writing => "Writing",
            Progress::Restarting => "Restarting",
            Progress::Verifying => "Verifying",
            Progress::Committed => "Committed",
            Progress::Refused(_) => "Refused",
            Progress::RollingBack(_) => "RollingBack",
            Progress::RolledBack { .. } => "RolledBack",
        }
    }
}

/// Why the helper stopped without a result; systemd starts it again.
#[derive(Debug, thiserror::Error)]
pub enum TransactionError {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("cannot read {path}: {cause}", path = path.display())]
    Read { path: PathBuf, cause: io::Error },
    #[error("{path} is neither what it was nor what we wrote: somebody else changes it", path = path.display())]
    Foreign { path: PathBuf },
}

/// Carries `order` out from where `progress` stands, and returns how it ended. `restart` restarts containerd.
///
/// # Errors
///
/// When a phase could not be recorded or a file not be written on the way back: it is to be called again then.
pub async fn run<E: Display>(
    order: &Order,
    progress: &Path,
    restart: impl AsyncFn() -> Result<(), E>,
) -> Result<Progress, TransactionError> {
    let mut phase: Progress = journal::read(progress)?.unwrap_or_default();
    loop {
        tracing::info!(phase = phase.name(), "transaction");
        let next = match &phase {
            Progress::Checking => match check(order).await {
                Ok(()) => Progress::Writing,
                Err(reason) => Progress::Refused(reason),
            },
            Progress::Writing => match write(order)? {
                Ok(()) if order.restart => Progress::Restarting,
                Ok(()) => Progress::Committed,
                Err(reason) => Progress::Refused(reason),
            },
            Progress::Restarting => match restart().await {
                Ok(()) => Progress::Verifying,
                Err(error) => Progress::RollingBack(format!("containerd did not restart: {error}")),
            },
            Progress::Verifying => match healthy(order, order.listed).await {
                Ok(()) => Progress::Committed,
                Err(reason) => Progress::RollingBack(reason),
            },
            Progress::RollingBack(reason) => {
                let was_listed = order.before.handlers.contains_key(&order.handler);
                let unhealthy = match roll_back(order) {
                    // Whoever changed the file since has made it theirs, for better or worse.
                    Err(error @ TransactionError::Foreign { .. }) => Some(error.to_string()),
                    Err(error) => return Err(error),
                    Ok(()) => {
                        let restarted = restart().await;
                        // A containerd that was never stopped needs no restart to be as it was.
                        let unhealthy = healthy(order, was_listed).await.err();
                        match restarted {
                            Ok(()) => unhealthy,
                            Err(error) => unhealthy.map(|why| format!("containerd did not restart: {error}; {why}")),
                        }
                    }
                };
                Progress::RolledBack {
                    reason: reason.clone(),
                    unhealthy,
                }
            }
            last => return Ok(last.clone()),
        };
        if next == Progress::Committed {
            clean(order);
        }
        journal::write(progress, &next)?;
        fault::after(phase.name());
        phase = next;
    }
}

/// Has containerd itself read the files and the candidate, and compares what it makes of them.
async fn check(order: &Order) -> Result<(), String> {
    let Some(change) = &order.change else { return Ok(()) };
    for edit in &change.edits {
        unchanged(edit).map_err(|error| error.to_string())?;
    }
    let disk = HostDisk { root: "/".into() };
    let configuration = Configuration {
        release: order
            .before
            .release
            .parse()
            .map_err(|()| "containerd has no release".to_owned())?,
        binary: order.binary.clone(),
        files: Files::load(&order.config, &disk).map_err(|error| error.to_string())?,
        dumper: Dumper::new(&disk.root),
        disk,
    };
    let verified = configuration.verify(change, order.listed).await;
    verified.map_err(|error| error.to_string())
}

/// Puts the new files in place, where they are not there. When one cannot be written, those before it are put back.
fn write(order: &Order) -> Result<Result<(), String>, TransactionError> {
    let edits = order.change.iter().flat_map(|change| &change.edits);
    let mut written = Vec::new();
    for edit in edits {
        match write_edit(edit) {
            Ok(()) => written.push(edit),
            Err(error) => {
                for edit in written {
                    roll_back_edit(edit)?;
                }
                return Ok(Err(error.to_string()));
            }
        }
    }
    Ok(Ok(()))
}

fn write_edit(edit: &Edit) -> Result<(), TransactionError> {
    if read(&edit.file)? == edit.new {
        return Ok(());
    }
    unchanged(edit)?;
    Ok(put(&edit.file, edit.new.as_deref())?)
}

/// Puts the old files back; what somebody else made of one in between is theirs, and the others go back all the same.
fn roll_back(order: &Order) -> Result<(), TransactionError> {
    let mut foreign = Ok(());
    for edit in order.change.iter().flat_map(|change| &change.edits) {
        match roll_back_edit(edit) {
            Err(error @ TransactionError::Foreign { .. }) => foreign = Err(error),
            result => result?,
        }
    }
    foreign
}

fn roll_back_edit(edit: &Edit) -> Result<(), TransactionError> {
    match read(&edit.file)? {
        now if now == edit.old => Ok(()),
        now if now == edit.new => match (put(&edit.file, edit.old.as_deref()), &edit.old) {
            // The file is one that broke containerd, and longer than the old one.
            (Err(error), Some(old)) if error.is_full() => Ok(durable::overwrite(&edit.file, old.as_bytes())?),
            (put, _) => Ok(put?),
        },
        _ => Err(TransactionError::Foreign {
            path: edit.file.clone(),
        }),
    }
}

/// Waits until containerd is as healthy as before.
async fn healthy(order: &Order, listed: bool) -> Result<(), String> {
    let patience = Instant::now() + Duration::from_secs(order.patience);
    loop {
        let asked = async { Cri::connect(&order.socket).await?.health().await }.await;
        let problem = match asked {
            Ok(now) => match compare(&order.before, &now, &order.handler, listed) {
                Ok(()) => return Ok(()),
                Err(unhealthy) if unhealthy.is_lasting() => return Err(unhealthy.to_string()),
                Err(unhealthy) => unhealthy.to_string(),
            },
            Err(error) => error.to_string(),
        };
        if Instant::now() >= patience {
            return Err(format!(
                "containerd was not healthy within {} seconds: {problem}",
                order.patience
            ));
        }
        tokio::time::sleep(ASK).await;
    }
}

/// Removes the artifacts that a runtime that left has made, and nothing else: the folder is one that somebody chose. What
/// cannot be removed stays, since nothing depends on it.
fn clean(order: &Order) {
    let Some(cache) = &order.cache else { return };
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_str().is_some_and(kubewasi_options::is_cache_file);
        if is_ours && let Err(error) = fs::remove_file(entry.path()) {
            tracing::warn!(path = %entry.path().display(), %error, "an artifact stays");
        }
    }
    // A folder that has anything else, or that something is mounted on, stays, and so does the one above.
    let _ = fs::remove_dir(cache);
    if let Some(above) = cache.parent().filter(|above| above.ends_with("kubewasi")) {
        let _ = fs::remove_dir(above);
    }
}

fn unchanged(edit: &Edit) -> Result<(), TransactionError> {
    match read(&edit.file)? {
        now if now == edit.old => Ok(()),
        _ => Err(TransactionError::Foreign {
            path: edit.file.clone(),
        }),
    }
}

fn read(path: &Path) -> Result<Option<String>, TransactionError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(TransactionError::Read {
            path: path.to_owned(),
            cause,
        }),
    }
}

/// Puts a text at `path`, which may be a symlink whose target is meant, with the metadata that it had; or removes it.
fn put(path: &Path, text: Option<&str>) -> Result<(), WriteError> {
    match text {
        Some(text) => {
            let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
            durable::replace(&path, text.as_bytes(), 0o644)
        }
        None => durable::remove(path),
    }
}
