//! A permitted plan, carried out step by step. Each step looks whether it is done, so all of it can be begun again.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::api::wasm_node::Step;

use super::config::Disk;
use super::cri::{Cri, CriError};
use super::durable::{self, WriteError};
use super::fault;
use super::host::{Containerd, Host};
use super::journal::{self, Journal, Kept, Lock, RecordError, Written};
use super::layout::{BASE, Layout};
use super::refusal::Refusal;
use super::restart;
use super::shim::{self, ShimError, Staged};
use super::smoke::{self, SmokeError};
use super::systemd::{Systemd, SystemdError};
use super::transaction::{Order, Progress};

/// How long containerd has to be healthy after a restart, in seconds: its plugins load within ten on a slow machine.
const PATIENCE: u64 = 120;
/// How often the module is tried before a plan counts as failed, and how long after each other.
const TRIES: u32 = 3;
const AGAIN: Duration = Duration::from_secs(5);
/// How often the helper's progress is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long a helper may be away before it is started again: systemd does that by itself, after a second.
const AWAY: Duration = Duration::from_secs(10);
/// How long systemd may not answer before the report says so; a restart of it takes seconds.
const UNHEARD: Duration = Duration::from_secs(20);
/// How often a helper is started that ends before it has written down that it began; systemd tries each five times.
const STARTS: u32 = 2;

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Shim(#[from] ShimError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Systemd(#[from] SystemdError),
    #[error(transparent)]
    Cri(#[from] CriError),
    #[error(transparent)]
    Smoke(#[from] SmokeError),
    #[error("{0}; nothing was changed")]
    Refused(String),
    #[error("{reason}; {again}")]
    TakenBack { reason: String, again: &'static str },
    #[error("{reason}; the old configuration is back and containerd is healthy")]
    RolledBack { reason: String },
    #[error("{reason}; the old configuration is back, but {unhealthy}")]
    Unhealthy { reason: String, unhealthy: String },
    #[error("the helper ends before it begins, see `journalctl -u {0}`; nothing was changed")]
    NoHelper(String),
    #[error("the handler has {0} sandboxes: its pods have to end first")]
    InUse(u32),
    #[error("containerd has to be restarted, which spec.containerdRestart leaves to somebody else")]
    AwaitsRestart,
    #[error("another agent changes this host")]
    Locked,
    #[error("{0}")]
    Queued(Refusal),
    #[error("the helper cannot be looked after: {0}")]
    Unheard(SystemdError),
}

impl StepError {
    /// Whether the host is again as it was before `step`, which failed with this.
    pub fn rolled_back(&self, step: Step) -> bool {
        match self {
            StepError::TakenBack { .. }
            | StepError::RolledBack { .. }
            | StepError::Refused(_)
            | StepError::NoHelper(_) => true,
            // A file is wholly written or not at all, and what was there stays until then.
            StepError::Shim(_) | StepError::Write(_) => {
                matches!(step, Step::StageShim | Step::WriteOptions | Step::SwitchShim)
            }
            _ => false,
        }
    }

    /// Whether the step is only to be tried again later: it waits for somebody.
    pub fn waits(&self) -> bool {
        matches!(
            self,
            StepError::InUse(_)
                | StepError::AwaitsRestart
                | StepError::Locked
                | StepError::Queued(_)
                | StepError::Unheard(_)
        )
    }

    /// What the report says of a wait that may need somebody to act.
    pub fn asks(&self) -> Option<Refusal> {
        match self {
            StepError::AwaitsRestart => Some(Refusal::awaits_restart(self)),
            StepError::Queued(refusal) => Some(refusal.clone()),
            StepError::Unheard(error) => Some(Refusal::systemd(error)),
            _ => None,
        }
    }
}

/// Where the helper is.
enum Helper {
    Works,
    Started,
    /// systemd may be about to start it again.
    Away,
}

/// What is at hand while a plan is carried out.
pub struct Work<'a> {
    pub host: &'a Host,
    pub containerd: &'a Containerd,
    pub layout: &'a Layout,
    /// The folder with the shim.
    pub staging: PathBuf,
}

impl Work<'_> {
    /// Does one step of the journal's plan.
    pub async fn step(&self, step: Step, journal: &Journal) -> Result<(), StepError> {
        let (layout, planned) = (self.layout, &journal.planned);
        match step {
            Step::StageShim => {
                let _lock = self.lock()?;
                Staged::look(&self.staging)?.install(layout)?;
                smoke::install(layout)?;
            }
            Step::WriteOptions => {
                let _lock = self.lock()?;
                durable::ensure(&layout.options(&planned.shim), planned.options.as_bytes(), 0o644)?;
            }
            Step::SwitchShim => {
                let _lock = self.lock()?;
                shim::switch(layout, &planned.shim)?;
            }
            Step::WriteConfig | Step::RemoveConfig => {
                // Where containerd is restarted, that and this are one act of the helper's.
                if !planned.has(Step::RestartContainerd) {
                    self.transact(journal, false).await?;
                }
            }
            Step::RestartContainerd => self.transact(journal, true).await?,
            Step::Prove => self.prove(journal).await?,
            Step::RemoveShim => self.remove(journal).await?,
        }
        fault::after(&format!("{step:?}"));
        Ok(())
    }

    fn lock(&self) -> Result<Lock, StepError> {
        Lock::try_take(self.layout)?.ok_or(StepError::Locked)
    }

    /// Has the helper on the host change the configuration, and waits for its verdict.
    async fn transact(&self, journal: &Journal, restart: bool) -> Result<(), StepError> {
        let layout = self.layout;
        let is_ordered = layout.order().exists();
        if !is_ordered && self.is_changed(journal, restart) {
            return Ok(());
        }
        if !is_ordered && !journal.planned.installs {
            let mut cri = Cri::connect(&self.host.path(&self.containerd.socket)).await?;
            let sandboxes = cri.sandboxes(&journal.planned.handler).await?;
            if sandboxes > 0 {
                return Err(StepError::InUse(sandboxes));
            }
        }
        if !is_ordered && restart {
            // A permit may have come long after the plan was made.
            restart::starts_at_once(&self.containerd.unit).map_err(StepError::Queued)?;
            restart::refuse(self.host, self.containerd)
                .await
                .map_err(|error| StepError::Refused(error.to_string()))?;
        }
        if !is_ordered {
            self.give(&self.order(journal, restart))
                .map_err(|error| StepError::Refused(error.to_string()))?;
        }
        let verdict = self.helped().await?;
        // The order is done with, whatever came of it.
        durable::remove(&layout.order())?;
        match verdict {
            Progress::Refused(reason) => Err(StepError::Refused(reason)),
            Progress::RolledBack {
                reason,
                unhealthy: None,
            } => Err(StepError::RolledBack { reason }),
            Progress::RolledBack {
                reason,
                unhealthy: Some(unhealthy),
            } => Err(StepError::Unhealthy { reason, unhealthy }),
            _ => Ok(()),
        }
    }

    /// Puts the helper and its order where they are to work; the order comes last.
    fn give(&self, order: &Order) -> Result<(), RecordError> {
        let layout = self.layout;
        durable::remove(&layout.progress())?;
        if let Some(change) = &order.change {
            Written::add(layout, change)?;
        }
        let helper = std::fs::read("/proc/self/exe").map_err(WriteError::of("read", "/proc/self/exe".as_ref()))?;
        durable::write(&layout.helper(), &helper, 0o755)?;
        journal::write(&layout.order(), order)
    }

    /// Whether the configuration is the planned one already, and containerd runs with it: an agent before was killed when
    /// the helper was done.
    fn is_changed(&self, journal: &Journal, restart: bool) -> bool {
        let planned = &journal.planned;
        let disk = &self.containerd.configuration.disk;
        let mut edits = planned.change.iter().flat_map(|change| &change.edits);
        let is_written = edits.all(|edit| disk.read(&edit.file).ok() == edit.new);
        let leads_here = self.containerd.health.leads_to(&planned.handler, &self.layout.stable());
        is_written && (!restart || leads_here == planned.installs)
    }

    fn order(&self, journal: &Journal, restart: bool) -> Order {
        let (planned, containerd) = (&journal.planned, self.containerd);
        Order {
            unit: containerd.unit.name.clone(),
            binary: containerd.binary.clone(),
            config: containerd.configuration.root().to_owned(),
            socket: containerd.socket.clone(),
            change: planned.change.clone(),
            handler: planned.handler.clone(),
            listed: planned.installs,
            restart,
            before: containerd.health.clone(),
            patience: PATIENCE,
            cache: planned.cache.clone(),
        }
    }

    /// Starts the helper unless it runs, and waits until it is done, however often containerd or systemd restart.
    async fn helped(&self) -> Result<Progress, StepError> {
        let layout = self.layout;
        let (mut away, mut seen, mut starts) = (AWAY, false, 0);
        let mut heard = Instant::now();
        loop {
            let recorded: Option<Progress> = journal::read(&layout.progress())?;
            let has_begun = recorded.is_some();
            if let Some(progress) = recorded.filter(Progress::is_final) {
                return Ok(progress);
            }
            let may_start = away >= AWAY;
            // What has begun is ended, however often somebody has to start it.
            if may_start && !has_begun && starts >= STARTS {
                durable::remove(&layout.order())?;
                return Err(StepError::NoHelper(layout.unit()));
            }
            let assisted = self.assist(may_start).await;
            if assisted.is_ok() {
                heard = Instant::now();
            }
            match assisted {
                Ok(Helper::Away) => away += LOOK,
                Ok(Helper::Works) => (away, seen) = (Duration::ZERO, true),
                Ok(Helper::Started) => (away, seen, starts) = (Duration::ZERO, true, starts + 1),
                // Nobody has begun anything, so nobody has to.
                Err(error) if !has_begun && !seen => {
                    durable::remove(&layout.order())?;
                    return Err(error.into());
                }
                // The helper continues while the bus is away. The caller gets the error and retries.
                Err(error) if heard.elapsed() >= UNHEARD => return Err(StepError::Unheard(error)),
                Err(error) => tracing::warn!(%error, "systemd cannot be asked"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Looks for the helper, and starts it when it is away and `may_start` is set.
    async fn assist(&self, may_start: bool) -> Result<Helper, SystemdError> {
        let layout = self.layout;
        let systemd = Systemd::connect(&self.host.root).await?;
        if systemd.is_active(&layout.unit()).await? {
            return Ok(Helper::Works);
        }
        if !may_start {
            return Ok(Helper::Away);
        }
        let argv = [layout.helper(), "transact".into(), layout.folder()].map(|word| word.display().to_string());
        let faults = std::env::var(fault::VARIABLE).map(|point| format!("{}={point}", fault::VARIABLE));
        let environment: Vec<String> = faults.into_iter().collect();
        let description = format!("kubewasi: containerd's configuration for {}", layout.runtime());
        systemd.run(&layout.unit(), &description, &argv, &environment).await?;
        Ok(Helper::Started)
    }

    /// Runs the module. A shim or options that fail give way to those before, since pods would fail as well.
    async fn prove(&self, journal: &Journal) -> Result<(), StepError> {
        let (layout, planned) = (self.layout, &journal.planned);
        let socket = self.host.path(&self.containerd.socket);
        let run = async || -> Result<(), StepError> {
            let health = Cri::connect(&socket).await?.health().await?;
            let is_listed = health.handlers.contains_key(&planned.handler);
            if !is_listed && !planned.has(Step::RestartContainerd) {
                return Err(StepError::AwaitsRestart);
            }
            Ok(smoke::run(&socket, layout, &health, &planned.handler).await?)
        };
        let mut tries = TRIES;
        let error = loop {
            match run().await {
                Ok(()) => return Ok(keep(layout, journal)?),
                Err(error) if error.waits() => return Err(error),
                Err(error) if tries > 1 => tracing::warn!(%error, "the test module did not run; it is tried again"),
                Err(error) => break error,
            }
            tries -= 1;
            tokio::time::sleep(AGAIN).await;
        };
        let again = match (&journal.previous_shim, &journal.previous_options) {
            (Some(previous), _) if planned.has(Step::SwitchShim) && *previous != planned.shim => {
                shim::switch(layout, previous)?;
                "the stable path leads to the shim of before again"
            }
            (_, Some(previous)) if planned.has(Step::WriteOptions) && !planned.has(Step::SwitchShim) => {
                durable::ensure(&layout.options(&planned.shim), previous.as_bytes(), 0o644)?;
                "the options of before are back"
            }
            _ => return Err(error),
        };
        Err(StepError::TakenBack {
            reason: error.to_string(),
            again,
        })
    }

    /// Removes everything of the runtime's, when nothing of it runs any more.
    async fn remove(&self, journal: &Journal) -> Result<(), StepError> {
        let socket = self.host.path(&self.containerd.socket);
        let mut cri = Cri::connect(&socket).await?;
        let sandboxes = cri.sandboxes(&journal.planned.handler).await?;
        if sandboxes > 0 {
            return Err(StepError::InUse(sandboxes));
        }
        let health = cri.health().await?;
        if health.leads_to(&journal.planned.handler, &self.layout.stable()) {
            return Err(StepError::AwaitsRestart);
        }
        // Its server ends by itself when it has been idle; systemd and containerd know nothing of it.
        for pid in shim::users(&self.host.processes, &self.layout.versions()) {
            let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                // It may be gone already.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
        durable::remove_folder(&self.layout.folder())?;
        if self.layout.base() == std::path::Path::new(BASE) {
            remove_if_alone(self.layout)?;
        }
        Ok(())
    }
}

/// Removes the folder of all runtimes with the last of them.
fn remove_if_alone(layout: &Layout) -> Result<(), WriteError> {
    let others = std::fs::read_dir(layout.base()).map_err(WriteError::of("list", layout.base()))?;
    if others.flatten().all(|entry| entry.path() == layout.lock()) {
        durable::remove_folder(layout.base())?;
    }
    Ok(())
}

/// Keeps the wish that is fulfilled now.
fn keep(layout: &Layout, journal: &Journal) -> Result<(), RecordError> {
    let kept = Kept {
        wish: journal.planned.wish.clone(),
    };
    journal::write(&layout.kept(), &kept)
}
