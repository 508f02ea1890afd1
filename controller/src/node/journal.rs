//! What is on disk of work that is under way, so that whoever comes after a crash goes on with it.
//!
//! The agent alone writes the journal, the helper alone its progress; an order is written once.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::api::wasm_node::{Permit, Step};

use super::config::Change;
use super::durable::{self, WriteError};
use super::layout::Layout;
use super::plan::Planned;
use super::shim;

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("cannot read {path}: {cause}", path = path.display())]
    Read { path: PathBuf, cause: io::Error },
    #[error("{path} is no record of this agent's: {cause}; remove it when nobody else works on this host", path = path.display())]
    Unparsable { path: PathBuf, cause: serde_json::Error },
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// The plan that the agent is at, or the one that failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Journal {
    pub permit: Permit,
    pub planned: Planned,
    /// The SHA-256 of the shim that was current before.
    pub previous_shim: Option<String>,
    /// The options that were beside the plan's shim before.
    #[serde(default)]
    pub previous_options: Option<String>,
    /// How it failed; nothing more is done for this permit then.
    pub failed: Option<Failed>,
}

impl Journal {
    /// That of a plan that is about to be begun: it remembers what is there, for the way back.
    pub fn new(permit: Permit, planned: Planned, layout: &Layout) -> Journal {
        Journal {
            permit,
            previous_shim: shim::current(layout),
            previous_options: shim::options(layout, &planned.shim),
            planned,
            failed: None,
        }
    }

    /// Whether this plan failed for the wish of this hash.
    pub fn has_failed_for(&self, wish: &str) -> bool {
        self.failed.is_some() && self.planned.wish == wish
    }
}

/// How a plan failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failed {
    pub step: Step,
    pub message: String,
    pub rolled_back: bool,
    /// When, in RFC 3339.
    pub at: String,
}

/// The desired state that was last reached.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// The wish, by its hash.
    pub wish: String,
}

/// The files of containerd's configuration that the agent ever wrote: containerd may no longer read all of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Written {
    pub files: BTreeSet<PathBuf>,
}

impl Written {
    /// Adds the files of a change, before any of them is written.
    ///
    /// # Errors
    ///
    /// When the record cannot be read or written.
    pub fn add(layout: &Layout, change: &Change) -> Result<(), RecordError> {
        let mut written: Written = read(&layout.written())?.unwrap_or_default();
        let before = written.files.len();
        written.files.extend(change.edits.iter().map(|edit| edit.file.clone()));
        match written.files.len() == before {
            true => Ok(()),
            false => write(&layout.written(), &written),
        }
    }
}

/// Reads a record; nothing when there is none.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RecordError> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(RecordError::Read {
            path: path.to_owned(),
            cause,
        }),
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(record) => Ok(Some(record)),
            Err(cause) => Err(RecordError::Unparsable {
                path: path.to_owned(),
                cause,
            }),
        },
    }
}

/// Writes a record, for root alone: a configuration may have registries' passwords.
pub fn write<T: Serialize>(path: &Path, record: &T) -> Result<(), RecordError> {
    let text = serde_json::json!(record).to_string();
    Ok(durable::write(path, text.as_bytes(), 0o600)?)
}

/// The lock of a host: agents of several runtimes and their helpers change it one at a time. Its end is its file's.
pub struct Lock {
    _file: fs::File,
}

impl Lock {
    /// Takes the lock if nobody has it.
    pub fn try_take(layout: &Layout) -> Result<Option<Lock>, WriteError> {
        let path = layout.lock();
        durable::make_folder(layout.base())?;
        let file = fs::File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(WriteError::of("open the lock", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(WriteError::of("take the lock", &path)(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_only_by_root() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept.json");
        assert_eq!(read::<Kept>(&path).unwrap(), None);
        let kept = Kept { wish: "aa".into() };
        write(&path, &kept).unwrap();
        assert_eq!(read(&path).unwrap(), Some(kept));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "{").unwrap();
        assert!(
            read::<Kept>(&path)
                .unwrap_err()
                .to_string()
                .contains("kept.json is no record")
        );
    }

    #[test]
    fn one_at_a_time_holds_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (Layout::new(folder.path(), "one"), Layout::new(folder.path(), "two"));
        let held = Lock::try_take(&one).unwrap();
        assert!(held.is_some());
        assert!(Lock::try_take(&two).unwrap().is_none());
        drop(held);
        assert!(Lock::try_take(&two).unwrap().is_some());
    }
}
