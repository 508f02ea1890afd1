//! Processes that became the server's children and belong to nobody: a helper or guest whose launcher died on the way.

use std::collections::HashSet;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, WaitOptions, getpid, waitpid};
use tokio::time::sleep;

use crate::sys::stat::Stat;

/// A process that is still a zombie after so long has no watcher: theirs reap at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// The children that have a watcher of their own.
#[derive(Debug, Default)]
pub struct Children {
    watched: Mutex<HashSet<i32>>,
}

impl Children {
    /// `pid` has a watcher, which reaps it.
    pub fn watch(&self, pid: i32) {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
    }

    /// The watcher of `pid` has reaped it.
    pub fn forget(&self, pid: i32) {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
    }

    /// Reaps what nobody watches, a few times from now on: orphans end once they see that nobody waits for them.
    pub fn sweep_soon(self: &Arc<Self>) {
        const ROUNDS: usize = 3;
        let children = self.clone();
        tokio::spawn(async move {
            for _ in 0..ROUNDS {
                let seen = zombies();
                sleep(PATIENCE).await;
                let lasting: Vec<i32> = zombies().into_iter().filter(|pid| seen.contains(pid)).collect();
                for pid in lasting {
                    children.reap(pid);
                }
            }
        });
    }

    fn reap(&self, pid: i32) {
        let watched = self
            .watched
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&pid);
        if !watched && let Some(pid) = Pid::from_raw(pid) {
            // One that was reaped in between is what we want.
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

/// The zombies among this process's children that the launcher forked: they bear its name or a guest's.
fn zombies() -> Vec<i32> {
    let own = getpid().as_raw_nonzero().get();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers
        .filter(|pid| Stat::of(pid).is_ok_and(|stat| is_orphan(&stat, own)))
        .collect()
}

/// Whether it is a zombie child of `parent` that the launcher forked.
fn is_orphan(stat: &Stat, parent: i32) -> bool {
    stat.is_zombie() && stat.parent() == Some(parent) && stat.name().is_some_and(|name| name.starts_with("wasi"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orphan(stat: &str, parent: i32) -> bool {
        is_orphan(&Stat::from(stat.to_owned()), parent)
    }

    #[test]
    fn only_zombies_that_the_launcher_forked_are_orphans() {
        assert!(orphan("7 (wasi-launcher) Z 3 7 7", 3));
        assert!(orphan("7 (wasi:a) b) Z 3 7 7", 3));
        assert!(!orphan("7 (wasi:a) S 3 7 7", 3), "it lives");
        assert!(!orphan("7 (wasi:a) Z 4 7 7", 3), "another's child");
        assert!(
            !orphan("7 (exe) Z 3 7 7", 3),
            "a compile worker, which its driver waits for"
        );
    }
}
