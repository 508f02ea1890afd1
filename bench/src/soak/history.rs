//! Which faults happened when, and what of a container's trouble they excuse.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::plan::Fault;

struct Incident {
    fault: Fault,
    /// When the node had got over it.
    end: Option<Instant>,
}

/// All faults so far.
#[derive(Default)]
pub struct History {
    incidents: Mutex<Vec<Incident>>,
}

/// Ends its incident when it is dropped.
pub struct Lasting<'a> {
    history: &'a History,
    index: usize,
}

impl Drop for Lasting<'_> {
    fn drop(&mut self) {
        self.history
            .with(|incidents| incidents[self.index].end = Some(Instant::now()));
    }
}

impl History {
    /// `fault` happens from now until what is returned goes.
    pub fn begin(&self, fault: Fault) -> Lasting<'_> {
        let index = self.with(|incidents| {
            incidents.push(Incident { fault, end: None });
            incidents.len() - 1
        });
        Lasting { history: self, index }
    }

    pub fn count(&self) -> usize {
        self.with(|incidents| incidents.len())
    }

    /// How often servers were killed since `since`, and at that moment.
    pub fn server_deaths(&self, since: Instant) -> usize {
        self.count_since(since, |fault| *fault == Fault::ServerKilled)
    }

    /// Whether containerd may have gone away before it had answered a call that began at `since`.
    pub fn cuts_call(&self, since: Instant) -> bool {
        let goes = |fault: &Fault| matches!(fault, Fault::ContainerdKilled(_) | Fault::ContainerdStopped(_));
        self.count_since(since, goes) > 0
    }

    /// Whether a Create that began at `since` may have failed: of all that a fault breaks, what is just being made.
    pub fn excuses_create(&self, since: Instant) -> bool {
        self.excuses_native_exec(since) || self.count_since(since, |fault| matches!(fault, Fault::CacheFull(_))) > 0
    }

    /// Whether the start of a process in a native container that began at `since` may have failed: runc writes a file into
    /// the container's bundle.
    pub fn excuses_native_exec(&self, since: Instant) -> bool {
        self.excuses_call(since) || self.count_since(since, |fault| matches!(fault, Fault::BundlesFull(_))) > 0
    }

    /// Whether any other call that began at `since` may have failed, and is to be made again.
    pub fn excuses_call(&self, since: Instant) -> bool {
        let excuse = |fault: &Fault| {
            use Fault::{ContainerdKilled, ContainerdStopped, PidsSpent, ServerKilled};
            matches!(
                fault,
                ServerKilled | ContainerdKilled(_) | ContainerdStopped(_) | PidsSpent(_)
            )
        };
        self.count_since(since, excuse) > 0
    }

    fn count_since(&self, since: Instant, kind: impl Fn(&Fault) -> bool) -> usize {
        self.with(|incidents| {
            let lately = incidents
                .iter()
                .filter(|incident| incident.end.is_none_or(|end| end >= since));
            lately.filter(|incident| kind(&incident.fault)).count()
        })
    }

    fn with<T>(&self, look: impl FnOnce(&mut Vec<Incident>) -> T) -> T {
        look(&mut self.incidents.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_fault_excuses_what_began_before_its_end_and_nothing_after() {
        let history = History::default();
        let before = Instant::now();
        assert!(!history.excuses_call(before));
        let lasting = history.begin(Fault::ServerKilled);
        assert!(history.excuses_call(Instant::now()));
        drop(lasting);
        let after = Instant::now() + Duration::from_millis(1);
        assert_eq!((history.server_deaths(before), history.server_deaths(after)), (1, 0));
        assert!(history.excuses_create(before) && !history.excuses_create(after));
    }

    #[test]
    fn only_containerds_own_end_cuts_an_answer() {
        let (history, now) = (History::default(), Instant::now());
        drop(history.begin(Fault::ServerKilled));
        assert!(!history.cuts_call(now));
        drop(history.begin(Fault::ContainerdKilled(Duration::ZERO)));
        assert!(history.cuts_call(now));
    }

    #[test]
    fn a_full_disk_excuses_what_writes_into_a_bundle_alone() {
        let history = History::default();
        let _lasting = history.begin(Fault::BundlesFull(Duration::ZERO));
        let now = Instant::now();
        assert!(history.excuses_create(now) && history.excuses_native_exec(now) && !history.excuses_call(now));
        assert_eq!(history.count(), 1);
    }
}
