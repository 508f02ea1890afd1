//! The guest's memory limit: what its linear memories and tables may grow to before its cgroup would kill it, and what
//! its options grant.
//!
//! Growing fails as wasm has it, by -1, so a guest that looks sees an allocation failure; one that was killed sees
//! nothing. The cgroup's files are read at each growth, so a container that is resized is followed at once, and other
//! processes of the container count.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use wasmtime::ResourceLimiter;

use crate::sys::memory::Memory;

/// Kept free for what a growth does not say: page tables, buffers and stacks of the host's code, and what the kernel
/// charges ahead of its use (a batch of pages for each cpu).
const RESERVE: u64 = 1 << 20;
/// A small limit is not spent on the reserve.
const RESERVE_SHARE: u64 = 8;
/// What a table's element takes (`ResourceLimiter::table_growing`).
const ELEMENT: usize = size_of::<usize>();

/// What the instances of a guest have together.
#[derive(Clone)]
pub struct Budget(Arc<Account>);

struct Account {
    memory: Option<Memory>,
    /// The most that all linear memories may have, in bytes.
    cap: u64,
    /// What all linear memories have.
    linear: AtomicU64,
    /// What the cgroup used when the program was loaded and nothing of it had grown.
    base: u64,
    /// What all memories and tables have been granted, in bytes.
    granted: AtomicU64,
}

/// Limits the growth of a store's memories and tables.
pub struct Limits {
    account: Arc<Account>,
    /// This store's part of what all have.
    linear: u64,
    granted: u64,
    /// The program's first memories are there; from now on it can live with a failure.
    instantiated: bool,
}

impl Budget {
    /// Limits by `memory`, the cgroup's files, if any, and by `cap` bytes of linear memory.
    pub fn new(memory: Option<Memory>, cap: u64) -> Budget {
        let base = |memory: &Memory| match memory.limit() {
            Ok(Some(_)) => used(memory, 0).ok(),
            _ => None,
        };
        Budget(Arc::new(Account {
            base: memory.as_ref().and_then(base).unwrap_or_default(),
            memory,
            cap,
            linear: AtomicU64::new(0),
            granted: AtomicU64::new(0),
        }))
    }

    /// Whether stores may be kept for later: those that are used now take no more than half of what there may be.
    pub fn is_ample(&self) -> bool {
        self.0.linear.load(Ordering::Relaxed) <= self.0.cap / 2
    }

    /// The limits of one more store; what it has is given back when they are dropped.
    pub fn limits(&self) -> Limits {
        Limits {
            account: self.0.clone(),
            linear: 0,
            granted: 0,
            instantiated: false,
        }
    }
}

impl Limits {
    /// From now on growth is judged. What a program declares is given: it runs with it or not at all, and may never touch
    /// it.
    pub fn instantiated(&mut self) {
        self.instantiated = true;
    }

    fn grow(&mut self, current: usize, desired: usize, unit: usize) -> bool {
        let more = desired.saturating_sub(current).saturating_mul(unit) as u64;
        // Taken before it is judged, so that two threads do not take the last of it.
        let all = self
            .account
            .granted
            .fetch_add(more, Ordering::Relaxed)
            .saturating_add(more);
        // A pod's seccomp profile may deny the reading; the cgroup's limit is then all there is.
        let granted = !self.instantiated || self.account.has_room(all, more).unwrap_or(true);
        match granted {
            true => self.granted = self.granted.saturating_add(more),
            false => give_back(&self.account.granted, more),
        }
        granted
    }

    /// Takes `more` bytes of linear memory; whether the cap has room for them.
    fn take_linear(&mut self, more: u64) -> bool {
        let cap = self.account.cap;
        let taken = |linear: u64| linear.checked_add(more).filter(|all| *all <= cap);
        let linear = &self.account.linear;
        let is_taken = linear.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok();
        if is_taken {
            self.linear += more;
        }
        is_taken
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        give_back(&self.account.granted, self.granted);
        give_back(&self.account.linear, self.linear);
    }
}

fn give_back(counter: &AtomicU64, bytes: u64) {
    counter.fetch_sub(bytes, Ordering::Relaxed);
}

