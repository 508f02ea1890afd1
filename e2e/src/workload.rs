//! Pods and Jobs: what scenarios wait for and read of them.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};
use kube::api::LogParams;

use crate::namespace::Namespace;
use crate::wait;

/// Waits until the pod is in `phase`.
pub async fn phase(namespace: &Namespace, pod: &str, phase: &str) -> Result<Pod> {
    pod_where(namespace, pod, &format!("phase {phase}"), |pod| phase_of(pod) == phase).await
}

/// Waits until all of the pod's containers are ready.
pub async fn ready(namespace: &Namespace, pod: &str) -> Result<Pod> {
    pod_where(namespace, pod, "readiness", is_ready).await
}

/// Whether all of the pod's containers are ready.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

/// Waits until the pod is as `enough` says; `wanted` is that in words.
pub async fn pod_where(namespace: &Namespace, pod: &str, wanted: &str, enough: impl Fn(&Pod) -> bool) -> Result<Pod> {
    let api = namespace.api::<Pod>();
    wait::until(
        &format!("pod {pod}: {wanted}"),
        async || Ok(api.get(pod).await?),
        enough,
    )
    .await
}

/// Waits until one of the pod's containers, init containers and ephemeral ones too, has ended, and says how.
pub async fn end(namespace: &Namespace, pod: &str, container: &str) -> Result<ContainerStateTerminated> {
    let found = pod_where(namespace, pod, &format!("end of container {container}"), |pod| {
        terminated(pod, container).is_some()
    })
    .await?;
    terminated(&found, container).with_context(|| format!("container {container} of pod {pod} runs again"))
}

/// What a container has written so far.
pub async fn logs(namespace: &Namespace, pod: &str, container: &str) -> Result<String> {
    let parameters = LogParams {
        container: Some(container.into()),
        ..LogParams::default()
    };
    let api = namespace.api::<Pod>();
    api.logs(pod, &parameters)
        .await
        .with_context(|| format!("logs of container {container} of pod {pod}"))
}

/// Waits until a container has started and has written `text`, and returns all that it has written.
pub async fn says(namespace: &Namespace, pod: &str, container: &str, text: &str) -> Result<String> {
    // Before that there is no log to ask for.
    pod_where(namespace, pod, &format!("start of container {container}"), |pod| {
        has_started(pod, container)
    })
    .await?;
    wait::until(
        &format!("container {container} of pod {pod} to say {text:?}"),
        async || logs(namespace, pod, container).await,
        |logs| logs.contains(text),
    )
    .await
}

/// Waits until a Job has so many successful pods; a failed one is an error.
pub async fn succeeded(namespace: &Namespace, job: &str, pods: i32) -> Result<()> {
    let api = namespace.api::<Job>();
    let status = wait::until(
        &format!("{pods} pods of job {job} to succeed"),
        async || Ok(api.get(job).await?.status.unwrap_or_default()),
        |status| status.failed.unwrap_or_default() > 0 || status.succeeded == Some(pods),
    )
    .await?;
    ensure!(status.failed.unwrap_or_default() == 0, "job {job} failed: {status:?}");
    Ok(())
}

fn phase_of(pod: &Pod) -> &str {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase.unwrap_or_default()
}

/// How a container ended, now or before it was started again.
fn terminated(pod: &Pod, container: &str) -> Option<ContainerStateTerminated> {
    let status = status(pod, container)?;
    let mut states = [&status.state, &status.last_state].into_iter().flatten();
    states.find_map(|state| state.terminated.clone())
}

/// Whether a container runs, or ran.
fn has_started(pod: &Pod, container: &str) -> bool {
    let running = |status: &ContainerStatus| status.state.as_ref().is_some_and(|state| state.running.is_some());
    status(pod, container).is_some_and(running) || terminated(pod, container).is_some()
}

/// A pod's uid and its containers' ids: others after any restart.
pub fn identity(pod: &Pod) -> Vec<String> {
    let ids = statuses(pod).filter_map(|status| status.container_id.clone());
    pod.metadata.uid.clone().into_iter().chain(ids).collect()
}

/// How often a container was started again.
pub fn restarts(pod: &Pod, container: &str) -> i32 {
    status(pod, container)
        .map(|status| status.restart_count)
        .unwrap_or_default()
}

/// Why a container does not run yet, in the kubelet's word.
pub fn waiting(pod: &Pod, container: &str) -> Option<String> {
    status(pod, container)?.state.as_ref()?.waiting.as_ref()?.reason.clone()
}

/// What the kubelet says of one of the pod's containers, init containers and ephemeral ones too.
pub fn status<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    statuses(pod).find(|status| status.name == container)
}

/// What it says of all of them.
fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.iter();
    status.flat_map(|status| {
        let kinds = [
            &status.init_container_statuses,
            &status.container_statuses,
            &status.ephemeral_container_statuses,
        ];
        kinds.into_iter().flatten().flatten()
    })
}

/// The id by which containerd, and so the name of its cgroup, knows a container: without `containerd://`.
pub fn container_id<'a>(pod: &'a Pod, container: &str) -> Result<&'a str> {
    let id = status(pod, container).and_then(|status| status.container_id.as_deref());
    let id = id.and_then(|id| id.split_once("://"));
    Ok(id.with_context(|| format!("container {container} has no id"))?.1)
}
