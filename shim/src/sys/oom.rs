//! OOM kills in a cgroup: how many there were, and a notice of the next.
//!
//! On v1 an eventfd is registered with `memory.oom_control` through `cgroup.event_control`, on v2 `memory.events` itself
//! can be polled. Either speaks up for more than kills (a kill beside us in the pod, a limit that was hit, the end of
//! the cgroup), so the counter `oom_kill` decides.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::event::{EventfdFlags, eventfd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::cgroup::{Cgroup, Version};
use super::fds;

/// The longest `memory.events` is 6 short lines.
const EVENTS_MAX: usize = 512;

/// How many processes of `cgroup` the OOM killer has ended.
///
/// # Errors
///
/// When the counter cannot be read: the cgroup is gone, or has no memory controller.
pub fn kills(cgroup: &Cgroup) -> io::Result<u64> {
    let file = match cgroup.version {
        Version::V1 => "memory.oom_control",
        Version::V2 => "memory.events",
    };
    Ok(cgroup.figure(file, "oom_kill")?.unwrap_or_default())
}

/// Hears of OOM events in one cgroup.
pub struct Notice {
    version: Version,
    /// The eventfd on v1, `memory.events` on v2.
    source: AsyncFd<OwnedFd>,
}

impl Notice {
    /// Listens to `cgroup`; needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the cgroup has no memory controller, or what open(2), write(2) and epoll_ctl(2) say.
    pub fn of(cgroup: &Cgroup) -> io::Result<Notice> {
        let source = match cgroup.version {
            Version::V1 => {
                let control = File::open(cgroup.file("memory.oom_control")?)?;
                let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
                let line = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
                fs::write(cgroup.file("cgroup.event_control")?, line)?;
                fds::polled(event, Interest::READABLE)?
            }
            Version::V2 => {
                let events = File::open(cgroup.file("memory.events")?)?;
                // Poll tells of changes since the last read.
                events.read_at(&mut [0; EVENTS_MAX], 0)?;
                fds::polled(events.into(), Interest::PRIORITY)?
            }
        };
        Ok(Notice {
            version: cgroup.version,
            source,
        })
    }

    /// Resolves when something has happened that may be an OOM kill; the counter says what. Never, when listening fails.
    pub async fn heard(&self) {
        let heard = match self.version {
            Version::V1 => {
                let take = |event: &OwnedFd| Ok(rustix::io::read(event, &mut [0; 8])?);
                self.source.async_io(Interest::READABLE, take).await.map(drop)
            }
            Version::V2 => self.source.ready(Interest::PRIORITY).await.and_then(|mut ready| {
                ready.clear_ready();
                rustix::io::pread(self.source.get_ref(), &mut [0; EVENTS_MAX], 0)?;
                Ok(())
            }),
        };
        if heard.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::sys::cgroup::tests::hierarchy;

    #[test]
    fn kills_are_counted_where_each_version_has_them() {
        let files = [
            (
                Version::V1,
                "memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            ),
            (
                Version::V2,
                "memory.events",
                "low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 0\n",
            ),
        ];
        for (version, file, text) in files {
            let (root, hierarchies) = hierarchy(file, version);
            let cgroup = hierarchies.cgroup(Path::new("/a"));
            cgroup.create().unwrap();
            assert_eq!(kills(&cgroup).unwrap_err().kind(), io::ErrorKind::NotFound);
            fs::write(root.join("a").join(file), text).unwrap();
            assert_eq!(kills(&cgroup).unwrap(), 2);
            fs::remove_dir_all(root).unwrap();
        }
    }
}
