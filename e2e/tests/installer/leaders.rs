//! Controllers that are killed at any moment, and two that lead at once.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use kubewasi_e2e::namespace::{Namespace, images};
use kubewasi_e2e::node::Node;
use kubewasi_e2e::{release, runtime, wait, workload};
use serde_json::{Value, json};

use crate::idle::Idle;

/// The unit that kills controllers.
const UNIT: &str = "kubewasi-e2e-kill";

/// Kills every controller of the node ten times, up to four seconds after each other. The name is cut to 15 characters.
const KILL: &str = r#"
for _ in $(seq 10); do
    sleep $((RANDOM % 4)).$((RANDOM % 10))
    pkill -KILL -x 'kubewasi-cont.*' && echo killed
done"#;

/// The pods of the controllers.
const CONTROLLERS: &str = "app.kubernetes.io/component=controller";

/// The kills, and what is left of the rollout then.
const PATIENCE: Duration = Duration::from_secs(240);

#[tokio::test]
#[ignore = "minutes long: part of make e2e-full"]
async fn controllers_that_die_at_any_moment_and_lose_their_lease_complete_every_rollout() -> Result<()> {
    Namespace::with("leaders", async |namespace| {
        let cluster = &namespace.cluster;
        release::absent(cluster).await?;
        let completed = completed(namespace).await;
        // What is edited without helm is in the way of its next upgrade, and pods in the way of its end.
        namespace.kubectl(&["delete", "pods", "--all"]).await?;
        release::absent(cluster).await?;
        completed?;
        // Not the package's Lease any more, and gone with it all the same.
        let lease = ["--namespace", release::NAME, "get", "leases", "--output", "name"];
        wait::until(
            "no Lease to be left",
            async || cluster.output_of_kubectl(&lease).await,
            String::is_empty,
        )
        .await?;
        Ok(())
    })
    .await
}

async fn completed(namespace: &Namespace) -> Result<()> {
    let cluster = &namespace.cluster;
    // Nothing is let out before the killing begins.
    release::apply_replicas(cluster, 2, json!({"rollout": {"paused": true}})).await?;
    let go = json!({"rollout": {"paused": false}});
    disturbed(namespace, "an installation", go, 0).await?;

    let idle = Idle::everywhere(namespace, release::RUNTIME).await?;
    let labelled = runtime::ready_nodes(cluster, release::RUNTIME).await?.len();
    let upgrade = json!({"shim": {"image": format!("{}/shim-next:e2e", images())}});
    disturbed(namespace, "an upgrade", upgrade, labelled).await?;
    idle.live_on(namespace).await?;

    wait::until(
        "one of two controllers to lead",
        async || leaders(namespace).await,
        |leaders| leaders.len() == 2 && leaders.iter().filter(|leads| **leads).count() == 1,
    )
    .await?;
    Ok(())
}

/// Changes the spec while controllers are killed and their Lease is deleted, until all nodes have what it says. At most one
/// node is let out at a time, and no fewer than `labelled` have the label.
async fn disturbed(namespace: &Namespace, what: &str, spec: Value, labelled: usize) -> Result<()> {
    let cluster = &namespace.cluster;
    let nodes = Node::all(namespace).await?;
    for node in &nodes {
        node.start(UNIT, KILL).await?;
    }
    release::edit(cluster, spec).await?;
    let (mut deleted, mut most) = (0, 0);
    wait::until_within(
        PATIENCE,
        &format!("{what} to be complete"),
        async || {
            if chance(3) {
                let lease = ["--namespace", release::NAME, "delete", "lease", "kubewasi-controller"];
                deleted += usize::from(cluster.output_of_kubectl(&lease).await.is_ok());
            }
            replace_those_that_back_off(namespace).await?;
            let wasm_nodes = runtime::nodes(cluster, release::RUNTIME).await?;
            let permits = wasm_nodes.values().filter(|node| !node["spec"]["permit"].is_null());
            most = most.max(permits.count());
            ensure!(most <= 1, "{most} nodes are let out at once: {wasm_nodes:#?}");
            let ready = runtime::ready_nodes(cluster, release::RUNTIME).await?;
            ensure!(ready.len() >= labelled, "unlabelled by {what}: only {ready:?} have it");
            runtime::get(cluster, "wasmruntime", release::RUNTIME).await
        },
        runtime::is_settled,
    )
    .await?;
    let mut killed = 0;
    for node in &nodes {
        killed += node.ended(UNIT).await?.lines().count();
    }
    eprintln!("{what}: controllers killed: {killed} times, their Lease deleted: {deleted} times");
    ensure!(killed > 0 && deleted > 0);
    Ok(())
}

/// True in one of so many cases: a moment that no code has chosen.
fn chance(of: u32) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.is_ok_and(|now| now.subsec_micros().is_multiple_of(of))
}

/// The kubelet starts what dies again and again only after minutes; a pod of its own starts at once.
async fn replace_those_that_back_off(namespace: &Namespace) -> Result<()> {
    for pod in controllers(namespace).await? {
        if workload::waiting(&pod, "controller").as_deref() == Some("CrashLoopBackOff") {
            let name = pod.name_any();
            let delete = [
                "--namespace",
                release::NAME,
                "delete",
                "pod",
                &name,
                "--wait=false",
                "--ignore-not-found",
            ];
            namespace.cluster.output_of_kubectl(&delete).await?;
        }
    }
    Ok(())
}

/// Of each controller that answers, whether it leads.
async fn leaders(namespace: &Namespace) -> Result<Vec<bool>> {
    let mut leaders = Vec::new();
    for pod in controllers(namespace).await? {
        let path = format!(
            "/api/v1/namespaces/{}/pods/{}:8080/proxy/metrics",
            release::NAME,
            pod.name_any()
        );
        if let Ok(metrics) = namespace.cluster.output_of_kubectl(&["get", "--raw", &path]).await {
            leaders.push(metrics.lines().any(|line| line == "kubewasi_leading 1"));
        }
    }
    Ok(leaders)
}

async fn controllers(namespace: &Namespace) -> Result<Vec<Pod>> {
    let api: Api<Pod> = Api::namespaced(namespace.cluster.client.clone(), release::NAME);
    let pods = api.list(&ListParams::default().labels(CONTROLLERS)).await?.items;
    Ok(pods
        .into_iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .collect())
}
