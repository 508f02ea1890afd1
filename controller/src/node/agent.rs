//! The agent's loop: it compares the wish with the host, works while it is permitted to, proves, and reports.
//!
//! It keeps the last wish when the API server is away, and changes nothing when it is ended: whatever is under way is in
//! the journal, and the agent that comes next goes on.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use jiff::Timestamp;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};

use crate::api::labels;
use crate::api::wasm_node::{Failure, Permit, Phase, Step, WasmNode, WasmNodeStatus, WishedState};

use super::changes::Changes;
use super::cri::Cri;
use super::durable;
use super::evidence::{Evidence, EvidenceError, PROVE};
use super::host::{Containerd, Host, HostError};
use super::journal::{self, Failed, Journal, RecordError};
use super::layout::Layout;
use super::observe::{ObserveError, overwritten, permissible};
use super::plan::Planned;
use super::proof::now;
use super::refusal::Refusal as Refused;
use super::report::Reporter;
use super::shim;
use super::work::Work;

/// How often a host without a pending change is examined.
const LOOK: Duration = Duration::from_secs(30);
/// How soon a host is examined again that waits for something, or could not be examined.
const SOON: Duration = Duration::from_secs(5);
/// How long a host may be in a state that ends by itself, as a restart of containerd is, before the report says so. With
/// [`LOOK`] and two calls that are not answered this is within a minute.
const PASSING: Duration = Duration::from_secs(15);

/// Who this agent is.
#[derive(Clone, Debug)]
pub struct Identity {
    pub runtime: String,
    pub node: String,
    pub pod_uid: String,
    /// The image that the staged shim is of.
    pub shim_image: String,
    pub staging: PathBuf,
}

