//! Processes that became this one's children and belong to nobody: a helper or guest whose launcher died on the way,
//! and what a container without a pid namespace of its own has left behind.
//!
//! Reaping a process that somebody waits for would be worse than a zombie. Workers and the launcher stay in this process's
//! session and are waited for there. Everything else is in another session, and either watched or an orphan: what containers
//! run, and hooks and loggers, whose own children are orphans once these have ended. While a process is made it is expected: what had
//! ended before can be told from it.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, WaitOptions, getpid, waitpid};
use tokio::process::Command;
use tokio::time::sleep;

use super::child::Child;
use super::command::new_session;
use super::stat::Stat;

/// A process that is still a zombie after so long has no watcher: theirs reap at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// So often a sweep looks: orphans end once they see that nobody waits for them.
const ROUNDS: usize = 3;

/// So long a zombie of a container that lives may stay one.
const EVERY: Duration = Duration::from_secs(60);

/// The children that have a watcher of their own, or will.
#[derive(Debug, Default)]
pub struct Children {
    known: Mutex<Known>,
    /// So many rounds of the present sweep are left.
    rounds: AtomicUsize,
}

#[derive(Debug, Default)]
struct Known {
    watched: HashSet<i32>,
    /// The numbers of those that are being made.
    expected: BTreeSet<u64>,
    /// The next one's.
    next: u64,
}

/// A child is being made: until this is dropped, what ends is left alone.
#[derive(Debug)]
pub struct Expected {
    children: Arc<Children>,
    number: u64,
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.children.known().expected.remove(&self.number);
    }
}

/// A child of another session for which its owner waits: no sweep reaps it until this is dropped.
#[derive(Debug)]
pub struct Watched {
    children: Arc<Children>,
    pid: i32,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.children.forget(self.pid);
    }
}

/// A process that has ended: its pid and when it was started.
type Zombie = (i32, u64);

impl Children {
    /// A child is to be made, which has no watcher at first.
    pub fn expect(self: &Arc<Self>) -> Expected {
        let mut known = self.known();
        let number = known.next;
        known.next += 1;
        known.expected.insert(number);
        drop(known);
        Expected {
            children: self.clone(),
            number,
        }
    }

    /// Watches the child `pid`, whose pidfd is `handle`, and reaps it; see [`Child::watch`].
    ///
    /// # Errors
    ///
    /// As [`Child::watch`]: then it is nobody's.
    pub fn watch(
        self: &Arc<Self>,
        pid: i32,
        handle: OwnedFd,
        last_words: impl FnOnce() -> Option<String> + Send + 'static,
    ) -> io::Result<Child> {
        self.known().watched.insert(pid);
        let children = self.clone();
        let child = Child::watch(pid, handle, move || {
            children.forget(pid);
            last_words()
        });
        child.inspect_err(|_| self.forget(pid))
    }

    /// Spawns `command` in a session of its own. The caller waits for the child, and keeps the second value until then.
    ///
    /// # Errors
    ///
    /// What fork(2) and execve(2) say.
    pub fn spawn(self: &Arc<Self>, command: &mut Command) -> io::Result<(tokio::process::Child, Watched)> {
        new_session(command);
        let _expected = self.expect();
        let child = command.spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.ok_or_else(|| io::Error::other("the child has no pid"))?;
        self.known().watched.insert(pid);
        let children = self.clone();
        Ok((child, Watched { children, pid }))
    }

    fn forget(&self, pid: i32) {
        self.known().watched.remove(&pid);
    }

    /// Reaps what nobody watches, a few times from now on.
    pub fn sweep_soon(self: &Arc<Self>) {
        // A sweep that is on its way begins anew.
        if self.rounds.swap(ROUNDS, Ordering::SeqCst) > 0 {
            return;
        }
        let children = self.clone();
        tokio::spawn(async move {
            loop {
                let began = children.known().next;
                let seen = zombies();
                sleep(PATIENCE).await;
                for zombie in zombies().into_iter().filter(|zombie| seen.contains(zombie)) {
                    children.reap(zombie.0, began);
                }
                if children.rounds.fetch_sub(1, Ordering::SeqCst) == 1 {
                    return;
                }
            }
        });
    }

    /// Sweeps once a minute, for ever.
    pub async fn keep_sweeping(self: Arc<Self>) {
        loop {
            sleep(EVERY).await;
            self.sweep_soon();
        }
    }

