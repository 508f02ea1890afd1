//! Whether a server that has nothing to do is as small as it was: its memory and its descriptors.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Result;
use kubewasi_bench::memory::pss;

/// How much of its memory a server may gain between two looks, in percent.
const GAIN: u64 = 10;

/// A server without containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Proportional set size in KiB.
    pub memory: u64,
    /// Open file descriptors.
    pub files: usize,
}

impl Size {
    pub fn of(pid: i32) -> Result<Size> {
        Ok(Size {
            memory: pss(pid.unsigned_abs())?,
            files: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
        })
    }

    /// What has grown since `before`.
    pub fn growth(&self, before: &Size) -> Option<String> {
        let most = before.memory + before.memory * GAIN / 100;
        if self.memory > most {
            return Some(format!("{} KiB, {} KiB before", self.memory, before.memory));
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
    /// Looks at idle servers; returns what has grown since they were first looked at.
    pub fn look(&mut self, servers: &[i32]) -> Vec<String> {
        let mut grown = Vec::new();
        for pid in servers {
            // One that has just ended is not big.
            let Ok(size) = Size::of(*pid) else { continue };
            let first = self.first.entry(*pid).or_insert(size);
            grown.extend(size.growth(first).map(|what| format!("server {pid} has grown: {what}")));
        }
        grown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_more_memory_is_growth_and_so_is_one_descriptor() {
        let first = Size {
            memory: 1000,
            files: 20,
        };
        assert_eq!(
            Size {
                memory: 1100,
                files: 20
            }
            .growth(&first),
            None
        );
        assert_eq!(
            Size {
                memory: 1101,
                files: 20
            }
            .growth(&first)
            .unwrap(),
            "1101 KiB, 1000 KiB before"
        );
        assert_eq!(
            Size { memory: 900, files: 21 }.growth(&first).unwrap(),
            "21 descriptors, 20 before"
        );
    }
}
