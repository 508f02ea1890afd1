//! What is left to clean when the server is gone: written into the bundle before the process exists, versioned.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::group::Group;
use super::hooks::Hooks;
use crate::sys::{kept, mounts, pidfd};

/// The file in the bundle.
const FILE: &str = "kubewasi.json";

/// The format's version; a newer build reads every older one.
const VERSION: u32 = 1;

/// What a container holds outside of its process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// The cgroup made for the container, and its scope.
    #[serde(flatten)]
    group: Group,
    /// The process, once it is forked: its pid and start time, which together are never reused.
    process: Option<(i32, u64)>,
    /// What is run when all else is gone.
    #[serde(default)]
    hooks: Hooks,
}

impl Record {
    /// A record of a container whose process is still to come.
    pub fn new(group: Group, hooks: Hooks) -> Record {
        Record {
            version: VERSION,
            group,
            process: None,
            hooks,
        }
    }

    /// Adds the process.
    pub fn with_process(mut self, pid: Pid) -> Record {
        self.process = pidfd::start_time(pid).map(|start| (pid.as_raw_nonzero().get(), start));
        self
    }

    /// Writes the record into `bundle`, whole or not at all.
    ///
    /// # Errors
    ///
    /// What write(2) and rename(2) say.
    pub fn write(&self, bundle: &Path) -> io::Result<()> {
        kept::write(&path(bundle), self)
    }

    /// Reads the record of `bundle`; `None` when there is none.
    ///
    /// # Errors
    ///
    /// What read(2) says, and `InvalidData` naming the file when it is no record of a known version.
    pub fn read(bundle: &Path) -> io::Result<Option<Record>> {
        kept::read(&path(bundle), VERSION, |record: &Record| record.version)
    }
}

fn path(bundle: &Path) -> PathBuf {
    bundle.join(FILE)
}

/// Ends and removes all that the container of `bundle` holds: its process, its cgroup with whatever runs in it, and
/// mounts on its root filesystem. Returns the hooks that are to be run then, to one caller alone. Idempotent; a bundle
/// without a record, or no bundle, has nothing to clean.
///
/// # Errors
///
/// The first step that failed; the steps after it ran all the same, and the record stays for another try.
pub fn clean(bundle: &Path) -> io::Result<Option<Hooks>> {
    let unmounted = mounts::unmount_all(&bundle.join("rootfs"));
    let Some(record) = Record::read(bundle)? else {
        return unmounted.map(|()| None);
    };
    if let Some((pid, start)) = record.process {
        kill(pid, start);
    }
    unmounted.and(record.group.remove())?;
    Ok(kept::take(&path(bundle))?.then_some(record.hooks))
}

/// What `delete` leaves to [`sweep`], since it has no time for it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Rest {
    /// A cgroup whose processes are killed and not gone yet.
    group: Option<Group>,
    hooks: Hooks,
}

impl From<Hooks> for Rest {
    /// Nothing but the hooks is left.
    fn from(hooks: Hooks) -> Rest {
        Rest { group: None, hooks }
    }
}

/// Takes over what is left of the container of `bundle`, which containerd removes; one caller alone gets it.
///
/// # Errors
///
/// As [`Record::read`], and what unlink(2) says.
pub fn take_rest(bundle: &Path) -> io::Result<Option<Rest>> {
    let Some(record) = Record::read(bundle)? else {
        return Ok(None);
    };
    Ok(kept::take(&path(bundle))?.then_some(Rest {
        group: Some(record.group),
        hooks: record.hooks,
    }))
}

/// Reads a list of [`Rest`] as JSON from `input` and finishes them side by side. Blocks.
///
/// # Errors
///
/// When `input` cannot be read, and the first failure.
pub fn sweep(input: impl io::Read) -> io::Result<()> {
    let rests: Vec<Rest> = serde_json::from_reader(input)?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = rests.iter().map(|rest| scope.spawn(|| rest.finish())).collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        ended
            .map(|result| result.unwrap_or_else(|_| Err(io::Error::other("a thread of the sweep panicked"))))
            .fold(Ok(()), Result::and)
    })
}

