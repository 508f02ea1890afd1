//! A release of containerd, as far as its configuration and its restarts depend on it.

use std::fmt;
use std::str::FromStr;

/// A release of containerd, as far as its configuration depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    pub major: u32,
    pub minor: u32,
}

impl Release {
    /// Whether a start of it removes a container whose shim names no process of it. 1.6 keeps all; from 2.0 on sandboxes
    /// are known by more than that.
    pub fn removes_what_names_no_process(self, is_sandbox: bool) -> bool {
        match (self.major, self.minor) {
            (..=0, _) | (1, ..=6) => false,
            (1, _) => true,
            _ => !is_sandbox,
        }
    }

    /// The highest format version that it reads; 1.6 does not look at the number.
    pub fn highest_version(self) -> i64 {
        match (self.major, self.minor) {
            (..=1, 7..) => 2,
            (2, ..=2) => 3,
            _ => 4,
        }
    }

    /// Whether CRI pulls images by the transfer service unless it is configured otherwise.
    pub fn pulls_by_transfer(self) -> bool {
        self >= Release { major: 2, minor: 1 }
    }

    /// Whether an imported file is merged into the plugins' tables; before 2.0 it replaces them.
    pub fn merges_imports(self) -> bool {
        self.major >= 2
    }
}

impl FromStr for Release {
    type Err = ();

    /// Reads what CRI's `Version` answers: `v2.4.2`, or `1.6.20~ds1` as Debian writes it.
    fn from_str(text: &str) -> Result<Release, ()> {
        let mut parts = text.trim_start_matches('v').split('.');
        let mut number = || parts.next()?.parse().ok();
        match (number(), number()) {
            (Some(major), Some(minor)) => Ok(Release { major, minor }),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_as_distributions_write_them() {
        let read = |text: &str| text.parse::<Release>().map(|release| release.to_string());
        assert_eq!(read("v2.4.2"), Ok("2.4".to_owned()));
        assert_eq!(read("1.6.20~ds1"), Ok("1.6".to_owned()));
        assert_eq!(read("1.7.24-0ubuntu1"), Ok("1.7".to_owned()));
        assert_eq!(read("dev"), Err(()));
    }
}
