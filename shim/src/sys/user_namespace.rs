//! User namespaces by their mappings: made to be entered, or to say how a mount shows its owners.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::process::{WaitOptions, waitpid};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::fork::{Fork, exit, fork};

/// A range of ids (user_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Range {
    /// The first id in the namespace.
    pub inside: u32,
    /// The first id on the host.
    pub outside: u32,
    pub size: u32,
}

/// The ids that a user namespace has.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mappings {
    pub uids: Vec<Range>,
    pub gids: Vec<Range>,
}

impl Mappings {
    /// The mappings that a snapshotter writes into mount options, `0:100000:65536,...` (containerd, `mount`); `None` for
    /// a text that is none.
    pub fn parse(uids: &str, gids: &str) -> Option<Mappings> {
        let range = |text: &str| {
            let mut numbers = text.split(':').map(|number| number.parse().ok());
            let range = Range {
                inside: numbers.next()??,
                outside: numbers.next()??,
                size: numbers.next()??,
            };
            numbers.next().is_none().then_some(range)
        };
        let ranges = |text: &str| text.split(',').map(range).collect::<Option<Vec<Range>>>();
        Some(Mappings {
            uids: ranges(uids)?,
            gids: ranges(gids)?,
        })
    }

    /// The host's id of a uid in the namespace; `None` when it has no such uid.
    pub fn uid(&self, inside: u32) -> Option<u32> {
        outside(&self.uids, inside)
    }

    /// As [`Mappings::uid`], of a gid.
    pub fn gid(&self, inside: u32) -> Option<u32> {
        outside(&self.gids, inside)
    }
}

fn outside(ranges: &[Range], inside: u32) -> Option<u32> {
    ranges.iter().find_map(|range| {
        let offset = inside.checked_sub(range.inside)?;
        (offset < range.size).then(|| range.outside.checked_add(offset))?
    })
}

/// The text of `/proc/<pid>/uid_map` and `gid_map`.
fn table(ranges: &[Range]) -> String {
    ranges.iter().fold(String::new(), |mut text, range| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{} {} {}", range.inside, range.outside, range.size);
        text
    })
}

/// Makes a user namespace with `mappings`: that of a short-lived child, since the kernel takes mappings of many ids from
/// the parent namespace alone. The process has one thread and its children are seen in `/proc` by their pids.
///
/// # Errors
///
/// What fork(2), unshare(2) and writing the mappings say.
pub fn make(mappings: &Mappings) -> io::Result<OwnedFd> {
    let (mut ready, said) = io::pipe()?;
    let (mut held, hold) = io::pipe()?;
    match fork()? {
        Fork::Child => {
            drop((ready, hold));
            let made = unshare(UnshareFlags::NEWUSER);
            let code = made
                .as_ref()
                .err()
                .and_then(io::Error::raw_os_error)
                .unwrap_or_default();
            let mut said = said;
            // The parent's end, by which it says that it is done or gone, is all there is to wait for.
            let _ = said.write_all(&code.to_ne_bytes());
            let _ = held.read(&mut [0]);
            exit(0)
        }
        Fork::Parent(child) => {
            drop((said, held));
            let mut code = [0; 4];
            let namespace = ready
                .read_exact(&mut code)
                .and_then(|()| match i32::from_ne_bytes(code) {
                    0 => map(&Path::new("/proc").join(child.as_raw_nonzero().to_string()), mappings),
                    code => Err(io::Error::from_raw_os_error(code)),
                });
            drop(hold);
            rustix::io::retry_on_intr(|| waitpid(Some(child), WaitOptions::empty()))?;
            namespace
        }
    }
}

fn map(process: &Path, mappings: &Mappings) -> io::Result<OwnedFd> {
    fs::write(process.join("uid_map"), table(&mappings.uids))?;
    fs::write(process.join("gid_map"), table(&mappings.gids))?;
    Ok(File::open(process.join("ns/user"))?.into())
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    #[expect(unsafe_code, reason = "rustix marks unshare unsafe for CLONE_FILES")]
    // SAFETY: the flags are namespaces only; no fd table is unshared.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Enters `namespace`, with all capabilities there and none outside; the ids stay until they are set.
///
/// # Errors
///
/// What setns(2) says.
pub fn enter(namespace: &OwnedFd) -> io::Result<()> {
    Ok(move_into_link_name_space(
        namespace.as_fd(),
        Some(LinkNameSpaceType::User),
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_mapped_by_the_range_that_holds_them() {
        let mappings = Mappings::parse("0:100000:1000,2000:7:2", "0:5:1").unwrap();
        assert_eq!(mappings.uid(0), Some(100_000));
        assert_eq!(mappings.uid(999), Some(100_999));
        assert_eq!(mappings.uid(1000), None);
        assert_eq!(mappings.uid(2001), Some(8));
        assert_eq!(mappings.gid(0), Some(5));
        assert_eq!(mappings.gid(1), None);
    }

    #[test]
    fn what_is_no_mapping_is_none() {
        for text in ["", "0:1", "0:1:2:3", "a:1:2", "0:1:-2", "0:1:2,"] {
            assert_eq!(Mappings::parse(text, "0:1:2"), None, "{text}");
        }
    }

    #[test]
    fn the_kernels_table_has_a_line_for_each_range() {
        let mappings = Mappings::parse("0:100000:1000,2000:7:2", "0:5:1").unwrap();
        assert_eq!(table(&mappings.uids), "0 100000 1000\n2000 7 2\n");
    }
}
