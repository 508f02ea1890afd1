//! The fds that travel with a command, from the server through launcher and helper to the process.

use std::os::fd::{AsRawFd, OwnedFd};

/// The fds that came with a command.
pub struct Attached {
    /// The sealed plan.
    pub plan: OwnedFd,
    /// Where helper and process report, and are told to go on.
    pub report: OwnedFd,
    pub streams: [OwnedFd; 3],
    pub artifact: Option<OwnedFd>,
    /// Where a service counts.
    pub counters: Option<OwnedFd>,
    /// The pidfd of the process beside which this one lives: in its namespaces and root.
    pub beside: Option<OwnedFd>,
}

impl Attached {
    /// Sorts the fds of a command; `None` when their number is not what it says.
    pub fn new(fds: Vec<OwnedFd>, artifact: bool, counters: bool, beside: bool) -> Option<Attached> {
        let mut fds = fds.into_iter();
        let attached = Attached {
            plan: fds.next()?,
            report: fds.next()?,
            streams: [fds.next()?, fds.next()?, fds.next()?],
            artifact: if artifact { Some(fds.next()?) } else { None },
            counters: if counters { Some(fds.next()?) } else { None },
            beside: if beside { Some(fds.next()?) } else { None },
        };
        fds.next().is_none().then_some(attached)
    }

    /// Their numbers.
    pub fn numbers(&self) -> Vec<i32> {
        [&self.plan, &self.report]
            .into_iter()
            .chain(&self.streams)
            .chain(&self.artifact)
            .chain(&self.counters)
            .chain(&self.beside)
            .map(AsRawFd::as_raw_fd)
            .collect()
    }
}

/// What the helper has of the launcher: a command's fds, and the pipe for the guest's pid.
pub struct Inheritance {
    pub attached: Attached,
    pub pid: OwnedFd,
}
