//! Agents come and go, and their nodes stay as they are.

use anyhow::Result;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::node::{Node, difference};
use kubewasi_e2e::{release, runtime, wait};
use serde_json::json;

#[tokio::test]
async fn an_agent_that_is_restarted_changes_nothing() -> Result<()> {
    Namespace::with("restart", async |namespace| {
        let cluster = &namespace.cluster;
        release::ready(cluster, json!({})).await?;
        let labels = runtime::labels_and_taints(cluster).await?;
        let nodes = Node::all(namespace).await?;
        let mut seen = Vec::new();
        for node in &nodes {
            seen.push((node.files().await?, node.containerd().await?));
        }
        let reports = reports(namespace).await?;

        let selector = format!("kubewasi.dev/runtime={}", release::RUNTIME);
        let agents = ["--namespace", release::NAME, "delete", "pods", "--selector", &selector];
        cluster.output_of_kubectl(&agents).await?;
        // A new agent proves its node once, and says so.
        wait::until(
            "the new agents to report",
            async || self::reports(namespace).await,
            |now| now.len() == reports.len() && now.iter().all(|report| !reports.contains(report)),
        )
        .await?;
        for (node, (files, containerd)) in nodes.iter().zip(&seen) {
            let differences = difference(files, &node.files().await?);
            assert!(differences.is_empty(), "{}: {differences:#?}", node.name);
            assert_eq!(node.containerd().await?, *containerd, "{}", node.name);
        }
        assert_eq!(runtime::labels_and_taints(cluster).await?, labels);
        Ok(())
    })
    .await
}

/// When each node was last reported on.
async fn reports(namespace: &Namespace) -> Result<Vec<String>> {
    let nodes = runtime::nodes(&namespace.cluster, release::RUNTIME).await?;
    Ok(nodes
        .values()
        .map(|node| node["status"]["reportedAt"].to_string())
        .collect())
}
