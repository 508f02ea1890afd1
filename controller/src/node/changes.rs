//! How often the agent changed the host lately: so that a configuration manager that restores its own file does not
//! cause a restart of containerd each time.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::api::wasm_node::Step;

use super::journal::{self, RecordError};
use super::layout::Layout;
use super::plan::Planned;

/// The longest interval between two changes of the same row.
const TOGETHER: SignedDuration = SignedDuration::from_hours(1);
/// How long the agent pauses after the second change of a row; each further one doubles it.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_mins(10);
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_hours(2);

/// What the agent has done to one host for one runtime.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Changes {
    /// How many plans were begun.
    pub begun: u64,
    /// How many changes of containerd's configuration came in a row, for the same wish.
    pub row: u32,
    /// The wish of that row, by its hash.
    pub wish: String,
    /// When the last one was completed.
    pub last: Option<Timestamp>,
}

impl Changes {
    /// Reads the record of a host; a host without one was not changed.
    pub fn read(layout: &Layout) -> Result<Changes, RecordError> {
        Ok(journal::read(&layout.changes())?.unwrap_or_default())
    }

    pub fn write(&self, layout: &Layout) -> Result<(), RecordError> {
        journal::write(&layout.changes(), self)
    }

    /// The more recent one of two records.
    pub fn max(self, other: Changes) -> Changes {
        if other.begun > self.begun { other } else { self }
    }

    /// The record after one more plan has begun.
    pub fn begin(mut self) -> Changes {
        self.begun = self.begun.saturating_add(1);
        self
    }

    /// The record after a plan was completed. A failed plan does not count: the agent itself has rolled it back.
    pub fn carried_out(mut self, planned: &Planned, now: Timestamp) -> Changes {
        if !changes_containerd(planned) {
            return self;
        }
        let together = self.pause() + TOGETHER;
        let follows = |last: Timestamp| (SignedDuration::ZERO..=together).contains(&now.duration_since(last));
        let is_in_row = self.wish == planned.wish && self.last.is_some_and(follows);
        self.row = if is_in_row { self.row.saturating_add(1) } else { 1 };
        self.wish.clone_from(&planned.wish);
        self.last = Some(now);
        self
    }

    /// Until when a plan that would change containerd's configuration again has to wait.
    pub fn pause_of(&self, planned: &Planned, now: Timestamp) -> Option<Timestamp> {
        let is_next = self.wish == planned.wish && changes_containerd(planned);
        self.paused(now).filter(|_| is_next)
    }

    /// Until when the agent pauses.
    pub fn paused(&self, now: Timestamp) -> Option<Timestamp> {
        let last = self.last?;
        let until = last + self.pause();
        // A change in the future was recorded before the clock was set back.
        (last <= now && now < until).then_some(until)
    }

    fn pause(&self) -> SignedDuration {
        match self.row {
            0 | 1 => SignedDuration::ZERO,
            row => FIRST_PAUSE
                .checked_mul(1 << (row - 2).min(10))
                .map_or(LONGEST_PAUSE, |pause| pause.min(LONGEST_PAUSE)),
        }
    }
}

/// Whether a plan writes containerd's configuration or restarts it.
fn changes_containerd(planned: &Planned) -> bool {
    planned.change.is_some() || planned.has(Step::RestartContainerd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::wasm_node::Plan;

    fn planned(wish: &str, steps: &[Step]) -> Planned {
        Planned {
            plan: Plan {
                hash: "h".into(),
                steps: steps.to_vec(),
            },
            wish: wish.into(),
            handler: "wasi".into(),
            installs: true,
            shim: String::new(),
            options: String::new(),
            change: None,
            cache: None,
            number: 0,
        }
    }

    fn minute(minute: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + 60 * minute).unwrap()
    }

    /// The minutes at which changes are made of a file that is restored every minute, within this number of minutes.
    fn made(within: i64) -> Vec<i64> {
        let plan = planned("w", &[Step::RestartContainerd]);
        let (mut changes, mut made) = (Changes::default(), Vec::new());
        for now in 0..within {
            if changes.pause_of(&plan, minute(now)).is_none() {
                changes = changes.carried_out(&plan, minute(now));
                made.push(now);
            }
        }
        made
    }

    #[test]
    fn a_file_that_is_always_restored_is_changed_twice_and_then_less_and_less_often() {
        assert_eq!(made(10), [0, 1]);
        assert_eq!(made(24 * 60)[..7], [0, 1, 11, 31, 71, 151, 271]);
    }

    #[test]
    fn a_file_that_is_restored_every_half_hour_is_left_alone_too() {
        let plan = planned("w", &[Step::RestartContainerd]);
        let (mut changes, mut made) = (Changes::default(), 0);
        for run in 0..48 {
            if changes.pause_of(&plan, minute(30 * run)).is_none() {
                changes = changes.carried_out(&plan, minute(30 * run));
                made += 1;
            }
        }
        assert!(made < 16, "{made} restarts in a day");
    }

    #[test]
    fn a_change_after_a_quiet_time_and_one_for_another_wish_are_made_at_once() {
        let plan = planned("w", &[Step::RestartContainerd]);
        let twice = Changes::default()
            .carried_out(&plan, minute(0))
            .carried_out(&plan, minute(5));
        assert_eq!(twice.pause_of(&plan, minute(6)), Some(minute(15)));
        assert_eq!(twice.pause_of(&planned("other", &plan.plan.steps), minute(6)), None);
        assert_eq!(twice.clone().carried_out(&plan, minute(24 * 60)).row, 1);
        assert_eq!(twice.carried_out(&planned("other", &plan.plan.steps), minute(6)).row, 1);
    }

    #[test]
    fn an_upgrade_counts_as_a_plan_and_not_as_a_change_of_the_configuration() {
        let upgrade = planned("w", &[Step::SwitchShim, Step::Prove]);
        let changes = Changes::default().begin().carried_out(&upgrade, minute(0));
        let changes = changes.begin().carried_out(&upgrade, minute(1));
        assert_eq!((changes.begun, changes.row), (2, 0));
        assert_eq!(changes.pause_of(&upgrade, minute(1)), None);
    }

    #[test]
    fn a_clock_that_was_set_back_delays_no_change() {
        let plan = planned("w", &[Step::RestartContainerd]);
        let twice = Changes::default()
            .carried_out(&plan, minute(60))
            .carried_out(&plan, minute(61));
        assert_eq!(twice.pause_of(&plan, minute(0)), None);
    }
}
