//! What wasm pods are lost to: a kill of the shim's server, after which they start again, and a kubelet that starts on a
//! node without the label. Nothing else.

use anyhow::{Context, Result, ensure};
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::node::Node;
use kubewasi_e2e::{release, runtime, wait, workload};
use serde_json::json;

use crate::idle::start_idle_on;

const POD: &str = "guest";

#[tokio::test]
#[ignore = "minutes long: part of make e2e-full"]
async fn wasm_pods_are_lost_to_a_kill_of_their_server_or_a_kubelet_that_starts_on_an_unlabelled_node() -> Result<()> {
    Namespace::with("losses", async |namespace| {
        let cluster = &namespace.cluster;
        release::ready(cluster, json!({})).await?;
        let node = Node::first(namespace).await?;
        start_idle_on(namespace, &node.name, POD, release::RUNTIME).await?;
        let first = workload::identity(&workload::ready(namespace, POD).await?);
        for service in ["containerd", "kubelet"] {
            restart(&node, service).await?;
            let now = workload::identity(&workload::ready(namespace, POD).await?);
            ensure!(now == first, "a restart of {service} cost the pod: {first:?}, {now:?}");
        }

        node.run("pkill -KILL -f '^containerd-shim-wasi-v1 serve '").await?;
        let again = workload::pod_where(namespace, POD, "ready after a restart", |pod| {
            workload::is_ready(pod) && workload::restarts(pod, POD) > 0
        })
        .await?;
        let second = workload::identity(&again);
        ensure!(second[0] == first[0], "another pod: {first:?}, {second:?}");
        ensure!(second[1..] != first[1..], "the same container: {first:?}, {second:?}");

        // The label goes with the wish, long before the shim, which waits for the pod.
        let delete = ["delete", "wasmruntime", release::RUNTIME, "--wait=false"];
        cluster.output_of_kubectl(&delete).await?;
        wait::until(
            "no node to be labelled",
            async || runtime::ready_nodes(cluster, release::RUNTIME).await,
            |ready| ready.is_empty(),
        )
        .await?;
        let now = workload::identity(&workload::ready(namespace, POD).await?);
        ensure!(now == second, "the label's end cost the pod: {second:?}, {now:?}");
        restart(&node, "kubelet").await?;
        let lost = workload::phase(namespace, POD, "Failed").await?;
        let status = lost.status.context("a pod has a status")?;
        eprintln!(
            "a kubelet that starts without the label: {:?}, {:?}",
            status.reason, status.message
        );
        ensure!(status.reason.as_deref() == Some("NodeAffinity"), "{status:?}");
        release::absent(cluster).await
    })
    .await
}

/// Restarts a service of the node, and waits until it works.
async fn restart(node: &Node<'_>, service: &str) -> Result<()> {
    let unit = format!("kubewasi-e2e-restart-{service}");
    let pid = format!("systemctl show --property=MainPID --value {service}");
    node.start(
        &unit,
        &format!("before=$({pid}); systemctl restart {service}; [ \"$before\" = \"$({pid})\" ] || echo restarted"),
    )
    .await?;
    let said = node.ended(&unit).await?;
    ensure!(said.trim() == "restarted", "{service} was not restarted: {said}");
    Ok(())
}