impl Account {
    /// Whether the cgroup has room for `more` bytes, when all that were granted are `all` with them.
    fn has_room(&self, all: u64, more: u64) -> io::Result<bool> {
        let Some(memory) = &self.memory else { return Ok(true) };
        let Some(limit) = memory.limit()? else { return Ok(true) };
        let most = most(limit);
        // Granted and not touched yet, so not in the usage.
        let promised = self.base.saturating_add(all);
        Ok(promised <= most && used(memory, most.saturating_sub(more))?.saturating_add(more) <= most)
    }
}

/// What may be used under `limit`.
fn most(limit: u64) -> u64 {
    limit - RESERVE.min(limit / RESERVE_SHARE)
}

/// What the cgroup uses without the page cache, which is only asked for when the usage with it exceeds `enough`.
fn used(memory: &Memory, enough: u64) -> io::Result<u64> {
    let usage = memory.usage()?;
    if usage <= enough {
        return Ok(usage);
    }
    Ok(usage.saturating_sub(memory.reclaimable()?))
}

impl ResourceLimiter for Limits {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if exceeds(desired, maximum) {
            return Ok(false);
        }
        let more = desired.saturating_sub(current) as u64;
        if !self.take_linear(more) {
            // What is declared is had or the program does not run, so the reason is worth more than a failed growth.
            return match self.instantiated {
                true => Ok(false),
                false => Err(wasmtime::format_err!(
                    "its memory of {desired} bytes exceeds memory_limit, which is {} bytes",
                    self.account.cap
                )),
            };
        }
        let granted = self.grow(current, desired, 1);
        if !granted {
            self.linear -= more;
            give_back(&self.account.linear, more);
        }
        Ok(granted)
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(!exceeds(desired, maximum) && self.grow(current, desired, ELEMENT))
    }
}

