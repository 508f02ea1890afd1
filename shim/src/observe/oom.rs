//! Which OOM kills of a container are still to be told.
//!
//! The counter of its cgroup goes up before the process is killed, so a look at it after the process's end misses none.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::sleep;

use crate::sys::cgroup::Cgroup;
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
        }
    }

    /// Resolves when there is a kill to tell.
    pub async fn heard(&self) {
        let Some(notice) = &self.notice else {
            return std::future::pending().await;
        };
        loop {
            notice.heard().await;
            for _ in 0..LOOKS {
                if oom::kills(&self.cgroup).unwrap_or_default() > self.told.load(Ordering::Relaxed) {
                    return;
                }
                sleep(LOOK).await;
            }
        }
    }

    /// How many kills nobody was told of yet; from now on they are told.
    pub fn untold(&self) -> u64 {
        // A cgroup that is gone, or without a memory controller, kills nobody.
        let kills = oom::kills(&self.cgroup).unwrap_or_default();
        kills.saturating_sub(self.told.fetch_max(kills, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::sys::cgroup::Version;
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
        };
        assert_eq!(kills.untold(), 0);
        for (count, untold) in [(0, 0), (1, 1), (1, 0), (3, 2), (3, 0)] {
            fs::write(root.join("a/memory.events"), format!("oom 5\noom_kill {count}\n")).unwrap();
            assert_eq!(kills.untold(), untold);
        }
        fs::remove_dir_all(root).unwrap();
    }
}
