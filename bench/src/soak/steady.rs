//! Whether a server that has nothing to do is as small as it was: its memory and its descriptors.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::Result;
use kubewasi_bench::memory::{anonymous, pss};
use tokio::time::{Instant, sleep};

/// How much of its memory a server may gain between two looks, in percent.
const GAIN: u64 = 10;

/// How much more a server may gain that was first looked at when it was young: the high water of its heap under all clients
/// at once, and what it connects to when it needs that, its launcher, with the mount that this runs from, and containerd's
/// event endpoint, four times. A leak below that is found over 10,000 lifecycles, which allow none of it.
const YOUNG: Slack = Slack {
    memory: 1024,
    files: 6,
    // A client's each.
    connections: 32,
};

/// How long it may take until what a server holds for others is gone: it keeps output that nobody has read for ten seconds.
const SETTLE: Duration = Duration::from_secs(15);

/// A server without containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Proportional set size in KiB.
    pub memory: u64,
    /// The part of it that is no file's.
    pub anonymous: u64,
    /// Open file descriptors, but for the connections that containerd keeps: after a Create that found its disk full it
    /// closes one when Go collects its garbage.
    pub files: usize,
    /// Those connections.
    pub connections: usize,
}

/// What is no growth yet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Slack {
    /// In KiB.
    pub memory: u64,
    /// Descriptors.
    pub files: usize,
    /// Connections of containerd's.
    pub connections: usize,
}

impl Size {
    pub fn of(pid: i32) -> Result<Size> {
        let open = open_files(pid)?;
        Ok(Size {
            memory: pss(pid.unsigned_abs())?,
            anonymous: anonymous(pid.unsigned_abs())?,
            files: open.iter().filter(|file| !file.is_containerds).count(),
            connections: open.iter().filter(|file| file.is_containerds).count(),
        })
    }

    /// What has grown since `before` by more than `slack`, and by more than a tenth of its memory; `memory` says which
    /// figure of that counts.
    pub fn growth(&self, before: &Size, slack: Slack, memory: impl Fn(&Size) -> u64) -> Option<String> {
        let (now, then) = (memory(self), memory(before));
        if now > then + then * GAIN / 100 + slack.memory {
            return Some(format!("{now} KiB, {then} KiB before"));
        }
        if self.connections > before.connections + slack.connections {
            return Some(format!(
                "{} connections, {} before",
                self.connections, before.connections
            ));
        }
        (self.files > before.files + slack.files)
            .then(|| format!("{} descriptors, {} before", self.files, before.files))
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
                            .unwrap_or_default()
                            .into_iter()
                            .map(|file| file.name)
                            .collect::<Vec<_>>()
                            .join(", ")
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

/// What a process has open.
struct OpenFile {
    /// Its path; a socket's with the path that it listens at or was reached by.
    name: String,
    /// A connection that containerd made.
    is_containerds: bool,
}

fn open_files(pid: i32) -> Result<Vec<OpenFile>> {
    let sockets = fs::read_to_string(format!("/proc/{pid}/net/unix"))?;
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    // One that is closed meanwhile is none.
    let names = entries.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.display().to_string()));
    Ok(names.map(|name| open_file(&sockets, name)).collect())
}

/// The file `name`, which may be `socket:[INODE]` of the list in proc_pid_net(5).
fn open_file(sockets: &str, name: String) -> OpenFile {
    let inode = name.strip_prefix("socket:[").and_then(|name| name.strip_suffix(']'));
    let mut lines = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    match lines.find_map(|fields| match fields[..] {
        [.., state, number, path] if Some(number) == inode => Some((state == CONNECTED, path.to_owned())),
        _ => None,
    }) {
        Some((connected, path)) => OpenFile {
            is_containerds: connected && path.starts_with("/run/containerd/s/"),
            name: format!("{name} {path}"),
        },
        None => OpenFile {
            name,
            is_containerds: false,
        },
    }
}

/// A socket's state, as /proc/net/unix has it.
const CONNECTED: &str = "03";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_told_with_its_path_and_containerds_connections_are_known() {
        let sockets = "Num RefCount Protocol Flags Type St Inode Path\n\
                       0: 00000002 00000000 00010000 0001 01 77 /run/containerd/s/a\n\
                       0: 00000003 00000000 00000000 0001 03 78\n\
                       0: 00000003 00000000 00000000 0001 03 79 /run/containerd/s/a\n";
        let told = |name: &str| {
            let file = open_file(sockets, name.to_owned());
            (file.name, file.is_containerds)
        };
        assert_eq!(
            told("socket:[77]"),
            ("socket:[77] /run/containerd/s/a".to_owned(), false)
        );
        assert_eq!(
            told("socket:[79]"),
            ("socket:[79] /run/containerd/s/a".to_owned(), true)
        );
        for unknown in ["socket:[78]", "socket:[7]", "/dev/null"] {
            assert_eq!(told(unknown), (unknown.to_owned(), false));
        }
    }

    #[test]
    fn more_than_a_tenth_of_memory_is_growth_and_so_is_one_descriptor() {
        let size = |memory, files| Size {
            memory,
            anonymous: 0,
            files,
            connections: 0,
        };
        let growth = |now: Size| now.growth(&size(1000, 20), Slack::default(), |size| size.memory);
        assert_eq!(growth(size(1100, 20)), None);
        assert_eq!(growth(size(1101, 20)).unwrap(), "1101 KiB, 1000 KiB before");
        assert_eq!(growth(size(900, 21)).unwrap(), "21 descriptors, 20 before");
    }
}