    /// Reaps `pid`, which had ended before the child `began` was expected, unless it is or may become somebody's.
    fn reap(&self, pid: i32, began: u64) {
        if self.known().is_nobodys(pid, began)
            && let Some(pid) = Pid::from_raw(pid)
        {
            // One that was reaped in between is what we want.
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn is_nobodys(&self, pid: i32, began: u64) -> bool {
        !self.watched.contains(&pid) && self.expected.first().is_none_or(|number| *number >= began)
    }
}

/// The orphans among this process's children that have ended.
fn zombies() -> HashSet<Zombie> {
    let own = getpid().as_raw_nonzero().get();
    // Not getsid: a session that began outside our pid namespace is 0, which rustix's type cannot hold.
    let Some(session) = Stat::own().ok().and_then(|stat| stat.session()) else {
        return HashSet::new();
    };
    let zombie = |pid| {
        let stat = Stat::of(pid).ok()?;
        is_orphan(&stat, own, session).then_some((pid, stat.started()?))
    };
    children().into_iter().filter_map(zombie).collect()
}

/// This process's children; all processes on a kernel that does not list them (CONFIG_PROC_CHILDREN).
fn children() -> Vec<i32> {
    let named = |folder: &str| fs::read_dir(folder).into_iter().flatten().flatten();
    if !Path::new("/proc/thread-self/children").exists() {
        let numbers = named("/proc").filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        return numbers.collect();
    }
    let mut all = Vec::new();
    for thread in named("/proc/self/task") {
        // One that has ended meanwhile has none.
        let text = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        all.extend(text.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    all
}

/// Whether it is a zombie child of `parent` that the launcher forked, or of a session that is not `parent`'s.
fn is_orphan(stat: &Stat, parent: i32, session: i32) -> bool {
    let launched = || stat.name().is_some_and(|name| name.starts_with("wasi"));
    let foreign = || stat.session().is_some_and(|own| own != session);
    stat.is_zombie() && stat.parent() == Some(parent) && (launched() || foreign())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(path: &str) -> std::process::Command {
        std::process::Command::new(path)
    }

    fn orphan(stat: &str, parent: i32) -> bool {
        is_orphan(&Stat::from(stat.to_owned()), parent, 3)
    }

    #[test]
    fn only_zombies_of_the_launcher_or_of_containers_are_orphans() {
        assert!(orphan("7 (wasi-launcher) Z 3 7 3", 3));
        assert!(orphan("7 (wasi:a) b) Z 3 7 7", 3));
        assert!(orphan("7 (sleep) Z 3 6 6", 3), "a container's daemon");
        let unseen = |stat: &str| is_orphan(&Stat::from(stat.to_owned()), 3, 0);
        assert!(
            unseen("7 (sleep) Z 3 6 6"),
            "our session began outside our pid namespace"
        );
        assert!(!unseen("7 (exe) Z 3 3 0"), "so did its");
        assert!(!orphan("7 (wasi:a) S 3 7 7", 3), "it lives");
        assert!(!orphan("7 (wasi:a) Z 4 7 7", 3), "another's child");
        assert!(
            !orphan("7 (exe) Z 3 3 3", 3),
            "a compile worker, which its driver waits for"
        );
    }

    #[test]
    fn what_is_watched_or_may_be_expected_is_left_alone() {
        let children = Arc::new(Children::default());
        children.known().watched.insert(7);
        assert!(!children.known().is_nobodys(7, 0) && children.known().is_nobodys(8, 0));
        let expected = children.expect();
        let began = children.known().next;
        assert!(!children.known().is_nobodys(8, began), "it may be the expected one");
        let later = children.expect();
        drop(expected);
        assert!(
            children.known().is_nobodys(8, began),
            "it had ended before the later one was made"
        );
        drop(later);
        children.forget(7);
        assert!(children.known().is_nobodys(7, began));
    }

    /// One test, since a sweep reaps what another set of children watches.
    #[tokio::test]
    async fn an_unwatched_zombie_of_another_session_is_reaped_and_others_are_left_to_their_owners() {
        let mut foreign = process("setsid").arg("/bin/true").spawn().expect("setsid");
        let mut own = process("/bin/true").spawn().expect("true");
        // Orphans come to this process as they come to a server.
        rustix::process::set_child_subreaper(Some(getpid())).unwrap();
        let children = Arc::new(Children::default());
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "sleep 0.2 & echo $!; exit 3"]);
        command.stdout(std::process::Stdio::piped());
        let (mut watched, guard) = children.spawn(&mut command).unwrap();
        let mut orphan = String::new();
        let mut stdout = watched.stdout.take().unwrap();
        tokio::io::AsyncReadExt::read_to_string(&mut stdout, &mut orphan)
            .await
            .unwrap();
        children.sweep_soon();
        sleep(PATIENCE * 2 + PATIENCE / 2).await;
        assert!(foreign.try_wait().is_err(), "reaped");
        assert!(own.try_wait().expect("ours").is_some(), "left to its owner");
        assert_eq!(watched.wait().await.expect("watched").code(), Some(3));
        drop(guard);
        let orphan = Path::new("/proc").join(orphan.trim());
        assert!(!orphan.exists(), "what a watched child leaves behind is reaped");
    }
}
