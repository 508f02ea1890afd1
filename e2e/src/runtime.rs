//! WasmRuntimes and WasmNodes, as kubectl shows them.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::wait;

/// Waits until every node of a WasmRuntime proved what its spec says now, and returns the resource.
pub async fn settled(cluster: &Cluster, runtime: &str) -> Result<Value> {
    wait::until(
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

/// The status of a condition of an object.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == kind)
}

fn is_settled(runtime: &Value) -> bool {
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
