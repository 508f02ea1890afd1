//! A compilation under way: its progress, and the one result that every caller that waits for it gets.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{Artifact, CompileError};
use crate::sys::stat::Stat;

/// The progress of a compilation.
#[derive(Clone, Debug)]
enum State {
    /// It waits until fewer compilations run.
    Queued,
    /// The worker with this pid compiles.
    Compiling(u32),
    Finished(Result<Artifact, CompileError>),
}

/// The side of the task that compiles.
#[derive(Debug)]
pub struct Flight {
    state: watch::Sender<State>,
    retry_expected: Arc<AtomicBool>,
}

/// The side of the callers that wait.
#[derive(Clone, Debug)]
pub struct Waiting {
    state: watch::Receiver<State>,
    /// A caller was asked to try again.
    retry_expected: Arc<AtomicBool>,
}

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
    let retry_expected = Arc::<AtomicBool>::default();
    let waiting = Waiting {
        state: receiver,
        retry_expected: retry_expected.clone(),
    };
    (
        Flight {
            state: sender,
            retry_expected,
        },
        waiting,
    )
}

impl Flight {
    /// The worker with this pid has started.
    pub fn compiling(&self, pid: u32) {
        self.state.send_replace(State::Compiling(pid));
    }

    /// Ends the compilation; whether a caller was asked to try again.
    pub fn finish(&self, result: Result<Artifact, CompileError>) -> bool {
        self.state.send_replace(State::Finished(result));
        self.retry_expected.load(Ordering::SeqCst)
    }
}

impl Waiting {
    /// The result of the compilation, whether it succeeded or failed, if it ends before the deadline; `None` waits for
    /// as long as it takes.
    pub async fn result(mut self, deadline: Option<Instant>) -> Result<Result<Artifact, CompileError>, NoResult> {
        let finished = async {
            let state = self.state.wait_for(|state| matches!(state, State::Finished(_))).await;
            match state.as_deref() {
                Ok(State::Finished(result)) => Ok(result.clone()),
                _ => Err(NoResult::Gone),
            }
        };
        let Some(deadline) = deadline else {
            return finished.await;
        };
        match tokio::time::timeout_at(deadline.into(), finished).await {
            Ok(result) => result,
            Err(_) => self.give_up(),
        }
    }

    /// Whether there is a result.
    pub fn is_finished(&self) -> bool {
        matches!(&*self.state.borrow(), State::Finished(_))
    }

    fn give_up(&self) -> Result<Result<Artifact, CompileError>, NoResult> {
        // Before the state is read: a compilation that finishes now is seen here, or sees this.
        self.retry_expected.store(true, Ordering::SeqCst);
        match &*self.state.borrow() {
            State::Queued => Err(NoResult::Queued),
            State::Compiling(pid) => Err(NoResult::Compiling(processor_time(*pid))),
            State::Finished(result) => Ok(result.clone()),
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
    async fn every_caller_gets_the_one_result_also_after_the_end() {
        let (flight, waiting) = begin();
        let early = tokio::spawn(waiting.clone().result(None));
        flight.compiling(std::process::id());
        assert!(!flight.finish(failed()), "no caller was asked to try again");
        for result in [early.await.expect("no panic"), waiting.result(now()).await] {
            assert!(matches!(result, Ok(Err(CompileError::Empty { .. }))), "{result:?}");
        }
    }

    #[tokio::test]
    async fn a_caller_whose_deadline_passes_learns_the_progress() {
        let (flight, waiting) = begin();
        let queued = waiting.clone().result(now()).await.expect_err("unfinished");
        assert_eq!(queued, NoResult::Queued);
        flight.compiling(std::process::id());
        let compiling = waiting.result(now()).await.expect_err("unfinished");
        assert!(matches!(compiling, NoResult::Compiling(_)), "{compiling:?}");
        assert!(flight.finish(failed()), "the callers were asked to try again");
    }

    #[tokio::test]
    async fn a_compilation_that_is_dropped_ends_the_wait() {
        let (flight, waiting) = begin();
        drop(flight);
        assert_eq!(waiting.result(None).await.expect_err("gone"), NoResult::Gone);
    }
}