impl Rest {
    /// Waits for killed processes to be gone, which takes the kernel seconds when there are hundreds, removes their cgroup,
    /// and runs the poststop hooks.
    ///
    /// # Errors
    ///
    /// The last failure, after a minute.
    fn finish(&self) -> io::Result<()> {
        const PATIENCE: Duration = Duration::from_secs(60);
        let end = Instant::now() + PATIENCE;
        while let Some(group) = &self.group {
            match group.remove() {
                Err(_) if Instant::now() < end => {}
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.hooks.poststop(&Arc::default()));
        Ok(())
    }
}

/// Kills the process if it is still the one recorded. The pidfd is opened first, so the check holds for what it names.
fn kill(pid: i32, start: u64) {
    let Some(pid) = Pid::from_raw(pid) else { return };
    let Ok(handle) = pidfd::open(pid) else { return };
    if pidfd::start_time(pid) == Some(start) {
        // One that exited in between is what we want.
        let _ = pidfd::kill(&handle, libc::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::sandbox::group::Place;
    use crate::sys::cgroup::Hierarchies;

    fn bundle(name: &str) -> PathBuf {
        let bundle = std::env::temp_dir().join(format!("kubewasi-record-{}-{name}", std::process::id()));
        fs::create_dir_all(&bundle).unwrap();
        bundle
    }

    fn group() -> Group {
        let hierarchies = Hierarchies::find(Path::new(crate::sys::cgroup::ROOT)).unwrap();
        Group::at(&Place::Path("/kubewasi-test/none".into()), &hierarchies, false).unwrap()
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let bundle = bundle("round");
        let record = Record::new(group(), Hooks::default()).with_process(rustix::process::getpid());
        record.write(&bundle).unwrap();
        assert_eq!(Record::read(&bundle).unwrap(), Some(record));
        fs::remove_dir_all(bundle).unwrap();
    }

    #[test]
    fn a_record_of_a_build_without_scopes_and_hooks_is_read() {
        let bundle = bundle("older");
        let record = Record::new(group(), Hooks::default());
        let mut json = serde_json::to_value(&record).unwrap();
        for newer in ["scope", "hooks"] {
            json.as_object_mut().unwrap().remove(newer).unwrap();
        }
        fs::write(path(&bundle), json.to_string()).unwrap();
        assert_eq!(Record::read(&bundle).unwrap(), Some(record));
        fs::remove_dir_all(bundle).unwrap();
    }

    #[test]
    fn cleaning_a_bundle_that_never_was_is_fine() {
        clean(Path::new("/nonexistent/bundle")).unwrap();
    }

    #[test]
    fn cleaning_twice_is_fine_and_the_record_is_gone() {
        let bundle = bundle("twice");
        Record::new(group(), Hooks::default()).write(&bundle).unwrap();
        assert_eq!(clean(&bundle).unwrap(), Some(Hooks::default()));
        assert_eq!(clean(&bundle).unwrap(), None, "its hooks are run once");
        assert_eq!(Record::read(&bundle).unwrap(), None);
        fs::remove_dir_all(bundle).unwrap();
    }

    #[test]
    fn a_process_with_a_reused_pid_is_left_alone() {
        kill(rustix::process::getpid().as_raw_nonzero().get(), 1);
    }

    #[test]
    fn what_delete_had_no_time_for_is_swept_without_the_bundle() {
        let bundle = bundle("rest");
        Record::new(group(), Hooks::default()).write(&bundle).unwrap();
        let rest = take_rest(&bundle).unwrap().unwrap();
        assert!(take_rest(&bundle).unwrap().is_none(), "another sweeper gets nothing");
        fs::remove_dir_all(bundle).unwrap();
        let rests = serde_json::to_vec(&[rest, Hooks::default().into()]).unwrap();
        sweep(rests.as_slice()).unwrap();
    }

    #[test]
    fn a_malformed_record_is_named() {
        let bundle = bundle("malformed");
        fs::write(path(&bundle), "{").unwrap();
        assert!(Record::read(&bundle).unwrap_err().to_string().contains("kubewasi.json"));
        fs::remove_dir_all(bundle).unwrap();
    }
}