/// Why the agent, or a step of its loop, ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("the API server cannot be asked: {0}")]
    Kube(#[from] kube::Error),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Observe(#[from] ObserveError),
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Write(#[from] durable::WriteError),
    #[error("there is no WasmNode for the runtime {runtime:?} on the node {node:?}")]
    NoWish { runtime: String, node: String },
}

impl AgentError {
    /// The refusal to report if the host stays like this.
    fn refusal(&self) -> Refused {
        match self {
            AgentError::Host(error) | AgentError::Observe(ObserveError::Host(error)) => error.refusal(),
            AgentError::Evidence(EvidenceError::Host(error)) => error.refusal(),
            AgentError::Observe(ObserveError::Refused(refusal)) => refusal.clone(),
            AgentError::Record(error)
            | AgentError::Observe(ObserveError::Record(error))
            | AgentError::Evidence(EvidenceError::Record(error)) => Refused::record(error),
            AgentError::Write(error) => Refused::write(error),
            AgentError::Kube(_) | AgentError::NoWish { .. } => Refused::host(self),
        }
    }

    /// Whether only an administrator can end it.
    fn is_lasting(&self) -> bool {
        let (AgentError::Record(error)
        | AgentError::Observe(ObserveError::Record(error))
        | AgentError::Evidence(EvidenceError::Record(error))) = self
        else {
            return false;
        };
        matches!(error, RecordError::Unparsable { .. })
    }
}

/// The agent of one runtime on one node.
pub struct Agent {
    identity: Identity,
    host: Host,
    layout: Layout,
    reporter: Reporter,
    evidence: Evidence,
    /// The plan that waits, and at which of its steps: all before are told of.
    waits: Option<(Permit, usize)>,
    /// The plan that failed, where that could not be written down: on a full disk.
    unwritten: Option<Journal>,
    /// What was done to the host; it outlives the runtime's directory.
    changes: Changes,
    /// The refusal of the present pause, and when that ends.
    paused: Option<(Timestamp, Refused)>,
    /// Since when the host cannot be examined.
    unseen_since: Option<Instant>,
}

impl Agent {
    pub fn new(identity: Identity, host: Host, layout: Layout, client: Client) -> Agent {
        let reporter = Reporter::new(client);
        Agent {
            identity,
            host,
            layout,
            reporter,
            evidence: Evidence::default(),
            waits: None,
            unwritten: None,
            changes: Changes::default(),
            paused: None,
            unseen_since: None,
        }
    }

    /// Works until `end`.
    pub async fn run(&mut self, client: Client, end: impl Future<Output = ()>) {
        let api: Api<WasmNode> = Api::all(client);
        let mut events = watcher(api, selection(&self.identity)).default_backoff().boxed();
        let mut wish: Option<WasmNode> = None;
        let mut next = Instant::now();
        tokio::pin!(end);
        loop {
            tokio::select! {
                // A plan that is under way is left as it is; the journal has it.
                () = &mut end => return,
                Some(event) = events.next() => match event {
                    Ok(Event::Apply(node) | Event::InitApply(node)) => {
                        let is_news = wish.as_ref().is_none_or(|wish| wish.spec != node.spec);
                        self.reporter.saw(&node);
                        wish = Some(node);
                        if is_news {
                            next = Instant::now();
                        }
                    }
                    Ok(Event::Delete(_)) => wish = None,
                    Ok(Event::Init | Event::InitDone) => {}
                    // The last wish counts on.
                    Err(error) => tracing::warn!(%error, "the API server cannot be asked"),
                },
                () = tokio::time::sleep_until(next.into()) => {
                    next = Instant::now() + LOOK;
                    if let Some(node) = &wish {
                        next = Instant::now() + self.try_to_look(node).await;
                    }
                }
            }
        }
    }

    /// Examines the host, and reports an error that persists; returns when to do so again.
    async fn try_to_look(&mut self, node: &WasmNode) -> Duration {
        let begun = Instant::now();
        let error = match self.look(node).await {
            Ok(after) => {
                self.unseen_since = None;
                return after;
            }
            Err(error) => error,
        };
        tracing::warn!(%error, "the host could not be examined");
        let since = *self.unseen_since.get_or_insert(begun);
        if error.is_lasting() || since.elapsed() >= PASSING {
            self.report_unseen(node, error.refusal()).await;
        }
        SOON
    }

    /// Reports why the host cannot be examined. The phase of a plan in progress stays, since its helper continues.
    async fn report_unseen(&mut self, node: &WasmNode, refusal: Refused) {
        let reviewed = self.review_rest().await;
        reviewed.unwrap_or_else(|error| tracing::warn!(%error, "the proof could not be reviewed"));
        let mut status = unseen(node);
        match self.unfinished(node) {
            Ok(Some(journal)) => {
                status.phase = Some(Phase::Working);
                status.plan = Some(journal.planned.plan);
                status.refusal = Some(refusal.into());
                status.proof = self.evidence.proof.clone();
                self.reporter.report(node, status, PROVE).await;
            }
            _ => _ = self.refuse(node, status, refusal).await,
        }
    }

    async fn review_rest(&mut self) -> Result<(), HostError> {
        let pod_uid = Some(self.identity.pod_uid.as_str());
        self.evidence.review_rest(&self.host, &self.layout, pod_uid).await
    }

    /// Looks at the host once, does what is permitted, and reports; returns when to look again.
    async fn look(&mut self, node: &WasmNode) -> Result<Duration, AgentError> {
        let wish = &node.spec.wish;
        self.evidence
            .learn(node.status.as_ref().and_then(|status| status.proof.as_ref()));
        let mut status = unseen(node);
        let containerd = match self.host.containerd(Some(&self.identity.pod_uid)).await {
            Err(HostError::Refused(refusal)) => {
                self.review_rest().await?;
                return Ok(self.refuse(node, status, refusal).await);
            }
            containerd => containerd?,
        };
        status.sandboxes = Some(self.sandboxes(&containerd, &wish.handler).await?);
        if let Some(journal) = self.unfinished(node)? {
            return self.work(node, status, containerd, journal).await;
        }
        let waits_for_image = wish.state == WishedState::Installed && wish.shim_image != self.identity.shim_image;
        let failed = match self.unwritten.take() {
            Some(failed) => {
                self.record(failed.clone());
                Some(failed)
            }
            None => journal::read(&self.layout.journal())?,
        };
        // Another wish has not failed yet.
        let failed: Option<Journal> = failed.filter(|failed| failed.has_failed_for(&wish.hash()));
        let planned = match permissible(&self.host, &containerd, &self.layout, &self.identity.staging, wish).await {
            Err(ObserveError::Refused(refusal)) => {
                // Somebody may have taken what was installed before, which is no reason to say that it works.
                self.evidence
                    .look(&self.host, &containerd, &self.layout, &wish.handler, None)
                    .await?;
                return Ok(self.refuse(node, status, refusal).await);
            }
            planned => planned?,
        };
        let planned = match failed {
            Some(_) => planned.once_more(),
            None => planned,
        };
        self.changes = self.changes.clone().max(Changes::read(&self.layout)?);
        let planned = planned.numbered(self.changes.begun);
        if let Some(refusal) = self.pause(&containerd, &planned) {
            self.evidence
                .look(&self.host, &containerd, &self.layout, &wish.handler, None)
                .await?;
            return Ok(self.refuse(node, status, refusal).await);
        }
        let permit = node
            .spec
            .permit
            .as_ref()
            .filter(|permit| permit.plan == planned.plan.hash);
        let is_spent = |attempt: &str| failed.as_ref().is_some_and(|failed| failed.permit.attempt == attempt);
        if let Some(permit) =
            permit.filter(|permit| !waits_for_image && !planned.is_done() && !is_spent(&permit.attempt))
        {
            let journal = Journal::new(permit.clone(), planned, &self.layout);
            if let Err(error) = self.begin(&journal) {
                let first = journal.planned.plan.steps.first().copied();
                self.fail(journal, first.unwrap_or(Step::Prove), error.to_string(), true);
                return Ok(Duration::ZERO);
            }
            return self.work(node, status, containerd, journal).await;
        }
        // A host in its desired state has no failure to report.
        status.failure = failed.as_ref().filter(|_| !planned.is_done()).and_then(failure);
        if planned.is_done() && wish.state == WishedState::Removed {
            status.phase = Some(Phase::Removed);
            self.evidence.forget();
        } else {
            let is_done = planned.is_done() && !waits_for_image;
            if is_done {
                shim::prune(&self.layout, &self.host.processes)
                    .unwrap_or_else(|error| tracing::warn!(%error, "old shims stay"));
            }
            let fulfilled = is_done.then_some(planned.wish.as_str());
            self.evidence
                .look(&self.host, &containerd, &self.layout, &planned.handler, fulfilled)
                .await?;
            status.phase = Some(match (is_done, &status.failure) {
                (true, _) => Phase::Ready,
                (false, Some(_)) => Phase::Failed,
                (false, None) => Phase::Waiting,
            });
            if !waits_for_image && !is_done {
                status.plan = Some(planned.plan);
            }
        }
        (status.proof, status.disproof) = (self.evidence.proof.clone(), self.evidence.disproof.clone());
        self.reporter.report(node, status, PROVE).await;
        Ok(LOOK)
    }

    /// The journal of a plan that was begun, is permitted or past the point of no return, and did not fail.
    fn unfinished(&self, node: &WasmNode) -> Result<Option<Journal>, AgentError> {
        let Some(journal): Option<Journal> = journal::read(&self.layout.journal())? else {
            return Ok(None);
        };
        let has_failed = self.unwritten.iter().any(|failed| failed.permit == journal.permit);
        if journal.failed.is_some() || has_failed {
            return Ok(None);
        }
        // What the helper has begun it ends, whatever is wished meanwhile.
        if node.spec.permit.as_ref() == Some(&journal.permit) || self.layout.order().exists() {
            return Ok(Some(journal));
        }
        durable::remove(&self.layout.journal())?;
        Ok(None)
    }

    /// The refusal during a pause, after too many changes in a row. It stays the same until the pause ends, although the
    /// file may be written again meanwhile.
    fn pause(&mut self, containerd: &Containerd, planned: &Planned) -> Option<Refused> {
        let until = self.changes.pause_of(planned, Timestamp::now())?;
        let (changes, change) = (&self.changes, planned.change.as_ref());
        let said = self.paused.take().filter(|(said, _)| *said == until);
        let said = said.unwrap_or_else(|| (until, overwritten(&self.host, containerd, changes, change, until)));
        Some(self.paused.insert(said).1.clone())
    }

    /// Records that a plan has begun, before its first step: its permit is spent from then on.
    fn begin(&mut self, journal: &Journal) -> Result<(), RecordError> {
        self.unwritten = None;
        durable::make_folder(&self.layout.folder())?;
        self.changes = self.changes.clone().begin();
        self.changes.write(&self.layout)?;
        journal::write(&self.layout.journal(), journal)
    }

    /// Writes down that a plan failed, and remembers it where that cannot be: the agent that comes next tries once more.
    fn fail(&mut self, mut journal: Journal, step: Step, message: String, rolled_back: bool) {
        journal.failed = Some(Failed {
            step,
            message,
            rolled_back,
            at: now().0.to_string(),
        });
        self.record(journal);
    }

    fn record(&mut self, failed: Journal) {
        let written = journal::write(&self.layout.journal(), &failed);
        self.unwritten = written.err().map(|error| {
            tracing::warn!(%error, "the failure could not be written down");
            failed
        });
    }

    /// Carries a plan out, from its beginning: a step that is done does nothing. Returns when to look again.
    ///
    /// A plan that waits is carried out again and again, and reported once.
    ///
    /// # Errors
    ///
    /// When the host or a record cannot be read; a step that fails is no error.
    pub async fn work(
        &mut self,
        node: &WasmNode,
        mut status: WasmNodeStatus,
        containerd: Containerd,
        journal: Journal,
    ) -> Result<Duration, AgentError> {
        let work = Work {
            host: &self.host,
            containerd: &containerd,
            layout: &self.layout,
            staging: self.identity.staging.clone(),
        };
        status.phase = Some(Phase::Working);
        status.plan = Some(journal.planned.plan.clone());
        self.evidence.review(&self.host, &containerd, &self.layout)?;
        status.proof = self.evidence.proof.clone();
        let waited = self.waits.take().filter(|(permit, _)| *permit == journal.permit);
        for (index, step) in journal.planned.plan.steps.iter().copied().enumerate() {
            status.step = Some(step);
            if waited.as_ref().is_none_or(|(_, told)| index > *told) {
                self.reporter.report(node, status.clone(), PROVE).await;
            }
            tracing::info!(?step, plan = journal.planned.plan.hash, "working");
            let Err(error) = work.step(step, &journal).await else {
                continue;
            };
            if error.waits() {
                tracing::info!(?step, %error, "waiting");
                status.refusal = error.asks().map(Into::into);
                self.reporter.report(node, status, PROVE).await;
                self.waits = Some((journal.permit, index));
                return Ok(SOON);
            }
            tracing::error!(?step, %error, "the plan failed");
            self.fail(journal, step, error.to_string(), error.rolled_back(step));
            // What was installed before may have suffered.
            self.evidence.expire();
            return Ok(Duration::ZERO);
        }
        self.changes = self.changes.clone().carried_out(&journal.planned, Timestamp::now());
        // A runtime that was removed leaves no record.
        if self.layout.folder().exists() {
            self.changes.write(&self.layout)?;
        }
        durable::remove(&self.layout.journal())?;
        self.evidence.expire();
        Ok(Duration::ZERO)
    }

    /// Reports that the host is left alone; for a runtime that is not there and not wished that is all there is to do.
    async fn refuse(&mut self, node: &WasmNode, mut status: WasmNodeStatus, refusal: Refused) -> Duration {
        if node.spec.wish.state == WishedState::Removed && !self.layout.folder().exists() {
            status.phase = Some(Phase::Removed);
        } else {
            status.phase = Some(Phase::Refused);
            status.refusal = Some(refusal.into());
            (status.proof, status.disproof) = (self.evidence.proof.clone(), self.evidence.disproof.clone());
        }
        self.reporter.report(node, status, PROVE).await;
        LOOK
    }

    async fn sandboxes(&self, containerd: &Containerd, handler: &str) -> Result<u32, AgentError> {
        let asked = async {
            Cri::connect(&self.host.path(&containerd.socket))
                .await?
                .sandboxes(handler)
                .await
        };
        Ok(asked.await.map_err(HostError::from)?)
    }
}

/// This agent's one WasmNode.
pub(super) fn selection(identity: &Identity) -> watcher::Config {
    watcher::Config::default()
        .fields(&format!("spec.nodeName={}", identity.node))
        .labels(&format!("{}={}", labels::RUNTIME, identity.runtime))
}

/// What is reported of a host that was not examined.
fn unseen(node: &WasmNode) -> WasmNodeStatus {
    WasmNodeStatus {
        observed_wish: Some(node.spec.wish.hash()),
        ..WasmNodeStatus::default()
    }
}

fn failure(journal: &Journal) -> Option<Failure> {
    let failed = journal.failed.as_ref()?;
    Some(Failure {
        attempt: journal.permit.attempt.clone(),
        plan: journal.permit.plan.clone(),
        step: failed.step,
        message: failed.message.clone(),
        rolled_back: failed.rolled_back,
        at: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(failed.at.parse().unwrap_or_default()),
    })
}
