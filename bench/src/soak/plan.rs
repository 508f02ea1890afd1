//! Which faults come, in which order and after which pauses: all of it from a seed (pure).

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

/// What is done to the node while its containers live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Every server gets SIGKILL.
    ServerKilled,
    /// Every launcher gets SIGKILL.
    LauncherKilled,
    /// containerd gets SIGKILL and is away for a while.
    ContainerdKilled(Duration),
    /// containerd is stopped as its service manager does, and is away for a while.
    ContainerdStopped(Duration),
    /// Another file stands where the shim's binary was.
    ShimReplaced,
    /// Nobody takes events for a while.
    EventsDown(Duration),
    /// The file system of the bundles is full for a while.
    BundlesFull(Duration),
    /// The artifact cache is emptied, and its file system is full for a while.
    CacheFull(Duration),
    /// Servers and launchers may not make processes or threads for a while.
    PidsSpent(Duration),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::ServerKilled => write!(f, "server killed"),
            Fault::LauncherKilled => write!(f, "launcher killed"),
            Fault::ContainerdKilled(away) => write!(f, "containerd killed, away for {away:?}"),
            Fault::ContainerdStopped(away) => write!(f, "containerd stopped, away for {away:?}"),
            Fault::ShimReplaced => write!(f, "shim binary replaced"),
            Fault::EventsDown(lasts) => write!(f, "event endpoint down for {lasts:?}"),
            Fault::BundlesFull(lasts) => write!(f, "bundles' disk full for {lasts:?}"),
            Fault::CacheFull(lasts) => write!(f, "cache emptied and its disk full for {lasts:?}"),
            Fault::PidsSpent(lasts) => write!(f, "no new processes for {lasts:?}"),
        }
    }
}

/// The faults of a seed, each with the pause before it. Every kind comes once before any comes again.
pub struct Plan {
    rng: Rng,
    /// Those of the present round that are still to come.
    round: Vec<Fault>,
}

impl Plan {
    pub fn new(seed: u64) -> Plan {
        Plan {
            rng: Rng::with_seed(seed),
            round: Vec::new(),
        }
    }

    fn deal(&mut self) {
        let mut between = |least: u64, most: u64| Duration::from_millis(self.rng.u64(least..=most));
        self.round = vec![
            Fault::ServerKilled,
            Fault::LauncherKilled,
            Fault::ContainerdKilled(between(0, 1500)),
            Fault::ContainerdStopped(between(0, 4000)),
            Fault::ShimReplaced,
            // Longer than the server waits for one answer.
            Fault::EventsDown(between(500, 7000)),
            Fault::BundlesFull(between(500, 3000)),
            Fault::CacheFull(between(500, 3000)),
            Fault::PidsSpent(between(500, 3000)),
        ];
        self.rng.shuffle(&mut self.round);
    }
}

impl Iterator for Plan {
    type Item = (Duration, Fault);

    fn next(&mut self) -> Option<(Duration, Fault)> {
        if self.round.is_empty() {
            self.deal();
        }
        let pause = Duration::from_millis(self.rng.u64(500..4000));
        self.round.pop().map(|fault| (pause, fault))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many faults make a round.
    const ROUND: usize = 9;

    #[test]
    fn a_seed_says_the_whole_plan_and_another_seed_another() {
        let plan = |seed| Plan::new(seed).take(40).collect::<Vec<_>>();
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
    }

    #[test]
    fn every_kind_comes_once_before_any_comes_again() {
        let kinds = |from: usize| {
            let faults = Plan::new(3).skip(from).take(ROUND);
            faults
                .map(|(_, fault)| std::mem::discriminant(&fault))
                .collect::<std::collections::HashSet<_>>()
        };
        assert_eq!((kinds(0).len(), kinds(ROUND).len()), (ROUND, ROUND));
    }
}