/// Whether a growth fails whatever is granted: wasmtime asks before it looks, and would not say so then.
fn exceeds(desired: usize, maximum: Option<usize>) -> bool {
    maximum.is_some_and(|maximum| desired > maximum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memory::tests::memory;
    use std::fs;
    use std::path::{Path, PathBuf};

    const MIB: usize = 1 << 20;

    fn limits(name: &str, limit: &str, usage: usize, cache: usize) -> (PathBuf, Limits) {
        let (root, memory) = memory(name, limit, usage as u64, cache as u64);
        let mut limits = Budget::new(Some(memory), u64::MAX).limits();
        limits.instantiated();
        (root, limits)
    }

    fn use_up(root: &Path, usage: usize) {
        fs::write(root.join("a/memory.current"), usage.to_string()).unwrap();
    }

    #[test]
    fn growth_is_granted_up_to_the_limit_less_the_reserve_whether_it_is_touched_or_not() {
        let (root, mut limits) = limits("untouched", &(64 * MIB).to_string(), 2 * MIB, 0);
        assert!(limits.grow(0, 40 * MIB, 1));
        assert!(
            !limits.grow(40 * MIB, 62 * MIB, 1),
            "the usage does not show what was granted"
        );
        assert!(limits.grow(40 * MIB, 61 * MIB, 1));
        assert!(!limits.grow(61 * MIB, 61 * MIB + 1, 1));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn what_others_of_the_container_use_counts_and_page_cache_does_not() {
        let (root, mut limits) = limits("others", &(64 * MIB).to_string(), 2 * MIB, MIB);
        use_up(&root, 60 * MIB);
        assert!(limits.grow(0, 4 * MIB, 1), "a mebibyte of the usage is page cache");
        assert!(!limits.grow(4 * MIB, 9 * MIB, 1));
        use_up(&root, 10 * MIB);
        assert!(limits.grow(4 * MIB, 9 * MIB, 1));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_resized_limit_is_followed_up_and_down() {
        let (root, mut limits) = limits("resized", "max", 0, 0);
        assert!(limits.grow(0, 100 * MIB, 1));
        fs::write(root.join("a/memory.max"), (101 * MIB).to_string()).unwrap();
        assert!(!limits.grow(100 * MIB, 101 * MIB, 1));
        fs::write(root.join("a/memory.max"), (103 * MIB).to_string()).unwrap();
        assert!(limits.grow(100 * MIB, 101 * MIB, 1));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn what_a_program_declares_is_given_and_counts_against_its_growth() {
        let (root, memory) = memory("declared", &(8 * MIB).to_string(), 0, 0);
        let mut limits = Budget::new(Some(memory), u64::MAX).limits();
        assert!(limits.grow(0, 16 * MIB, 1));
        limits.instantiated();
        assert!(!limits.grow(16 * MIB, 17 * MIB, 1));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_table_counts_by_its_elements() {
        let (root, mut limits) = limits("table", &(8 * MIB).to_string(), 0, 0);
        assert!(!limits.grow(0, 7 * MIB / ELEMENT + 1, ELEMENT));
        assert!(limits.grow(0, 7 * MIB / ELEMENT, ELEMENT));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn without_a_limit_nothing_is_judged() {
        let mut limits = Budget::new(None, u64::MAX).limits();
        limits.instantiated();
        assert!(limits.grow(0, usize::MAX, ELEMENT));
    }

    #[test]
    fn all_memories_together_stay_below_the_cap() {
        let mut limits = Budget::new(None, 3 * MIB as u64).limits();
        assert!(limits.memory_growing(0, MIB, None).unwrap());
        limits.instantiated();
        assert!(limits.memory_growing(0, MIB, None).unwrap(), "a second memory");
        assert!(limits.memory_growing(MIB, 2 * MIB, None).unwrap());
        assert!(!limits.memory_growing(2 * MIB, 2 * MIB + 1, None).unwrap());
        assert!(limits.table_growing(0, MIB, None).unwrap(), "tables are the cgroup's");
    }

    #[test]
    fn what_is_refused_is_charged_to_nobody() {
        let (root, memory) = memory("refused", &(8 * MIB).to_string(), 0, 0);
        let budget = Budget::new(Some(memory), 16 * MIB as u64);
        let mut limits = budget.limits();
        limits.instantiated();
        for _ in 0..3 {
            assert!(
                !limits.memory_growing(0, 6 * MIB, Some(4 * MIB)).unwrap(),
                "its maximum"
            );
            assert!(!limits.table_growing(0, 3, Some(2)).unwrap(), "its maximum");
            assert!(!limits.memory_growing(0, 8 * MIB, None).unwrap(), "the cgroup's limit");
            assert!(!limits.memory_growing(0, 17 * MIB, None).unwrap(), "the cap");
            assert!(
                !limits.table_growing(0, 8 * MIB / ELEMENT, None).unwrap(),
                "the cgroup's limit"
            );
        }
        assert_eq!((limits.linear, limits.granted), (0, 0));
        assert!(limits.memory_growing(0, 7 * MIB, Some(7 * MIB)).unwrap());
        drop(limits);
        let account = &budget.0;
        let left = [&account.linear, &account.granted].map(|counter| counter.load(Ordering::Relaxed));
        assert_eq!(left, [0, 0]);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn threads_that_grow_at_once_get_no_more_than_there_is() {
        let (root, memory) = memory("at-once", &(64 * MIB).to_string(), 0, 0);
        for (memory, cap) in [(Some(memory), u64::MAX), (None, 63 * MIB as u64)] {
            let budget = Budget::new(memory, cap);
            let grow = |limits: &mut Limits| {
                limits.instantiated();
                let mut current = 0;
                while limits.memory_growing(current, current + MIB, None).unwrap() {
                    current += MIB;
                }
                current
            };
            let mut all: Vec<_> = (0..8).map(|_| budget.limits()).collect();
            let got: usize = std::thread::scope(|scope| {
                let growing: Vec<_> = all.iter_mut().map(|limits| scope.spawn(|| grow(limits))).collect();
                growing.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert!(got <= 63 * MIB && got > 32 * MIB, "{got}");
        }
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn instances_share_one_budget_and_give_back_what_they_had() {
        let budget = Budget::new(None, 2 * MIB as u64);
        let [mut first, mut second] = [budget.limits(), budget.limits()];
        assert!(first.memory_growing(0, MIB, None).unwrap());
        second.instantiated();
        assert!(!second.memory_growing(0, 2 * MIB, None).unwrap());
        drop(first);
        assert!(second.memory_growing(0, 2 * MIB, None).unwrap());
    }

    #[test]
    fn a_program_that_declares_more_than_the_cap_is_told_why_it_does_not_run() {
        let refused = Budget::new(None, MIB as u64)
            .limits()
            .memory_growing(0, 2 * MIB, None)
            .unwrap_err();
        assert!(
            refused.to_string().contains("memory_limit, which is 1048576 bytes"),
            "{refused}"
        );
    }
}
