//! From a change to a plan to its writes, again and again, for as long as this replica leads.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use jiff::Timestamp;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::events::Recorder;
use kube::runtime::reflector::ObjectRef;
use kube::{Client, ResourceExt};
use tokio::sync::mpsc;

use super::metrics::Metrics;
use super::perform::{FIELD_MANAGER, PerformError, perform};
use super::plan::{node_labels, plan, told_of};
use super::settings::Settings;
use super::view::View;
use super::watch::{self, Stores};
use super::write::{Refusal, Write};
use super::{asked, events};
use crate::api::WasmRuntime;

/// Changes come in crowds, one write of ours makes some of them; a plan waits until this long after the first.
const DEBOUNCE: Duration = Duration::from_millis(200);

/// When to look again after a write met something newer: its change is on the way.
const SOON: Duration = Duration::from_secs(1);

/// When to look again after an error.
const LATER: Duration = Duration::from_secs(5);

/// The environment variable that names the kind of write after which the process ends at once. For tests of exactly
/// that; never set otherwise.
pub const FAULT_AFTER: &str = "KUBEWASI_FAULT_AFTER";

/// Why a reconciliation did not do all. It is begun again.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Write(#[from] PerformError),
    /// Everything else was done.
    #[error("the API server refuses {}", .0.iter().map(Refusal::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Refusal>),
    #[error("a question to the API server: {0}")]
    Ask(#[from] kube::Error),
    #[error("a watch ended before it was current: {0}")]
    Watch(#[from] kube::runtime::reflector::store::WriterDropped),
}

struct Context {
    client: Client,
    stores: Stores,
    settings: Arc<Settings>,
    metrics: Arc<Metrics>,
    recorder: Recorder,
    taken: Taken,
    fault_after: Option<String>,
}

/// When labels were taken away, by runtime. A new leader starts with nothing, and may take a tenth at once.
#[derive(Default)]
struct Taken(Mutex<HashMap<String, Vec<Timestamp>>>);

impl Taken {
    fn lately(&self, runtime: &str) -> Vec<Timestamp> {
        let now = Timestamp::now();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_runtime = all.entry(runtime.to_owned()).or_default();
        of_runtime.retain(|at| node_labels::is_recent(now, *at));
        of_runtime.clone()
    }

    fn add(&self, runtime: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(runtime.to_owned()).or_default().push(Timestamp::now());
    }
}

/// Reconciles all runtimes until `end`, and then completes the reconciliation that is under way.
pub async fn run(
    client: Client,
    settings: Settings,
    metrics: Arc<Metrics>,
    end: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let (told, complaints) = mpsc::unbounded_channel();
    let (stores, changes) = watch::all(&client, &settings, &told);
    let runtimes = stores.runtimes.clone();
    let recorder = Recorder::new(client.clone(), FIELD_MANAGER.into());
    let complaining = events::complain(recorder.clone(), complaints);
    let context = Arc::new(Context {
        recorder,
        fault_after: std::env::var(FAULT_AFTER).ok(),
        client,
        stores,
        settings: Arc::new(settings),
        metrics,
        taken: Taken::default(),
    });
    // A node and a class concern every runtime. So does another runtime, whose changes come as those of its nodes.
    let (for_node, for_class) = (runtimes.clone(), runtimes.clone());
    let reconciling = Controller::for_stream(changes.runtimes, runtimes)
        .watches_stream(changes.nodes, move |_| watch::refs(&for_node))
        .watches_stream(changes.classes, move |_| watch::refs(&for_class))
        .watches_stream(changes.wasm_nodes, |wasm_node| {
            [ObjectRef::new(&wasm_node.spec.runtime)]
        })
        .watches_stream(changes.daemon_sets, |daemon_set| {
            daemon_set
                .labels()
                .get(crate::api::labels::RUNTIME)
                .map(|runtime| ObjectRef::new(runtime))
        })
        .with_config(Config::default().debounce(DEBOUNCE).concurrency(1))
        .graceful_shutdown_on(end)
        .run(reconcile, retry, context)
        .for_each(|_| std::future::ready(()));
    tokio::select! {
        () = reconciling => {}
        () = complaining => {}
    }
}

async fn reconcile(runtime: Arc<WasmRuntime>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let began = Instant::now();
    let name = runtime.name_any();
    let result = once(runtime, &context).await;
    context
        .metrics
        .reconciled(began.elapsed().as_secs_f64(), result.is_err());
    if let Some(status) = context
        .stores
        .runtimes
        .get(&ObjectRef::new(&name))
        .and_then(|runtime| runtime.status.clone())
    {
        context.metrics.counted(&name, &status.nodes);
    }
    result
}

async fn once(runtime: Arc<WasmRuntime>, context: &Context) -> Result<Action, ReconcileError> {
    let name = runtime.name_any();
    context.stores.synced().await?;
    let taken = context.taken.lately(&name);
    let mut view = context.stores.view(runtime, taken, context.settings.clone());
    asked::complete(&context.client, &mut view).await?;
    let plan = plan(&view);
    let (told, others): (Vec<Write>, Vec<Write>) = plan
        .writes
        .into_iter()
        .partition(|write| matches!(write, Write::UpdateStatus { .. }));
    let mut done = Done::default();
    for write in &others {
        done.add(carry_out(&view, context, write).await)?;
    }
    // The status comes last, and says what was refused.
    let told = if done.refused.is_empty() {
        told.into_iter().next()
    } else {
        told_of(&view, &done.refused)
    };
    if let Some(write) = &told {
        done.add(carry_out(&view, context, write).await)?;
    }
    if !done.refused.is_empty() {
        return Err(ReconcileError::Refused(done.refused));
    }
    Ok(Action::requeue(if done.outdated { SOON } else { plan.look_again }))
}

/// What became of writes. None depends on another: each was decided on what it names.
#[derive(Default)]
struct Done {
    outdated: bool,
    refused: Vec<Refusal>,
}

impl Done {
    /// Fails where the next write would too.
    fn add(&mut self, performed: Result<(), PerformError>) -> Result<(), PerformError> {
        match performed {
            Ok(()) => Ok(()),
            Err(error @ (PerformError::Outdated(_) | PerformError::Budget(_))) => {
                tracing::debug!(%error, "left for the next look");
                self.outdated = true;
                Ok(())
            }
            Err(PerformError::Refused(refusal)) => {
                self.refused.push(refusal);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

async fn carry_out(view: &View, context: &Context, write: &Write) -> Result<(), PerformError> {
    let name = view.name();
    perform(&context.client, &context.settings.namespace, write).await?;
    tracing::info!(runtime = name, write = write.kind(), what = ?write.target().map(|seen| &seen.name), "wrote");
    context.metrics.wrote(write.kind());
    if context.fault_after.as_deref() == Some(write.kind()) {
        std::process::abort();
    }
    if matches!(write, Write::TakeReady { .. }) {
        context.taken.add(&name);
    }
    if matches!(write, Write::RemoveFinalizer { .. }) {
        context.metrics.forget(&name);
    }
    events::publish(&context.recorder, view, write).await;
    Ok(())
}

fn retry(runtime: Arc<WasmRuntime>, error: &ReconcileError, _: Arc<Context>) -> Action {
    tracing::warn!(runtime = runtime.name_any(), %error, "the reconciliation is begun again");
    Action::requeue(LATER)
}
