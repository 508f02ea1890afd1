//! A node that loses a runtime whose `drain` is Evict: its pods go to others, as their budget allows.

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::node::{Node, difference};
use kubewasi_e2e::runtime::{self, SECOND};
use kubewasi_e2e::{release, wait};
use serde_json::json;

/// The label that the runtime selects its nodes by.
const POOL: &str = "e2e.kubewasi.dev/pool";

const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata:
  name: moving
spec:
  replicas: 3
  selector: {matchLabels: {scenario: eviction}}
  template:
    metadata:
      labels: {scenario: eviction}
    spec:
      runtimeClassName: second
      terminationGracePeriodSeconds: 1
      affinity:
        nodeAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
            - weight: 100
              preference:
                matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [$NODE]}]
      containers:
        - name: guest
          image: $IMAGES/probe:e2e
          imagePullPolicy: IfNotPresent
          args: [idle]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: moving
spec:
  maxUnavailable: 1
  selector: {matchLabels: {scenario: eviction}}
"#;

#[tokio::test]
#[ignore = "minutes long: part of make e2e-full"]
async fn a_runtime_that_evicts_leaves_a_node_as_the_budget_of_its_pods_allows() -> Result<()> {
    Namespace::with("eviction", async |namespace| {
        let cluster = &namespace.cluster;
        release::ready(cluster, json!({})).await?;
        let node = Node::first(namespace).await?;
        let files = node.files().await?;
        let stay = format!("{POOL}=stay");
        cluster
            .output_of_kubectl(&["label", "--overwrite", "nodes", "--all", &stay])
            .await?;
        runtime::apply_second(cluster, json!({"drain": "Evict", "nodeSelector": {POOL: "stay"}})).await?;
        runtime::settled(cluster, SECOND).await?;
        namespace.create_from(&DEPLOYMENT.replace("$NODE", &node.name)).await?;
        let rolled_out = ["rollout", "status", "deployment/moving", "--timeout=120s"];
        namespace.kubectl(&rolled_out).await?;
        let before = places(namespace).await?;
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
                let status = deployments.get("moving").await?.status.unwrap_or_default();
                let available = status.available_replicas.unwrap_or(0);
                ensure!(available >= 2, "the budget allows one to be out: {status:?}");
                runtime::nodes(cluster, SECOND).await
            },
            |nodes| !nodes.contains_key(&node.name),
        )
        .await?;
        namespace.kubectl(&rolled_out).await?;
        let after = places(namespace).await?;
        ensure!(after.len() == 3 && !after.contains(&node.name), "{before:?}, {after:?}");
        let left = difference(&files, &node.files().await?);
        ensure!(left.is_empty(), "{}: {left:#?}", node.name);

        namespace.kubectl(&["delete", "deployment", "moving"]).await?;
        runtime::delete(cluster, SECOND).await?;
        cluster
            .output_of_kubectl(&["label", "nodes", "--all", &format!("{POOL}-")])
            .await
            .map(drop)
    })
    .await
}

/// The nodes of the scenario's pods, those left out that are on their way out.
async fn places(namespace: &Namespace) -> Result<Vec<String>> {
    let selected = ListParams::default().labels("scenario=eviction");
    let pods = namespace.api::<Pod>().list(&selected).await?.items.into_iter();
    let stay = pods.filter(|pod| pod.metadata.deletion_timestamp.is_none());
    Ok(stay
        .filter_map(|pod| pod.spec.and_then(|spec| spec.node_name))
        .collect())
}
