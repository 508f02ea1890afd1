//! The states of a process, a container's first or one that is exec'd, and the events that their changes owe (pure).
//!
//! ```text
//! Creating ─> Created ─> Starting ─> Running ─> Stopped ─> Deleting ─> Deleted
//!    │           └──────────┼──────────────────────┘ ^
//!    v                      v                        │
//! Deleted            EndedEarly ── start is out ─────┘
//!
//! Starting ─> Discarding ─> Deleted                         an exec'd process that is deleted while it is started
//! Running ─> Pausing ─> Paused ─> Resuming ─> Running       an exit stops it from each of them
//! ```
//!
//! containerd relies on the order create < start < exit < delete: an exit that comes while a start is answered is held
//! back until the start event is out.

use crate::sys::child::Exit;

/// Where a container is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its image is found, compiled, forked; there is no process yet.
    Creating,
    /// The process waits for its start.
    Created,
    /// The start was given and is not yet answered.
    Starting,
    /// As Starting, but it was deleted meanwhile: what is started is to be ended, and nobody is told.
    Discarding,
    /// It ended while its start was being answered.
    EndedEarly(Exit),
    Running,
    /// Its cgroup is being frozen.
    Pausing,
    Paused,
    /// Its cgroup is being thawed.
    Resuming,
    Stopped(Exit),
    /// What it holds is being removed.
    Deleting(Exit),
    /// It is gone; without an exit when it never ran.
    Deleted(Option<Exit>),
}

/// What happens to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    /// The process is there.
    Create,
    /// No process could be made.
    FailCreate,
    /// The start is to be given.
    Start,
    /// The start was given.
    Started,
    /// The start could not be given.
    FailStart,
    /// It is to be frozen.
    Pause,
    /// It is frozen.
    Paused,
    /// It could not be frozen and runs on.
    FailPause,
    /// It is to be thawed.
    Resume,
    /// It is thawed.
    Resumed,
    /// It could not be thawed.
    FailResume,
    /// The kernel killed one of its processes for want of memory.
    OutOfMemory,
    Exit(Exit),
    /// What it holds is to be removed.
    Delete,
    /// It could not be removed and may be tried again.
    FailDelete,
    Deleted,
    /// It is forgotten before it was run, or while it is started: for a process that is exec'd.
    Discard,
}

/// What containerd is to be told, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owed {
    Create,
    Start,
    Paused,
    Resumed,
    OutOfMemory,
    Exit(Exit),
    Delete(Exit),
}

/// A move that the phase does not allow.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", sentence(.phase, .attempt))]
pub struct InvalidMove {
    pub phase: &'static str,
    pub attempt: &'static str,
}

fn sentence(phase: &str, attempt: &str) -> String {
    format!("cannot {attempt} a container that is {phase}")
}

