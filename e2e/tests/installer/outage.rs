//! An API server that is gone for a minute in the middle of a rollout.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kubewasi_e2e::cluster::Cluster;
use kubewasi_e2e::namespace::{Namespace, images};
use kubewasi_e2e::node::Node;
use kubewasi_e2e::{release, runtime, wait};
use serde_json::json;

use crate::idle::Idle;

/// Holds the host's lock, so that the agent gets no further, until the API server is gone; then tells which came first:
/// the end of the agent's plan, or the API server.
const HOLD: &str = r#"
exec 9>/opt/kubewasi/lock
flock 9
server=$(sed -n 's#^ *server: https://##p' /etc/kubernetes/kubelet.conf)
answers() { timeout 2 bash -c "exec 3<>/dev/tcp/${server%:*}/${server##*:}" 2>/dev/null; }
while answers; do sleep 0.2; done
exec 9>&-
while [ -e /opt/kubewasi/wasi/journal.json ] && ! answers; do sleep 0.2; done
if answers; then echo 'the API server came first'; else echo 'the agent came first'; fi"#;

/// Takes the API server's pod away for a minute.
const OUTAGE: &str = r#"
manifest=/etc/kubernetes/manifests/kube-apiserver.yaml
trap "mv /etc/kubernetes/kube-apiserver.yaml $manifest" EXIT
mv $manifest /etc/kubernetes/kube-apiserver.yaml
while pgrep -x kube-apiserver >/dev/null; do sleep 0.2; done
sleep 60"#;

/// An end of the API server that is not hurried, the minute, the restart of all that gave up meanwhile.
const PATIENCE: Duration = Duration::from_secs(360);

#[tokio::test]
#[ignore = "minutes long: part of make e2e-full"]
async fn a_rollout_outlives_an_api_server_that_is_gone_for_a_minute() -> Result<()> {
    Namespace::with("outage", async |namespace| {
        let cluster = &namespace.cluster;
        release::ready(cluster, json!({})).await?;
        let idle = Idle::everywhere(namespace, release::RUNTIME).await?;
        let labelled = runtime::ready_nodes(cluster, release::RUNTIME).await?;
        let nodes = Node::all(namespace).await?;
        let control = nodes.iter().find(|node| node.is_control_plane);
        let control = control.context("the cluster's control plane is on none of its nodes")?;
        let first = Node::first(namespace).await?;

        first.start("kubewasi-e2e-hold", HOLD).await?;
        release::apply(
            cluster,
            json!({"shim": {"image": format!("{}/shim-next:e2e", images())}}),
        )
        .await?;
        wait::until(
            &format!("the agent of {} to be in the middle", first.name),
            async || runtime::nodes(cluster, release::RUNTIME).await,
            |nodes| nodes[&first.name]["status"]["phase"] == "Working",
        )
        .await?;
        control.launch("kubewasi-e2e-outage", OUTAGE).await?;
        wait::until("no API server", async || Ok(answers(cluster).await), |answers| !answers).await?;
        wait::until_within(
            PATIENCE,
            "an API server",
            async || Ok(answers(cluster).await),
            |answers| *answers,
        )
        .await?;

        wait::until_within(
            PATIENCE,
            "the rollout to be complete",
            async || {
                // What restarts with the API server may not answer yet.
                let Ok(now) = runtime::ready_nodes(cluster, release::RUNTIME).await else {
                    return Ok(None);
                };
                ensure!(now == labelled, "labelled before: {labelled:?}, and after: {now:?}");
                Ok(runtime::get(cluster, "wasmruntime", release::RUNTIME).await.ok())
            },
            |runtime| runtime.as_ref().is_some_and(runtime::is_settled),
        )
        .await?;
        let held = first.ended("kubewasi-e2e-hold").await?;
        ensure!(held.trim() == "the agent came first", "{held}");
        control.ended("kubewasi-e2e-outage").await?;
        idle.live_on(namespace).await
    })
    .await
}

/// Whether the API server can be reached and is ready.
async fn answers(cluster: &Cluster) -> bool {
    cluster.output_of_kubectl(&["get", "--raw", "/readyz"]).await.is_ok()
}
