//! Processes that are exec'd into a container: registered by Exec, run by Start, gone with Delete or their container.

use std::sync::Arc;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::ExecProcessRequest;
use oci_spec::runtime;
use tokio::time::timeout;
use tracing::Instrument;

use super::container::Container;
use super::error::TaskError;
use super::events::Facts;
use super::phase::{Move, Phase};
use super::process::Process;
use super::service::{self, Node};
use crate::stdio::Streams;
use crate::sys::child::Exit;

/// Registers a process; it runs when it is started.
pub fn add(node: &Node, container: &Container, request: ExecProcessRequest) -> Result<(), TaskError> {
    container.may_exec()?;
    let asked = request.spec.into_option().unwrap_or_default();
    // containerd's name of the type is `types.containerd.io/opencontainers/runtime-spec/1/Process`.
    if asked.type_url.rsplit('/').next() != Some("Process") {
        return Err(TaskError::ProcessType(asked.type_url));
    }
    let spec: runtime::Process =
        serde_json::from_slice(&asked.value).map_err(|cause| TaskError::ProcessMalformed { id: request.id, cause })?;
    let facts = Facts {
        exec_id: Some(request.exec_id.clone()),
        streams: Streams {
            namespace: container.facts().namespace.clone(),
            id: request.exec_id,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        },
        terminal: request.terminal,
        ..container.facts().clone()
    };
    let process = container.add_exec(facts, spec)?;
    process.step(Move::Create, &node.events)
}

/// Runs a registered process, which is compiled by the deadline; returns its pid.
pub async fn start(
    node: &Arc<Node>,
    container: &Arc<Container>,
    process: &Arc<Process>,
    deadline: Option<Instant>,
) -> Result<u32, TaskError> {
    container.may_exec()?;
    let body = container.body()?.clone();
    container.begin_exec(process, &node.events)?;
    let image = container.made().and_then(|made| made.image.as_ref());
    if let Err(error) = body.exec(node, process, image, deadline).await {
        tracing::warn!(%error, process = process.facts.name(), "cannot exec");
        process.step(Move::FailStart, &node.events)?;
        if process.phase().over() {
            container.remove_exec(process);
        }
        return Err(error);
    }
    process.step(Move::Started, &node.events)?;
    if process.phase().over() {
        return Err(discarded(node, container, process).await);
    }
    tokio::spawn(watch(node.clone(), process.clone()).instrument(container.span.clone()));
    tracing::info!(pid = process.pid(), process = process.facts.name(), "process started");
    Ok(process.pid())
}

/// Ends a process that was started and is to be forgotten: nobody is left who would.
async fn discarded(node: &Arc<Node>, container: &Container, process: &Arc<Process>) -> TaskError {
    if let Ok(child) = process.child() {
        // One that has ended already is what is wanted.
        let _ = child.kill(libc::SIGKILL);
        child.exited().await;
    }
    service::end_streams(node, process).await;
    container.remove_exec(process);
    tracing::info!(
        process = process.facts.name(),
        "process discarded, it was deleted while it was started"
    );
    TaskError::Discarded {
        id: process.facts.name(),
    }
}

/// Waits for the end of the process and tells of it.
async fn watch(node: Arc<Node>, process: Arc<Process>) {
    let Ok(child) = process.child().cloned() else { return };
    let exit = child.exited().await;
    process.drained().await;
    tracing::info!(code = exit.code, process = process.facts.name(), "process exited");
    process.finish_streams();
    if let Err(error) = process.step(Move::Exit(exit), &node.events) {
        tracing::error!(%error, "an exit came twice");
    }
}

/// Forgets a process that has ended, or never was started: then there is no exit. One that is being started is ended and
/// forgotten by its start.
pub async fn delete(
    node: &Arc<Node>,
    container: &Container,
    process: &Arc<Process>,
) -> Result<Option<Exit>, TaskError> {
    if process.step(Move::Discard, &node.events).is_ok() {
        if process.phase() != Phase::Discarding {
            container.remove_exec(process);
        }
        return Ok(None);
    }
    process.step(Move::Delete, &node.events)?;
    service::end_streams(node, process).await;
    process.step(Move::Deleted, &node.events)?;
    container.remove_exec(process);
    Ok(process.phase().exit().cloned())
}

/// How long the end of a container waits for an exec that is being started.
const STARTING: Duration = Duration::from_secs(10);

/// Kills all processes beside the first one, which has ended, and waits until their ends are told: the container's own
/// is the last one.
pub async fn end_all(container: &Container) {
    for process in container.close_execs() {
        // One that is being started ends by itself or is there to be killed; one that hangs in a volume does neither.
        let started = timeout(STARTING, process.until(|phase| !phase.starting())).await;
        let Ok(phase) = started else {
            tracing::warn!(process = process.facts.name(), "a start hangs, and is not waited for");
            continue;
        };
        if phase.over() || phase == Phase::Created {
            continue;
        }
        if let Ok(child) = process.child() {
            // One that has ended already is what is wanted.
            let _ = child.kill(libc::SIGKILL);
        }
        process.until(Phase::over).await;
    }
}
