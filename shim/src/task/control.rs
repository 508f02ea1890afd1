//! What is done to a container's process while it lives: signals, pause and resume, new limits.

use containerd_shim_protos::protobuf::well_known_types::any::Any;

use super::container::Container;
use super::error::TaskError;
use super::phase::Move;
use super::process::Process;
use super::service::Node;
use crate::sandbox::limits;

/// The greatest signal number (signal(7), SIGRTMAX).
const SIGNAL_MAX: u32 = 64;

/// Sends a signal to a process, or, by the container's first one, to `all`. An exec'd process that is being started gets
/// it when it is.
pub async fn kill(container: &Container, process: &Process, signal: u32, all: bool) -> Result<(), TaskError> {
    let id = || process.facts.name();
    let number = i32::try_from(signal)
        .ok()
        .filter(|_| (1..=SIGNAL_MAX).contains(&signal))
        .ok_or(TaskError::Signal(signal))?;
    let phase = match process.facts.exec_id {
        None => process.phase(),
        Some(_) => process.until(|phase| !phase.starting()).await,
    };
    if phase.over() {
        return Err(TaskError::Finished { id: id() });
    }
    let killed = match process.facts.exec_id {
        None => container.body()?.kill(number, all).await,
        Some(_) => process.child()?.kill(number),
    };
    killed.map_err(|cause| match cause.raw_os_error() {
        Some(libc::ESRCH) => TaskError::Finished { id: id() },
        _ => TaskError::Io {
            id: id(),
            act: "signal its process",
            cause,
        },
    })
}

/// Freezes the container.
pub async fn pause(node: &Node, container: &Container) -> Result<(), TaskError> {
    container.step(Move::Pause, &node.events)?;
    let frozen = container
        .body()?
        .pause()
        .await
        .map_err(io_error(container, "freeze it"));
    settle(node, container, frozen, Move::Paused, Move::FailPause)?;
    tracing::info!("container paused");
    Ok(())
}

/// Lets a paused container run on.
pub async fn resume(node: &Node, container: &Container) -> Result<(), TaskError> {
    container.step(Move::Resume, &node.events)?;
    let thawed = container.body()?.resume().await.map_err(io_error(container, "thaw it"));
    settle(node, container, thawed, Move::Resumed, Move::FailResume)?;
    tracing::info!("container resumed");
    Ok(())
}

/// Ends a change: `done`, or `failed` with the error. The process may have ended meanwhile, then that is the error.
fn settle(
    node: &Node,
    container: &Container,
    result: Result<(), TaskError>,
    done: Move,
    failed: Move,
) -> Result<(), TaskError> {
    match result {
        Ok(()) => container.step(done, &node.events),
        Err(error) => {
            container.step(failed, &node.events)?;
            tracing::warn!(%error, "the container stays as it was");
            Err(error)
        }
    }
}

/// Changes the limits of the container's cgroup to the JSON LinuxResources in `limits`.
pub async fn update(container: &Container, limits: Any) -> Result<(), TaskError> {
    let id = || container.facts().id.clone();
    container
        .phase()
        .may_update()
        .map_err(|cause| TaskError::Phase { id: id(), cause })?;
    // containerd's name of the type is `types.containerd.io/opencontainers/runtime-spec/1/LinuxResources`.
    if limits.type_url.rsplit('/').next() != Some("LinuxResources") {
        return Err(TaskError::LimitsType(limits.type_url));
    }
    let body = container.body()?;
    let resources = limits::read(&limits.value, body.cgroup().version)?;
    body.update(resources)
        .await
        .map_err(|cause| TaskError::Limits { id: id(), cause })?;
    tracing::info!("container updated");
    Ok(())
}

fn io_error(container: &Container, act: &'static str) -> impl FnOnce(std::io::Error) -> TaskError {
    let id = container.facts().id.clone();
    move |cause| TaskError::Io { id, act, cause }
}
