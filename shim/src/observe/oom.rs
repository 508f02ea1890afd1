//! Which OOM kills of a container are still to be told.
//!
//! The counter of its cgroup goes up before the process is killed, so a look at it after the process's end misses none,
//! unless the cgroup is gone by then: systemd removes that of an empty scope at once. Then the rest is evidence: on v2
//! the counter of the cgroup above has counted the kill too, on v1 the notice came while there still was a cgroup.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::sleep;

use crate::sys::cgroup::{Cgroup, Version};
use crate::sys::oom::{self, Notice};

/// How often the counter is looked at after a notice: v1 gives it when the killer sets out, before it has killed.
const LOOKS: u32 = 50;
const LOOK: Duration = Duration::from_millis(20);

/// The OOM kills of one cgroup.
pub struct Kills {
    cgroup: Cgroup,
    /// Nothing when the kernel gives no notice: then they are told at the process's end alone.
    notice: Option<Notice>,
    told: AtomicU64,
    /// The cgroup above with its kills so far; nothing where it does not count what happens below it.
    above: Option<(Cgroup, u64)>,
    /// The notice of v1 came, and the cgroup was there: its own end is the other reason for one.
    noticed: AtomicBool,
}

impl Kills {
    /// Watches `cgroup`, whose kills so far were none of the container's.
    pub fn watch(cgroup: &Cgroup) -> Kills {
        let notice = Notice::of(cgroup)
            .inspect_err(|error| tracing::warn!(%error, "OOM kills are told at the container's end alone"))
            .ok();
        Kills {
            cgroup: cgroup.clone(),
            notice,
            told: AtomicU64::new(0),
            above: Kills::above(cgroup),
            noticed: AtomicBool::new(false),
        }
    }

    fn above(cgroup: &Cgroup) -> Option<(Cgroup, u64)> {
        let parent = cgroup.parent().filter(|_| cgroup.version == Version::V2)?;
        let kills = oom::kills(&parent).ok()?;
        Some((parent, kills))
    }

    /// Resolves when there is a kill to tell.
    pub async fn heard(&self) {
        let Some(notice) = &self.notice else {
            return std::future::pending().await;
        };
        loop {
            notice.heard().await;
            for _ in 0..LOOKS {
                let kills = oom::kills(&self.cgroup);
                self.noticed.fetch_or(kills.is_ok(), Ordering::Relaxed);
                if kills.unwrap_or_default() > self.told.load(Ordering::Relaxed) {
                    return;
                }
                sleep(LOOK).await;
            }
        }
    }

    /// How many kills nobody was told of yet; from now on they are told.
    pub fn untold(&self) -> u64 {
        // A cgroup that is gone, or without a memory controller, kills nobody.
        self.beyond_told(oom::kills(&self.cgroup).unwrap_or_default())
    }

    fn beyond_told(&self, kills: u64) -> u64 {
        kills.saturating_sub(self.told.fetch_max(kills, Ordering::Relaxed))
    }

    /// As [`Kills::untold`], when the container's process has ended; `unasked` when that was by a SIGKILL that nobody
    /// sent through us.
    pub fn untold_at_end(&self, unasked: bool) -> u64 {
        if let Ok(kills) = oom::kills(&self.cgroup) {
            return self.beyond_told(kills);
        }
        let told = self.told.load(Ordering::Relaxed);
        let killed = match &self.above {
            Some((parent, before)) => oom::kills(parent).unwrap_or_default() > before + told,
            None => self.cgroup.version == Version::V1 && self.noticed.load(Ordering::Relaxed) && told == 0,
        };
        // One: the others that the cgroup above counts may be those of the pod's other containers.
        u64::from(unasked && killed)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::sys::cgroup::tests::hierarchy;

    #[test]
    fn a_kill_is_told_once() {
        let (root, hierarchies) = hierarchy("kills", Version::V2);
        let cgroup = hierarchies.cgroup(Path::new("/a"));
        cgroup.create().unwrap();
        let kills = Kills {
            cgroup,
            notice: None,
            told: AtomicU64::new(0),
            above: None,
            noticed: AtomicBool::new(false),
        };
        assert_eq!(kills.untold(), 0);
        for (count, untold) in [(0, 0), (1, 1), (1, 0), (3, 2), (3, 0)] {
            fs::write(root.join("a/memory.events"), format!("oom 5\noom_kill {count}\n")).unwrap();
            assert_eq!(kills.untold(), untold);
        }
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_kill_in_a_cgroup_that_is_gone_is_told_by_the_one_above() {
        let (root, hierarchies) = hierarchy("above", Version::V2);
        let cgroup = hierarchies.cgroup(Path::new("/a/b"));
        cgroup.create().unwrap();
        let count = |folder: &str, kills: u64| {
            fs::write(root.join(folder).join("memory.events"), format!("oom_kill {kills}\n")).unwrap();
        };
        count("a", 3);
        count("a/b", 0);
        let kills = Kills {
            cgroup: cgroup.clone(),
            notice: None,
            told: AtomicU64::new(0),
            above: Kills::above(&cgroup),
            noticed: AtomicBool::new(false),
        };
        count("a", 4);
        assert_eq!(
            kills.untold_at_end(true),
            0,
            "its own counter says that the kill was another's"
        );
        fs::remove_dir_all(root.join("a/b")).unwrap();
        assert_eq!(kills.untold_at_end(false), 0, "it was killed by its client");
        assert_eq!(kills.untold_at_end(true), 1);
        count("a", 3);
        assert_eq!(kills.untold_at_end(true), 0);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn on_v1_a_notice_that_came_before_the_cgroup_was_gone_is_a_kill() {
        let (root, hierarchies) = hierarchy("notice", Version::V1);
        let mut kills = Kills {
            cgroup: hierarchies.cgroup(Path::new("/a/gone")),
            notice: None,
            told: AtomicU64::new(0),
            above: None,
            noticed: AtomicBool::new(false),
        };
        assert_eq!(kills.untold_at_end(true), 0);
        kills.noticed = AtomicBool::new(true);
        assert_eq!((kills.untold_at_end(true), kills.untold_at_end(false)), (1, 0));
        kills.told = AtomicU64::new(1);
        assert_eq!(kills.untold_at_end(true), 0, "it was told when it was heard of");
        fs::remove_dir_all(root).unwrap();
    }
}
