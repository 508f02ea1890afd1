//! One process of a container that containerd knows: its first one, or one exec'd into it.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use oci_spec::runtime;
use tokio::sync::watch;

use super::error::TaskError;
use super::events::{Facts, envelope};
use super::forward::Publisher;
use super::phase::{InvalidMove, Move, Owed, Phase};
use crate::stdio::streams::await_readers;
use crate::stdio::{Console, Kept};
use crate::sys::child::{Child, Exit};

/// A process, from its Create or Exec to its Delete.
pub struct Process {
    pub facts: Facts,
    /// What an exec'd process is to be; the first one's is in the container's config.json.
    pub spec: Option<runtime::Process>,
    phase: watch::Sender<Phase>,
    child: OnceLock<Arc<Child>>,
    held: Mutex<Held>,
    /// The terminal that its streams are, if they are one.
    console: OnceLock<Console>,
    /// containerd has given the container up, and tells of its end by itself.
    given_up: watch::Receiver<bool>,
}

/// Our ends of the streams.
#[derive(Default)]
struct Held {
    kept: Kept,
    /// stdin was closed, maybe before it was opened: a client may say so while the process is being started.
    stdin_closed: bool,
}

impl Process {
    pub fn new(facts: Facts, spec: Option<runtime::Process>, given_up: watch::Receiver<bool>) -> Process {
        Process {
            facts,
            spec,
            phase: watch::Sender::new(Phase::Creating),
            child: OnceLock::new(),
            held: Mutex::default(),
            console: OnceLock::new(),
            given_up,
        }
    }

    pub fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// The forked process; an error while there is none.
    pub fn child(&self) -> Result<&Arc<Child>, TaskError> {
        self.child.get().ok_or_else(|| TaskError::NoProcessYet {
            id: self.facts.name(),
            phase: self.phase.borrow().name(),
        })
    }

    /// The pid in the server's namespace; 0 while there is no process.
    pub fn pid(&self) -> u32 {
        self.child.get().map_or(0, |child| child.pid())
    }

    /// Gives it its forked process and our ends of the streams.
    pub fn adopt(&self, child: Arc<Child>, kept: Kept, console: Option<Console>) {
        if let Some(console) = console {
            let _ = self.console.set(console);
        }
        let mut held = self.held();
        held.kept = kept;
        if held.stdin_closed {
            held.kept.close_stdin();
        }
        drop(held);
        // Only the Create or the start of an exec calls this, once.
        let _ = self.child.set(child);
    }

    /// Changes the phase and publishes what that owes. The queue takes the events in the order of the changes, since
    /// both happen under the phase's lock.
    pub fn step(&self, attempt: Move, events: &Publisher) -> Result<(), TaskError> {
        let mut refused: Option<InvalidMove> = None;
        self.phase.send_if_modified(|phase| match phase.step(attempt) {
            Ok((next, owed)) => {
                for owed in owed {
                    if !(*self.given_up.borrow() && matches!(owed, Owed::Exit(_) | Owed::Delete(_)))
                        && let Some(envelope) = envelope(&self.facts, self.pid(), &owed, SystemTime::now())
                    {
                        events.publish(&self.facts.id, envelope);
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
                id: self.facts.name(),
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
        phase.exit().cloned().ok_or_else(|| self.facts.unknown())
    }

    /// Resolves when its start is waited for no more: it is being discarded, or containerd has given the container up.
    pub async fn abandoned(&self) {
        let mut given_up = self.given_up.clone();
        tokio::select! {
            // The sender is the container's, which holds this process.
            _ = given_up.wait_for(|given_up| *given_up) => {}
            _ = self.until(|phase| *phase == Phase::Discarding) => {}
        }
    }

    /// The terminal, if its streams are one.
    pub fn console(&self) -> Option<&Console> {
        self.console.get()
    }

    /// Waits until what was written to the terminal is where it leads; other streams need no wait.
    pub async fn drained(&self) {
        if let Some(console) = self.console() {
            console.drained().await;
        }
    }

    /// Ends the process's stdin.
    pub fn close_stdin(&self) {
        let mut held = self.held();
        held.stdin_closed = true;
        held.kept.close_stdin();
    }

    /// Ends the streams of the process, which has ended itself; its outputs once a reader is there, who may come late.
    pub fn finish_streams(self: &Arc<Self>) {
        self.close_stdin();
        // What is left in a terminal is still written to its reader, whose place we hold.
        let is_written = self.console().is_none_or(Console::is_drained);
        if is_written && !self.held().kept.end() {
            let process = self.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = await_readers(|| process.held().kept.end()) => {}
                    // Whoever deletes it takes the streams, and nothing of it is to be held any longer.
                    _ = process.until(|phase| matches!(phase, Phase::Deleting(_) | Phase::Deleted(_))) => {}
                }
            });
        }
    }

    /// Takes our ends of the streams, for whoever is to end them.
    pub fn take_streams(&self) -> Kept {
        std::mem::take(&mut self.held().kept)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
