//! The cgroup of one compile worker: what it may use of the node, charged to nobody else.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::sys::cgroup::{self, Cgroup, Hierarchies, Version};
use crate::sys::oom;
use crate::sys::stat::Stat;

/// Every worker's cgroup begins so, at the root of its hierarchies: a server that was killed leaves some behind.
const PREFIX: &str = "kubewasi-compile-";

/// Compiling uses a few threads; a worker that has more is not compiling.
const MOST_TASKS: &str = "64";

/// A cgroup with the limits of a worker, removed with it.
#[derive(Debug)]
pub struct Confine(Cgroup);

impl Confine {
    /// Makes a cgroup that holds `memory` bytes.
    ///
    /// # Errors
    ///
    /// What mkdir(2) and write(2) say of the hierarchies.
    pub fn new(memory: u64) -> io::Result<Confine> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let hierarchies = hierarchies()?;
        let path = PathBuf::from(format!("/{PREFIX}{}-{number}", std::process::id()));
        let confine = Confine(hierarchies.cgroup(&path));
        confine.0.create()?;
        let limit = match hierarchies.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        fs::write(confine.0.file(limit)?, memory.to_string())?;
        fs::write(confine.0.file("pids.max")?, MOST_TASKS)?;
        Ok(confine)
    }

    /// Moves the worker in.
    ///
    /// # Errors
    ///
    /// What write(2) says; a worker that has ended already is fine.
    pub fn enter(&self, pid: u32) -> io::Result<()> {
        for entrance in self.0.entrances() {
            match fs::write(entrance, pid.to_string()) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// Whether the kernel has ended the worker because its memory was used up.
    pub fn ran_out(&self) -> bool {
        matches!(oom::kills(&self.0), Ok(kills) if kills > 0)
    }
}

impl Drop for Confine {
    fn drop(&mut self) {
        if let Err(error) = self.0.remove() {
            tracing::warn!(%error, "a compile worker's cgroup could not be removed");
        }
    }
}

fn hierarchies() -> io::Result<Hierarchies> {
    Ok(Hierarchies::find(Path::new(cgroup::ROOT))?.with(&["memory", "pids"]))
}

/// Removes the cgroups of workers whose server was killed; the kernel ends those with it.
pub fn sweep() {
    let Ok(hierarchies) = hierarchies() else { return };
    let folders = hierarchies
        .roots()
        .iter()
        .filter_map(|root| fs::read_dir(root).ok())
        .flatten()
        .flatten();
    let mut left: Vec<PathBuf> = folders
        .filter(|entry| server(&entry.file_name().to_string_lossy()).is_some_and(|pid| !lives(pid)))
        .map(|entry| entry.path())
        .collect();
    const TRIES: u32 = 100;
    for _ in 0..TRIES {
        // Busy while the worker is on its way out; gone when another sweep was first.
        left.retain(|folder| fs::remove_dir(folder).is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy));
        if left.is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The pid of the server whose worker has a cgroup of this name.
fn server(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

fn lives(pid: u32) -> bool {
    Stat::of(pid).is_ok_and(|stat| !stat.is_zombie())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workers_cgroup_names_its_server_and_others_do_not() {
        assert_eq!(server("kubewasi-compile-77-3"), Some(77));
        assert_eq!(server("kubewasi-compile-x"), None);
        assert_eq!(server("system.slice"), None);
    }

    #[test]
    fn this_process_lives_and_an_impossible_one_does_not() {
        assert!(lives(std::process::id()));
        assert!(!lives(u32::MAX));
    }
}
