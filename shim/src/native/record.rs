//! What is left to clean of a native container when the server is gone: written into the bundle before the runtime is
//! called, versioned.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::calls::Calls;
use super::rootfs;
use crate::sys::cgroup::Cgroup;
use crate::sys::kept;

/// The file in the bundle.
const FILE: &str = "kubewasi-native.json";

/// The format's version; a newer build reads every older one.
const VERSION: u32 = 1;

/// What a native container holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// By which its runtime removes it.
    calls: Calls,
    /// The cgroups made for it, when its path says which: systemd's are the runtime's affair.
    cgroups: Vec<Cgroup>,
}

impl Record {
    pub fn new(calls: Calls, cgroups: Vec<Cgroup>) -> Record {
        Record {
            version: VERSION,
            calls,
            cgroups,
        }
    }

    /// Writes the record into its bundle, whole or not at all.
    ///
    /// # Errors
    ///
    /// What write(2) and rename(2) say.
    pub fn write(&self) -> io::Result<()> {
        kept::write(&path(&self.calls.bundle), self)
    }

    /// Reads the record of `bundle`; `None` when there is none: it holds no native container.
    fn read(bundle: &Path) -> io::Result<Option<Record>> {
        kept::read(&path(bundle), VERSION, |record: &Record| record.version)
    }
}

fn path(bundle: &Path) -> PathBuf {
    bundle.join(FILE)
}

/// Ends and removes all that a native container of `bundle` holds: its processes, what its runtime made for it, its
/// cgroup, and its root filesystem's mounts. Idempotent; a bundle without a record has nothing to clean. Blocks.
///
/// # Errors
///
/// The first step that failed; the steps after it ran all the same, and the record stays for another try.
pub fn clean(bundle: &Path) -> io::Result<()> {
    let Some(record) = Record::read(bundle)? else {
        return Ok(());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut result = runtime.block_on(record.calls.delete()).map_err(io::Error::other);
    for cgroup in record.cgroups {
        // A runtime that was killed in the middle of its work has left what it knows nothing of.
        result = result.and(cgroup.kill()).and(cgroup.remove());
    }
    result.and(rootfs::unmount(bundle))?;
    kept::remove(&path(bundle))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn record(name: &str) -> Record {
        let bundle = std::env::temp_dir().join(format!("kubewasi-native-{}-{name}", std::process::id()));
        fs::create_dir_all(&bundle).unwrap();
        let calls = Calls {
            binary: "no-such-runc".to_owned(),
            id: "c1".to_owned(),
            bundle,
            systemd_cgroup: true,
            no_pivot_root: false,
            no_new_keyring: false,
        };
        Record::new(calls, Vec::new())
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = record("round");
        record.write().unwrap();
        let bundle = record.calls.bundle.clone();
        assert_eq!(Record::read(&bundle).unwrap(), Some(record));
        fs::remove_dir_all(bundle).unwrap();
    }

    #[test]
    fn a_bundle_without_a_record_has_nothing_to_clean() {
        clean(Path::new("/nonexistent/bundle")).unwrap();
    }

    #[test]
    fn what_could_not_be_cleaned_keeps_its_record() {
        let record = record("kept");
        record.write().unwrap();
        let bundle = record.calls.bundle.clone();
        assert!(clean(&bundle).unwrap_err().to_string().contains("no-such-runc"));
        assert_eq!(Record::read(&bundle).unwrap(), Some(record));
        fs::remove_dir_all(bundle).unwrap();
    }

    #[test]
    fn a_record_of_a_newer_build_is_refused_by_its_version() {
        let mut record = record("newer");
        record.version = VERSION + 1;
        record.write().unwrap();
        let bundle = record.calls.bundle.clone();
        let error = clean(&bundle).unwrap_err().to_string();
        assert!(
            error.contains("kubewasi-native.json") && error.contains("version 2"),
            "{error}"
        );
        fs::remove_dir_all(bundle).unwrap();
    }
}