impl Phase {
    /// The next phase and the events it owes, or why there is none.
    pub fn step(&self, attempt: Move) -> Result<(Phase, Vec<Owed>), InvalidMove> {
        Ok(match (self, attempt) {
            (Phase::Creating, Move::Create) => (Phase::Created, vec![Owed::Create]),
            (Phase::Creating, Move::FailCreate) => (Phase::Deleted(None), vec![]),
            (Phase::Created, Move::Discard) => (Phase::Deleted(None), vec![]),
            (Phase::Starting, Move::Discard) => (Phase::Discarding, vec![]),
            (Phase::Discarding, Move::Started | Move::FailStart) => (Phase::Deleted(None), vec![]),
            (Phase::Created, Move::Start) => (Phase::Starting, vec![]),
            (Phase::Created | Phase::Running | Phase::Pausing | Phase::Paused | Phase::Resuming, Move::Exit(exit)) => {
                (Phase::Stopped(exit.clone()), vec![Owed::Exit(exit)])
            }
            (Phase::Running, Move::Pause) => (Phase::Pausing, vec![]),
            (Phase::Pausing, Move::Paused) => (Phase::Paused, vec![Owed::Paused]),
            (Phase::Pausing, Move::FailPause) => (Phase::Running, vec![]),
            (Phase::Paused, Move::Resume) => (Phase::Resuming, vec![]),
            (Phase::Resuming, Move::Resumed) => (Phase::Running, vec![Owed::Resumed]),
            (Phase::Resuming, Move::FailResume) => (Phase::Paused, vec![]),
            (Phase::Created | Phase::Running | Phase::Pausing | Phase::Paused | Phase::Resuming, Move::OutOfMemory) => {
                (self.clone(), vec![Owed::OutOfMemory])
            }
            (Phase::Starting, Move::Started) => (Phase::Running, vec![Owed::Start]),
            (Phase::Starting, Move::FailStart) => (Phase::Created, vec![]),
            (Phase::Starting, Move::Exit(exit)) => (Phase::EndedEarly(exit), vec![]),
            (Phase::EndedEarly(exit), Move::Started) => (
                Phase::Stopped(exit.clone()),
                vec![Owed::Start, Owed::Exit(exit.clone())],
            ),
            (Phase::EndedEarly(exit), Move::FailStart) => {
                (Phase::Stopped(exit.clone()), vec![Owed::Exit(exit.clone())])
            }
            (Phase::Stopped(exit), Move::Delete) => (Phase::Deleting(exit.clone()), vec![]),
            (Phase::Deleting(exit), Move::FailDelete) => (Phase::Stopped(exit.clone()), vec![]),
            (Phase::Deleting(exit), Move::Deleted) => {
                (Phase::Deleted(Some(exit.clone())), vec![Owed::Delete(exit.clone())])
            }
            (phase, attempt) => {
                return Err(InvalidMove {
                    phase: phase.name(),
                    attempt: attempt.name(),
                });
            }
        })
    }

    /// How the process ended, once containerd may know.
    pub fn exit(&self) -> Option<&Exit> {
        match self {
            Phase::Stopped(exit) | Phase::Deleting(exit) | Phase::Deleted(Some(exit)) => Some(exit),
            _ => None,
        }
    }

    /// Whether its limits may be changed: while it has a process that has not ended.
    pub fn may_update(&self) -> Result<(), InvalidMove> {
        match self {
            Phase::Created | Phase::Starting | Phase::Running | Phase::Pausing | Phase::Paused | Phase::Resuming => {
                Ok(())
            }
            _ => Err(InvalidMove {
                phase: self.name(),
                attempt: "update",
            }),
        }
    }

    /// Whether nothing more will happen to the process.
    pub fn over(&self) -> bool {
        matches!(self, Phase::Stopped(_) | Phase::Deleting(_) | Phase::Deleted(_))
    }

    /// Whether a start is on its way, of which nobody knows yet how it ends.
    pub fn starting(&self) -> bool {
        matches!(self, Phase::Starting | Phase::Discarding)
    }

    /// The phase as messages name it.
    pub fn name(&self) -> &'static str {
        match self {
            Phase::Creating => "being created",
            Phase::Created => "created",
            Phase::Starting | Phase::EndedEarly(_) => "being started",
            Phase::Discarding => "being discarded",
            Phase::Running => "running",
            Phase::Pausing => "being paused",
            Phase::Paused => "paused",
            Phase::Resuming => "being resumed",
            Phase::Stopped(_) => "stopped",
            Phase::Deleting(_) => "being deleted",
            Phase::Deleted(_) => "deleted",
        }
    }
}

