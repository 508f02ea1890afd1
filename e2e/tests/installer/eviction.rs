//! A node that loses a runtime whose `drain` is Evict: its pods go to others, as their budget allows.

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use kubewasi_e2e::deployment::{self, MOVING, MOVING_REPLICAS};
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::node::{Node, difference};
use kubewasi_e2e::runtime::{self, SECOND};
use kubewasi_e2e::{release, wait};
use serde_json::json;

/// The label that the runtime selects its nodes by.
const POOL: &str = "e2e.kubewasi.dev/pool";

#[tokio::test]
#[ignore = "minutes long: part of make e2e-full"]
async fn a_runtime_that_evicts_leaves_a_node_as_the_budget_of_its_pods_allows() -> Result<()> {
    Namespace::with("eviction", async |namespace| {
        let cluster = &namespace.cluster;
        release::ready(cluster, json!({})).await?;
        let node = Node::first(namespace).await?;
        let files = node.files_at_rest().await?;
        let stay = format!("{POOL}=stay");
        cluster
            .output_of_kubectl(&["label", "--overwrite", "nodes", "--all", &stay])
            .await?;
        runtime::apply_second(cluster, json!({"drain": "Evict", "nodeSelector": {POOL: "stay"}})).await?;
        runtime::settled(cluster, SECOND).await?;
        deployment::start_moving(namespace, SECOND, &node.name).await?;
        let before = deployment::places(namespace, MOVING).await?;
        ensure!(
            before.contains(&node.name),
            "no pod is where it would be evicted: {before:?}"
        );

        let leave = format!("{POOL}=leave");
        cluster
            .output_of_kubectl(&["label", "--overwrite", "node", &node.name, &leave])
            .await?;
        let deployments = namespace.api::<Deployment>();
        wait::until(
            &format!("the runtime to be gone from {}", node.name),
            async || {
                let status = deployments.get(MOVING).await?.status.unwrap_or_default();
                let available = status.available_replicas.unwrap_or(0);
                ensure!(available >= 2, "the budget allows one to be out: {status:?}");
                runtime::nodes(cluster, SECOND).await
            },
            |nodes| !nodes.contains_key(&node.name),
        )
        .await?;
        deployment::rolled_out(namespace, MOVING).await?;
        let after = deployment::places(namespace, MOVING).await?;
        ensure!(
            after.len() == MOVING_REPLICAS && !after.contains(&node.name),
            "{before:?}, {after:?}"
        );
        let left = difference(&files, &node.files().await?);
        ensure!(left.is_empty(), "{}: {left:#?}", node.name);

        namespace.kubectl(&["delete", "deployment", MOVING]).await?;
        runtime::delete(cluster, SECOND).await?;
        cluster
            .output_of_kubectl(&["label", "nodes", "--all", &format!("{POOL}-")])
            .await
            .map(drop)
    })
    .await
}
