//! A compilation under way: how far it is, and the one result that every caller who waits for it gets.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{Artifact, CompileError};
use crate::sys::stat::Stat;

/// How far a compilation is.
#[derive(Clone, Debug)]
enum State {
    /// It waits until fewer compilations run.
    Queued,
    /// The worker with this pid compiles.
    Compiling(u32),
    Landed(Result<Artifact, CompileError>),
}

/// The side of the task that compiles.
#[derive(Debug)]
pub struct Flight(watch::Sender<State>);

/// The side of those who wait.
#[derive(Clone, Debug)]
pub struct Waiting(watch::Receiver<State>);

/// Why there is no result.
#[derive(Debug, PartialEq, Eq)]
pub enum NoResult {
    /// The deadline came first, before the worker has started.
    Queued,
    /// The deadline came first; the worker has used so much processor time so far.
    Compiling(Duration),
    /// The task that compiled is gone, the server is ending.
    Gone,
}

/// A compilation that begins now.
pub fn begin() -> (Flight, Waiting) {
    let (sender, receiver) = watch::channel(State::Queued);
    (Flight(sender), Waiting(receiver))
}

impl Flight {
    /// The worker with this pid has started.
    pub fn compiling(&self, pid: u32) {
        self.0.send_replace(State::Compiling(pid));
    }

    /// Ends the compilation.
    pub fn land(&self, result: Result<Artifact, CompileError>) {
        self.0.send_replace(State::Landed(result));
    }
}

impl Waiting {
    /// The result of the compilation, whether it succeeded or failed, if it ends before the deadline; `None` waits for
    /// as long as it takes.
    pub async fn result(mut self, deadline: Option<Instant>) -> Result<Result<Artifact, CompileError>, NoResult> {
        let landed = async {
            let state = self.0.wait_for(|state| matches!(state, State::Landed(_))).await;
            match state.as_deref() {
                Ok(State::Landed(result)) => Ok(result.clone()),
                _ => Err(NoResult::Gone),
            }
        };
        let Some(deadline) = deadline else {
            return landed.await;
        };
        match tokio::time::timeout_at(deadline.into(), landed).await {
            Ok(result) => result,
            Err(_) => Err(self.progress()),
        }
    }

    fn progress(&self) -> NoResult {
        match &*self.0.borrow() {
            State::Compiling(pid) => NoResult::Compiling(processor_time(*pid)),
            State::Queued | State::Landed(_) => NoResult::Queued,
        }
    }
}

/// What a worker has used; nothing when it has just ended.
fn processor_time(pid: u32) -> Duration {
    Stat::of(pid)
        .ok()
        .and_then(|stat| stat.processor_time())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> Result<Artifact, CompileError> {
        Err(CompileError::Empty {
            name: "/app.wasm".into(),
        })
    }

    fn now() -> Option<Instant> {
        Some(Instant::now())
    }

    #[tokio::test]
    async fn whoever_waits_gets_the_one_result_also_after_the_end() {
        let (flight, waiting) = begin();
        let early = tokio::spawn(waiting.clone().result(None));
        flight.compiling(std::process::id());
        flight.land(failed());
        for result in [early.await.expect("no panic"), waiting.result(now()).await] {
            assert!(matches!(result, Ok(Err(CompileError::Empty { .. }))), "{result:?}");
        }
    }

    #[tokio::test]
    async fn a_caller_whose_time_is_up_hears_how_far_it_is() {
        let (flight, waiting) = begin();
        let queued = waiting.clone().result(now()).await.expect_err("unfinished");
        assert_eq!(queued, NoResult::Queued);
        flight.compiling(std::process::id());
        let compiling = waiting.result(now()).await.expect_err("unfinished");
        assert!(matches!(compiling, NoResult::Compiling(_)), "{compiling:?}");
    }

    #[tokio::test]
    async fn a_compilation_that_is_dropped_leaves_nobody_waiting() {
        let (flight, waiting) = begin();
        drop(flight);
        assert_eq!(waiting.result(None).await.expect_err("gone"), NoResult::Gone);
    }
}
