//! Options with which no module runs: one node finds out, is as before, and no other one is touched.

use anyhow::{Result, ensure};
use kubewasi_e2e::cluster::Cluster;
use kubewasi_e2e::namespace::{Namespace, images};
use kubewasi_e2e::node::Node;
use kubewasi_e2e::release;
use kubewasi_e2e::runtime::{self, SECOND};
use serde_json::json;

use crate::idle::{Idle, start_idle};
use crate::uninstall::are_as_before;

/// A filter of logs that is none, which only the shim can tell: its server does not start.
const NO_FILTER: &str = "shim=loud";

#[tokio::test]
async fn options_with_which_nothing_runs_halt_their_rollout_and_are_taken_back() -> Result<()> {
    Namespace::with("unproven-options", async |namespace| {
        let cluster = &namespace.cluster;
        release::ready(cluster, json!({})).await?;
        let idle = Idle::everywhere(namespace, release::RUNTIME).await?;
        release::apply(cluster, json!({"shim": {"options": {"log": NO_FILTER}}})).await?;
        let failed = halted(cluster, release::RUNTIME).await?;
        ensure!(
            failed.contains("Prove, rolled back") && failed.contains("the options of before are back"),
            "{failed}"
        );
        let ready = runtime::ready_nodes(cluster, release::RUNTIME).await?;
        assert_eq!(ready.len(), Node::all(namespace).await?.len(), "{ready:?}");
        start_idle(namespace, "meanwhile", release::RUNTIME).await?;
        idle.live_on(namespace).await?;
        release::ready(cluster, json!({})).await?;
        idle.live_on(namespace).await
    })
    .await
}

#[tokio::test]
async fn an_installation_whose_module_does_not_run_reaches_one_node_and_makes_none_ready() -> Result<()> {
    Namespace::with("unproven", async |namespace| {
        let cluster = &namespace.cluster;
        release::ready(cluster, json!({})).await?;
        let nodes = Node::all(namespace).await?;
        let (mut files, mut containerds) = (Vec::new(), Vec::new());
        for node in &nodes {
            files.push(node.files_at_rest().await?);
            containerds.push(node.containerd().await?);
        }
        let mut second = json!({"shim": {"image": format!("{}/shim-next:e2e", images())}});
        second["shim"]["options"] = json!({"log": NO_FILTER});
        runtime::apply_second(cluster, second).await?;
        let failed = halted(cluster, SECOND).await?;
        ensure!(failed.contains("Prove"), "{failed}");
        ensure!(runtime::ready_nodes(cluster, SECOND).await?.is_empty());
        let mut restarted = 0;
        for (node, containerd) in nodes.iter().zip(&containerds) {
            restarted += usize::from(node.containerd().await? != *containerd);
        }
        assert_eq!(restarted, 1, "one node was tried");
        runtime::delete(cluster, SECOND).await?;
        are_as_before(&nodes, &files).await
    })
    .await
}

/// Waits until a rollout has halted, and says why its one node failed.
async fn halted(cluster: &Cluster, name: &str) -> Result<String> {
    let runtime = runtime::with_reason(cluster, name, "Progressing", "RolloutHalted").await?;
    let attention = runtime["status"]["attention"].as_array().cloned().unwrap_or_default();
    ensure!(attention.len() == 1, "{attention:?}");
    Ok(attention[0]["message"].as_str().unwrap_or_default().to_owned())
}