impl Move {
    fn name(&self) -> &'static str {
        match self {
            Move::Create | Move::FailCreate => "create",
            Move::Start | Move::Started | Move::FailStart => "start",
            Move::Pause | Move::Paused | Move::FailPause => "pause",
            Move::Resume | Move::Resumed | Move::FailResume => "resume",
            Move::OutOfMemory => "tell an OOM kill of",
            Move::Exit(_) => "end",
            Move::Delete | Move::FailDelete | Move::Deleted | Move::Discard => "delete",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn exit(code: u32) -> Exit {
        Exit {
            code,
            at: SystemTime::UNIX_EPOCH,
            message: None,
        }
    }

    fn walk(moves: Vec<Move>) -> (Phase, Vec<Owed>) {
        moves
            .into_iter()
            .fold((Phase::Creating, vec![]), |(phase, mut owed), attempt| {
                let (next, more) = phase.step(attempt).unwrap();
                owed.extend(more);
                (next, owed)
            })
    }

    #[test]
    fn an_ordinary_life_tells_create_start_exit_delete() {
        let moves = vec![
            Move::Create,
            Move::Start,
            Move::Started,
            Move::Exit(exit(7)),
            Move::Delete,
            Move::Deleted,
        ];
        assert_eq!(
            walk(moves),
            (
                Phase::Deleted(Some(exit(7))),
                vec![Owed::Create, Owed::Start, Owed::Exit(exit(7)), Owed::Delete(exit(7))]
            )
        );
    }

    #[test]
    fn exit_before_start_reply_is_reported_after_start_event() {
        let early = walk(vec![Move::Create, Move::Start, Move::Exit(exit(0))]);
        assert_eq!(early, (Phase::EndedEarly(exit(0)), vec![Owed::Create]));
        assert_eq!(early.0.exit(), None);
        let (phase, owed) = walk(vec![Move::Create, Move::Start, Move::Exit(exit(0)), Move::Started]);
        assert_eq!(phase, Phase::Stopped(exit(0)));
        assert_eq!(owed, vec![Owed::Create, Owed::Start, Owed::Exit(exit(0))]);
    }

    #[test]
    fn a_process_killed_before_its_start_has_no_start_event() {
        let (phase, owed) = walk(vec![Move::Create, Move::Exit(exit(137))]);
        assert_eq!(
            (phase, owed),
            (Phase::Stopped(exit(137)), vec![Owed::Create, Owed::Exit(exit(137))])
        );
        let (phase, owed) = walk(vec![Move::Create, Move::Start, Move::Exit(exit(137)), Move::FailStart]);
        assert_eq!(
            (phase, owed),
            (Phase::Stopped(exit(137)), vec![Owed::Create, Owed::Exit(exit(137))])
        );
    }

    fn running(then: Vec<Move>) -> (Phase, Vec<Owed>) {
        let (phase, owed) = walk([vec![Move::Create, Move::Start, Move::Started], then].concat());
        assert_eq!(owed[..2], [Owed::Create, Owed::Start]);
        (phase, owed[2..].to_vec())
    }

    #[test]
    fn pausing_and_resuming_are_told_when_they_are_done() {
        assert_eq!(running(vec![Move::Pause]), (Phase::Pausing, vec![]));
        let (phase, owed) = running(vec![Move::Pause, Move::Paused, Move::Resume, Move::Resumed]);
        assert_eq!((phase, owed), (Phase::Running, vec![Owed::Paused, Owed::Resumed]));
        assert_eq!(running(vec![Move::Pause, Move::FailPause]), (Phase::Running, vec![]));
        let (phase, owed) = running(vec![Move::Pause, Move::Paused, Move::Resume, Move::FailResume]);
        assert_eq!((phase, owed), (Phase::Paused, vec![Owed::Paused]));
    }

    #[test]
    fn a_container_that_is_paused_or_on_its_way_can_end() {
        let ways = [
            vec![Move::Pause],
            vec![Move::Pause, Move::Paused],
            vec![Move::Pause, Move::Paused, Move::Resume],
        ];
        for way in ways {
            let (phase, owed) = running([way, vec![Move::Exit(exit(137))]].concat());
            assert_eq!(
                (phase, owed.last()),
                (Phase::Stopped(exit(137)), Some(&Owed::Exit(exit(137))))
            );
        }
        assert!(Phase::Stopped(exit(137)).step(Move::Paused).is_err());
    }

    #[test]
    fn an_oom_kill_is_told_before_the_exit_and_changes_nothing() {
        let (phase, owed) = running(vec![Move::OutOfMemory, Move::OutOfMemory, Move::Exit(exit(137))]);
        assert_eq!(phase, Phase::Stopped(exit(137)));
        assert_eq!(owed, [Owed::OutOfMemory, Owed::OutOfMemory, Owed::Exit(exit(137))]);
        assert!(phase.step(Move::OutOfMemory).is_err());
    }

    #[test]
    fn limits_change_only_while_there_is_a_process() {
        for phase in [Phase::Created, Phase::Running, Phase::Paused] {
            phase.may_update().unwrap();
        }
        let refused = Phase::Stopped(exit(0)).may_update().unwrap_err();
        assert_eq!(refused.to_string(), "cannot update a container that is stopped");
        assert!(Phase::Creating.may_update().is_err());
    }

    #[test]
    fn a_failed_create_tells_nothing() {
        assert_eq!(walk(vec![Move::FailCreate]), (Phase::Deleted(None), vec![]));
    }

    #[test]
    fn a_process_that_is_deleted_while_it_is_started_is_gone_with_its_start_and_nothing_is_told() {
        let moves = |end| vec![Move::Create, Move::Start, Move::Discard, end];
        for end in [Move::Started, Move::FailStart] {
            assert_eq!(walk(moves(end)), (Phase::Deleted(None), vec![Owed::Create]));
        }
        assert!(Phase::Starting.starting() && Phase::Discarding.starting() && !Phase::Discarding.over());
        let refused = Phase::Discarding.step(Move::Discard).unwrap_err().to_string();
        assert_eq!(refused, "cannot delete a container that is being discarded");
        assert!(Phase::Running.step(Move::Discard).is_err());
    }

    #[test]
    fn a_delete_that_failed_can_be_tried_again() {
        let (phase, owed) = walk(vec![
            Move::Create,
            Move::Exit(exit(1)),
            Move::Delete,
            Move::FailDelete,
            Move::Delete,
        ]);
        assert_eq!(phase, Phase::Deleting(exit(1)));
        assert_eq!(owed, vec![Owed::Create, Owed::Exit(exit(1))]);
    }

    #[test]
    fn moves_out_of_order_are_refused_by_name() {
        let refused = |phase: Phase, attempt: Move| phase.step(attempt).unwrap_err().to_string();
        assert_eq!(
            refused(Phase::Running, Move::Start),
            "cannot start a container that is running"
        );
        assert_eq!(
            refused(Phase::Starting, Move::Start),
            "cannot start a container that is being started"
        );
        assert_eq!(
            refused(Phase::Stopped(exit(0)), Move::Start),
            "cannot start a container that is stopped"
        );
        assert_eq!(
            refused(Phase::Creating, Move::Start),
            "cannot start a container that is being created"
        );
        assert_eq!(
            refused(Phase::Running, Move::Delete),
            "cannot delete a container that is running"
        );
        assert_eq!(
            refused(Phase::Deleting(exit(0)), Move::Delete),
            "cannot delete a container that is being deleted"
        );
        assert_eq!(
            refused(Phase::Stopped(exit(0)), Move::Exit(exit(1))),
            "cannot end a container that is stopped"
        );
        assert_eq!(
            refused(Phase::Created, Move::Pause),
            "cannot pause a container that is created"
        );
        assert_eq!(
            refused(Phase::Paused, Move::Pause),
            "cannot pause a container that is paused"
        );
        assert_eq!(
            refused(Phase::Running, Move::Resume),
            "cannot resume a container that is running"
        );
        assert_eq!(
            refused(Phase::Paused, Move::Delete),
            "cannot delete a container that is paused"
        );
        assert_eq!(
            refused(Phase::Deleted(None), Move::Create),
            "cannot create a container that is deleted"
        );
    }
}
