//! Whether a server that has nothing to do is as small as it was: its memory and its descriptors.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::Result;
use kubewasi_bench::memory::{anonymous, pss};
use tokio::time::{Instant, sleep};

/// How much of its memory a server may gain between two looks, in percent.
const GAIN: u64 = 10;

/// How much more a server may gain that was first looked at when it was young, in KiB: the high water of its heap under all
/// clients at once. A leak below that is found over 10,000 lifecycles, which allow none of it.
const YOUNG: u64 = 1024;

/// How long it may take until what a server holds for others is gone: it keeps output that nobody has read for ten seconds.
const SETTLE: Duration = Duration::from_secs(15);

/// A server without containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Proportional set size in KiB.
    pub memory: u64,
    /// The part of it that is no file's.
    pub anonymous: u64,
    /// Open file descriptors.
    pub files: usize,
}

impl Size {
    pub fn of(pid: i32) -> Result<Size> {
        Ok(Size {
            memory: pss(pid.unsigned_abs())?,
            anonymous: anonymous(pid.unsigned_abs())?,
            files: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
        })
    }

    /// What has grown since `before` by more than a tenth and `slack` KiB; `memory` says which figure of it counts.
    pub fn growth(&self, before: &Size, slack: u64, memory: impl Fn(&Size) -> u64) -> Option<String> {
        let (now, then) = (memory(self), memory(before));
        if now > then + then * GAIN / 100 + slack {
            return Some(format!("{now} KiB, {then} KiB before"));
        }
        (self.files > before.files).then(|| format!("{} descriptors, {} before", self.files, before.files))
    }
}

/// The first size of every server that was seen.
#[derive(Default)]
pub struct Steady {
    first: BTreeMap<i32, Size>,
}

impl Steady {
    /// Looks at idle servers; returns what has grown since they were first looked at. A launcher that was killed shares no
    /// file with its server any more: only what is the server's own counts.
    pub async fn look(&mut self, servers: &[i32]) -> Vec<String> {
        let mut grown = Vec::new();
        for pid in servers {
            let since = Instant::now();
            while let Some(what) = self.growth(*pid) {
                if since.elapsed() > SETTLE {
                    grown.push(format!(
                        "server {pid} has grown: {what}; it has open {}",
                        open_files(*pid)
                    ));
                    break;
                }
                sleep(Duration::from_millis(100)).await;
            }
        }
        grown
    }

    fn growth(&mut self, pid: i32) -> Option<String> {
        // One that has just ended is not big.
        let size = Size::of(pid).ok()?;
        let first = self.first.entry(pid).or_insert(size);
        size.growth(first, YOUNG, |size| size.anonymous)
    }
}

/// What a process has open, to tell what should not be; a socket with the path that it listens at or was reached by.
fn open_files(pid: i32) -> String {
    let sockets = fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap_or_default();
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let names: Vec<String> = entries
        .filter_map(|entry| {
            let name = fs::read_link(entry.path()).ok()?.display().to_string();
            Some(match path_of(&sockets, &name) {
                Some(path) => format!("{name} {path}"),
                None => name,
            })
        })
        .collect();
    names.join(", ")
}

/// The path of `socket:[INODE]`, by the list of proc_pid_net(5).
fn path_of<'a>(sockets: &'a str, name: &str) -> Option<&'a str> {
    let inode = name.strip_prefix("socket:[")?.strip_suffix(']')?;
    let mut lines = sockets.lines().map(|line| line.split_whitespace().skip(6));
    lines.find_map(|mut fields| (fields.next() == Some(inode)).then(|| fields.next())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_told_with_its_path() {
        let sockets = "Num RefCount Protocol Flags Type St Inode Path\n\
                       0: 00000002 00000000 00010000 0001 01 77 /run/a.sock\n0: 00000003 00000000 00000000 0001 03 78\n";
        let path = |name| path_of(sockets, name);
        assert_eq!(path("socket:[77]"), Some("/run/a.sock"));
        assert_eq!(
            (path("socket:[78]"), path("socket:[7]"), path("/dev/null")),
            (None, None, None)
        );
    }

    #[test]
    fn more_than_a_tenth_of_memory_is_growth_and_so_is_one_descriptor() {
        let size = |memory, files| Size {
            memory,
            anonymous: 0,
            files,
        };
        let growth = |now: Size| now.growth(&size(1000, 20), 0, |size| size.memory);
        assert_eq!(growth(size(1100, 20)), None);
        assert_eq!(growth(size(1101, 20)).unwrap(), "1101 KiB, 1000 KiB before");
        assert_eq!(growth(size(900, 21)).unwrap(), "21 descriptors, 20 before");
    }
}
