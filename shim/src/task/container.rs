//! One container: its phase, its process and our ends of its streams.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

use super::error::TaskError;
use super::events::{Facts, envelope};
use super::forward::Publisher;
use super::phase::{InvalidMove, Move, Owed, Phase};
use crate::bootstrap::sinks::Key;
use crate::sandbox::process::{Exit, Guest};
use crate::stdio::streams::Kept;

/// SIGKILL (signal(7)).
const KILL: i32 = 9;

/// A container that containerd knows, from its Create to its Delete.
pub struct Container {
    pub facts: Facts,
    /// Holds the log's fields: namespace, id and, once the spec is read, the pod.
    pub span: tracing::Span,
    phase: watch::Sender<Phase>,
    guest: OnceLock<Arc<Guest>>,
    kept: Mutex<Kept>,
    /// containerd has given this container up, and tells of its end by itself.
    given_up: watch::Sender<bool>,
}

impl Container {
    pub fn new(facts: Facts) -> Container {
        // A span of any other level would be off under some filters, and its lines would lose their fifo.
        let span = tracing::error_span!(
            "container",
            namespace = facts.namespace.as_str(),
            id = facts.id.as_str(),
            pod = tracing::field::Empty
        );
        Container {
            facts,
            span,
            phase: watch::Sender::new(Phase::Creating),
            guest: OnceLock::new(),
            kept: Mutex::default(),
            given_up: watch::Sender::new(false),
        }
    }

    pub fn key(&self) -> Key {
        (self.facts.namespace.clone(), self.facts.id.clone())
    }

    pub fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// The process; an error while there is none.
    pub fn guest(&self) -> Result<&Arc<Guest>, TaskError> {
        self.guest.get().ok_or_else(|| TaskError::NoProcessYet {
            id: self.facts.id.clone(),
            phase: self.phase.borrow().name(),
        })
    }

    /// The pid in the server's namespace; 0 while there is no process.
    pub fn pid(&self) -> u32 {
        self.guest.get().map_or(0, |guest| guest.pid())
    }

    /// Gives the container its process and our ends of the streams.
    pub fn adopt(&self, guest: Arc<Guest>, kept: Kept) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = kept;
        // Only Create calls this, once.
        let _ = self.guest.set(guest);
    }

    /// Changes the phase and publishes what that owes. The queue takes the events in the order of the changes, since
    /// both happen under the phase's lock.
    pub fn step(&self, attempt: Move, events: &Publisher) -> Result<(), TaskError> {
        let mut refused: Option<InvalidMove> = None;
        self.phase.send_if_modified(|phase| match phase.step(attempt) {
            Ok((next, owed)) => {
                for owed in owed {
                    if !(*self.given_up.borrow() && matches!(owed, Owed::Exit(_) | Owed::Delete(_))) {
                        events.publish(envelope(&self.facts, self.pid(), &owed, SystemTime::now()));
                    }
                }
                *phase = next;
                true
            }
            Err(invalid) => {
                refused = Some(invalid);
                false
            }
        });
        refused.map_or(Ok(()), |cause| {
            Err(TaskError::Phase {
                id: self.facts.id.clone(),
                cause,
            })
        })
    }

    /// Waits until `reached` says so of the phase, and returns it.
    pub async fn until(&self, reached: impl FnMut(&Phase) -> bool) -> Phase {
        match self.phase.subscribe().wait_for(reached).await {
            Ok(phase) => phase.clone(),
            // The sender is ours, so this does not come; the present phase is the truth all the same.
            Err(_) => self.phase(),
        }
    }

    /// Waits for the end of the process; an error when it never was created.
    pub async fn ended(&self) -> Result<Exit, TaskError> {
        let phase = self.until(Phase::over).await;
        phase.exit().cloned().ok_or_else(|| TaskError::NoContainer {
            namespace: self.facts.namespace.clone(),
            id: self.facts.id.clone(),
        })
    }

    /// Kills the process, if there is one that lives, and waits for its end.
    pub async fn kill(&self) -> Result<(), TaskError> {
        let phase = self.until(|phase| *phase != Phase::Creating).await;
        if phase.over() {
            return Ok(());
        }
        match self.guest()?.kill(KILL) {
            Err(cause) if cause.raw_os_error() != Some(libc::ESRCH) => {
                return Err(TaskError::Io {
                    id: self.facts.id.clone(),
                    act: "kill its process",
                    cause,
                });
            }
            _ => {}
        }
        self.until(Phase::over).await;
        Ok(())
    }

    /// containerd gives this container up: a Create that still looks for its program ends, and the end is not told.
    pub fn give_up(&self) {
        self.given_up.send_replace(true);
    }

    /// Resolves when containerd has given this container up.
    pub async fn given_up(&self) {
        // The sender is ours, so it outlives the wait.
        let _ = self.given_up.subscribe().wait_for(|given_up| *given_up).await;
    }

    /// Ends the guest's stdin.
    pub fn close_stdin(&self) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).close_stdin();
    }

    /// Closes our ends of the streams.
    pub fn close_streams(&self) {
        drop(std::mem::take(
            &mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner),
        ));
    }
}
