//! One container: its first process, what was exec'd beside it, and the body that they run in.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use oci_spec::runtime;
use tokio::sync::watch;

use super::body::Body;
use super::error::TaskError;
use super::events::Facts;
use super::forward::Publisher;
use super::phase::{InvalidMove, Move, Phase};
use super::process::Process;
use crate::bootstrap::sinks::Key;
use crate::image::Image;
use crate::observe::identity::Identity;
use crate::observe::metrics::Kind;
use crate::stdio::{Console, Kept};
use crate::sys::child::Exit;

/// A container that containerd knows, from its Create to its Delete.
pub struct Container {
    /// Holds the log's fields: namespace, id and, once the spec is read, the pod.
    pub span: tracing::Span,
    /// The first process, whose phases are the container's.
    pub init: Arc<Process>,
    body: OnceLock<Body>,
    made: OnceLock<Made>,
    execs: Mutex<Execs>,
    /// containerd has given this container up, and tells of its end by itself.
    given_up: watch::Sender<bool>,
}

/// How a container was made.
pub struct Made {
    pub identity: Identity,
    pub kind: Kind,
    /// So long Create took.
    pub took: Duration,
    /// The image when a layer of it runs, as it was then: its name may mean another by now.
    pub image: Option<Image>,
}

#[derive(Default)]
struct Execs {
    processes: HashMap<String, Arc<Process>>,
    /// The first process has ended: nothing is run any more.
    closed: bool,
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
        let given_up = watch::Sender::new(false);
        Container {
            span,
            init: Arc::new(Process::new(facts, None, given_up.subscribe())),
            body: OnceLock::new(),
            made: OnceLock::new(),
            execs: Mutex::default(),
            given_up,
        }
    }

    pub fn facts(&self) -> &Facts {
        &self.init.facts
    }

    pub fn key(&self) -> Key {
        (self.facts().namespace.clone(), self.facts().id.clone())
    }

    pub fn phase(&self) -> Phase {
        self.init.phase()
    }

    /// What the processes run in; an error while there is none.
    pub fn body(&self) -> Result<&Body, TaskError> {
        self.body.get().ok_or_else(|| TaskError::NoProcessYet {
            id: self.facts().name(),
            phase: self.phase().name(),
        })
    }

    /// The pid of the first process in the server's namespace; 0 while there is none.
    pub fn pid(&self) -> u32 {
        self.init.pid()
    }

    /// How it was made; `None` while it is not.
    pub fn made(&self) -> Option<&Made> {
        self.made.get()
    }

    /// Gives the container its body and our ends of the first process's streams.
    pub fn adopt(&self, body: Body, made: Made, kept: Kept, console: Option<Console>) {
        self.init.adopt(body.child().clone(), kept, console);
        // Only Create calls this, once.
        let _ = self.made.set(made);
        let _ = self.body.set(body);
    }

    /// As [`Process::step`] of the first process.
    pub fn step(&self, attempt: Move, events: &Publisher) -> Result<(), TaskError> {
        self.init.step(attempt, events)
    }

    /// As [`Process::ended`] of the first process.
    pub async fn ended(&self) -> Result<Exit, TaskError> {
        self.init.ended().await
    }

    /// Kills the first process, if there is one that lives, and waits for its end.
    pub async fn kill(&self) -> Result<(), TaskError> {
        let phase = self.init.until(|phase| *phase != Phase::Creating).await;
        if phase.over() {
            return Ok(());
        }
        match self.body()?.kill(libc::SIGKILL, false).await {
            Err(cause) if cause.raw_os_error() != Some(libc::ESRCH) => {
                return Err(TaskError::Io {
                    id: self.facts().name(),
                    act: "kill its process",
                    cause,
                });
            }
            _ => {}
        }
        self.init.until(Phase::over).await;
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

    /// Whether a process may be exec'd: into a container that runs, or is about to (as runc has it).
    pub fn may_exec(&self) -> Result<(), TaskError> {
        match self.phase() {
            Phase::Created | Phase::Starting | Phase::Running if !self.execs().closed => Ok(()),
            phase => Err(TaskError::Phase {
                id: self.facts().name(),
                cause: InvalidMove {
                    phase: phase.name(),
                    attempt: "exec into",
                },
            }),
        }
    }

    /// Takes in a process that is to be exec'd.
    pub fn add_exec(&self, facts: Facts, spec: runtime::Process) -> Result<Arc<Process>, TaskError> {
        let exec_id = facts.exec_id.clone().unwrap_or_default();
        if exec_id.is_empty() {
            return Err(TaskError::NoExecId { id: facts.id });
        }
        let mut execs = self.execs();
        if execs.processes.contains_key(&exec_id) {
            return Err(TaskError::ExecExists { id: facts.id, exec_id });
        }
        let process = Arc::new(Process::new(facts, Some(spec), self.given_up.subscribe()));
        execs.processes.insert(exec_id, process.clone());
        Ok(process)
    }

    /// Begins the start of a process, unless the first one has ended: [`Container::close_execs`] leaves out none.
    pub fn begin_exec(&self, process: &Process, events: &Publisher) -> Result<(), TaskError> {
        let execs = self.execs();
        if execs.closed {
            return Err(TaskError::Finished {
                id: self.facts().name(),
            });
        }
        process.step(Move::Start, events)
    }

    /// The process of a request: the first one when `exec_id` is empty.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>, TaskError> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        self.execs()
            .processes
            .get(exec_id)
            .cloned()
            .ok_or_else(|| TaskError::NoProcess {
                id: self.facts().id.clone(),
                exec_id: exec_id.to_owned(),
            })
    }

    /// All processes that were exec'd and not yet deleted.
    pub fn exec_processes(&self) -> Vec<Arc<Process>> {
        self.execs().processes.values().cloned().collect()
    }

    /// From now on nothing is exec'd any more; those that were are returned.
    pub fn close_execs(&self) -> Vec<Arc<Process>> {
        self.execs().closed = true;
        self.exec_processes()
    }

    /// Forgets a process that was exec'd; not another one that has its id by now.
    pub fn remove_exec(&self, process: &Process) {
        self.execs()
            .processes
            .retain(|_, other| !std::ptr::eq(&**other, process));
    }

    fn execs(&self) -> MutexGuard<'_, Execs> {
        // A panic between two of these statements leaves a usable map.
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
