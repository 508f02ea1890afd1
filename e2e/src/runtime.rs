//! WasmRuntimes and WasmNodes, as kubectl shows them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::namespace::images;
use crate::wait::{self, PATIENCE};

/// A WasmRuntime beside the release's: its name, and its RuntimeClass's.
pub const SECOND: &str = "second";

/// The second one's handler.
pub const SECOND_HANDLER: &str = "wasi-second";

/// Waits until every node of a WasmRuntime proved what its spec says now, and returns the resource.
pub async fn settled(cluster: &Cluster, runtime: &str) -> Result<Value> {
    settled_within(PATIENCE, cluster, runtime).await
}

/// As [`settled`], for a rollout that something holds up.
pub async fn settled_within(patience: Duration, cluster: &Cluster, runtime: &str) -> Result<Value> {
    wait::until_within(
        patience,
        &format!("WasmRuntime {runtime} to be on all its nodes"),
        async || get(cluster, "wasmruntime", runtime).await,
        is_settled,
    )
    .await
}

/// The WasmNodes of a WasmRuntime, by node.
pub async fn nodes(cluster: &Cluster, runtime: &str) -> Result<BTreeMap<String, Value>> {
    let list = json_of(cluster, &["get", "wasmnodes", "--output", "json"]).await?;
    let all = list["items"].as_array().cloned().unwrap_or_default();
    let ours = all.into_iter().filter(|node| node["spec"]["runtime"] == runtime);
    Ok(ours.map(|node| (text(&node["spec"]["nodeName"]), node)).collect())
}

/// An object as JSON.
pub async fn get(cluster: &Cluster, kind: &str, name: &str) -> Result<Value> {
    json_of(cluster, &["get", kind, name, "--output", "json"]).await
}

/// Each node's labels and taints: what schedulers see.
pub async fn labels_and_taints(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let list = json_of(cluster, &["get", "nodes", "--output", "json"]).await?;
    let all = list["items"].as_array().cloned().unwrap_or_default();
    let seen = |node: &Value| format!("{} {}", node["metadata"]["labels"], node["spec"]["taints"]);
    Ok(all
        .iter()
        .map(|node| (text(&node["metadata"]["name"]), seen(node)))
        .collect())
}

/// Names of the nodes that pods of a WasmRuntime can be scheduled to.
pub async fn ready_nodes(cluster: &Cluster, runtime: &str) -> Result<BTreeSet<String>> {
    let selector = format!("runtime.kubewasi.dev/{runtime}=ready");
    let names = "jsonpath={.items[*].metadata.name}";
    let arguments = ["get", "nodes", "--selector", &selector, "--output", names];
    let listed = cluster.output_of_kubectl(&arguments).await?;
    Ok(listed.split_whitespace().map(str::to_owned).collect())
}

/// Makes or changes the second WasmRuntime; `spec` is laid over what it has by default.
pub async fn apply_second(cluster: &Cluster, spec: Value) -> Result<()> {
    let mut runtime = json!({
        "apiVersion": "kubewasi.dev/v1alpha1",
        "kind": "WasmRuntime",
        "metadata": {"name": SECOND},
        "spec": {
            "handler": SECOND_HANDLER,
            "runtimeClasses": [SECOND],
            "tolerations": [{"operator": "Exists"}],
            "shim": {"image": format!("{}/shim-next:e2e", images())},
        },
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        runtime["spec"][field] = value.clone();
    }
    let apply = ["apply", "--filename", "-"];
    cluster.kubectl_with_input(&apply, &runtime.to_string()).await?;
    Ok(())
}

/// Deletes a WasmRuntime, and waits until its nodes are clean.
pub async fn delete(cluster: &Cluster, runtime: &str) -> Result<()> {
    let delete = ["delete", "wasmruntime", runtime, "--ignore-not-found", "--wait=false"];
    cluster.output_of_kubectl(&delete).await?;
    let left = ["get", "wasmruntime", runtime, "--ignore-not-found", "--output", "name"];
    wait::until(
        &format!("WasmRuntime {runtime} to be gone"),
        async || cluster.output_of_kubectl(&left).await,
        String::is_empty,
    )
    .await?;
    Ok(())
}

/// Has the nodes tried again that failed, as somebody does who has mended them.
pub async fn retry(cluster: &Cluster, runtime: &str) -> Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let retry = format!("kubewasi.dev/retry={}", now.as_millis());
    let annotate = ["annotate", "--overwrite", "wasmruntime", runtime, &retry];
    cluster.output_of_kubectl(&annotate).await?;
    Ok(())
}

/// Waits until a condition of a WasmRuntime has this reason, and returns the resource.
pub async fn with_reason(cluster: &Cluster, runtime: &str, kind: &str, reason: &str) -> Result<Value> {
    wait::until(
        &format!("WasmRuntime {runtime}: {kind} with the reason {reason}"),
        async || get(cluster, "wasmruntime", runtime).await,
        |runtime| condition(runtime, kind).is_some_and(|condition| condition["reason"] == reason),
    )
    .await
}

/// Waits until a WasmRuntime's status has a node among those that need attention, for this reason; returns the message.
pub async fn needs_attention(cluster: &Cluster, runtime: &str, node: &str, reason: &str) -> Result<String> {
    let of_node = |runtime: &Value| {
        let attention = runtime["status"]["attention"].as_array()?;
        let found = attention
            .iter()
            .find(|one| one["node"] == node && one["reason"] == reason)?;
        Some(text(&found["message"]))
    };
    let found = wait::until(
        &format!("WasmRuntime {runtime}: node {node} needs attention, {reason}"),
        async || get(cluster, "wasmruntime", runtime).await,
        |runtime| of_node(runtime).is_some(),
    )
    .await?;
    of_node(&found).context("it was there just now")
}

/// The status of a condition of an object.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == kind)
}

/// Whether every node of a WasmRuntime proved what its spec says now.
pub fn is_settled(runtime: &Value) -> bool {
    let of_now = |kind: &str, reason: &str| {
        condition(runtime, kind).is_some_and(|condition| {
            condition["reason"] == reason && condition["observedGeneration"] == runtime["metadata"]["generation"]
        })
    };
    let counts = &runtime["status"]["nodes"];
    of_now("Available", "AllNodesReady")
        && of_now("Progressing", "RolloutComplete")
        && counts["updated"] == counts["selected"]
}

async fn json_of(cluster: &Cluster, arguments: &[&str]) -> Result<Value> {
    let text = cluster.output_of_kubectl(arguments).await?;
    serde_json::from_str(&text).context("kubectl did not write JSON")
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
