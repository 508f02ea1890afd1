//! Changes of the release under running pods: none restarts containerd, and no pod notices.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kubewasi_e2e::namespace::{Namespace, images};
use kubewasi_e2e::node::Node;
use kubewasi_e2e::{release, runtime, workload};
use serde_json::{Value, json};

use crate::start_idle;

#[tokio::test]
async fn options_change_without_a_restart() -> Result<()> {
    Namespace::with("options", async |namespace| {
        let options = json!({"shim": {"options": {"log": "debug"}}});
        change(namespace, options).await?;
        for (node, wasm_node) in runtime::nodes(&namespace.cluster, release::RUNTIME).await? {
            assert_eq!(wasm_node["spec"]["wish"]["options"]["log"], "debug", "{node}");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn another_shim_takes_over_new_pods_and_leaves_the_running_ones() -> Result<()> {
    Namespace::with("upgrade", async |namespace| {
        let cluster = &namespace.cluster;
        release::ready(cluster, json!({})).await?;
        let before = digests(namespace).await?;
        change(
            namespace,
            json!({"shim": {"image": format!("{}/shim-next:e2e", images())}}),
        )
        .await?;
        let after = digests(namespace).await?;
        assert!(
            before.iter().zip(&after).all(|(old, new)| old != new),
            "{before:?} {after:?}"
        );
        assert!(after.iter().all(|digest| *digest == after[0]), "{after:?}");
        Ok(())
    })
    .await
}

/// Changes the runtime's spec, and looks whether a pod of before is left alone and one of after runs.
async fn change(namespace: &Namespace, spec: Value) -> Result<()> {
    let cluster = &namespace.cluster;
    release::ready(cluster, json!({})).await?;
    let nodes = Node::all(namespace).await?;
    let mut containerds = Vec::new();
    for node in &nodes {
        containerds.push(node.containerd().await?);
    }
    start_idle(namespace, "before", release::RUNTIME).await?;
    let before = identity(&workload::ready(namespace, "before").await?);

    release::ready(cluster, spec).await?;
    start_idle(namespace, "after", release::RUNTIME).await?;
    for (node, containerd) in nodes.iter().zip(&containerds) {
        ensure!(
            node.containerd().await? == *containerd,
            "containerd of {} was restarted",
            node.name
        );
    }
    let after = identity(&workload::ready(namespace, "before").await?);
    ensure!(before == after, "the pod was restarted: {before:?}, {after:?}");
    Ok(())
}

/// A pod's uid and its containers' ids: others after any restart.
fn identity(pod: &Pod) -> Vec<String> {
    let statuses = pod
        .status
        .iter()
        .flat_map(|status| status.container_statuses.iter().flatten());
    let ids = statuses.filter_map(|status| status.container_id.clone());
    pod.metadata.uid.clone().into_iter().chain(ids).collect()
}

/// The shims that the nodes proved.
async fn digests(namespace: &Namespace) -> Result<Vec<Value>> {
    let nodes = runtime::nodes(&namespace.cluster, release::RUNTIME).await?;
    Ok(nodes
        .values()
        .map(|node| node["status"]["proof"]["shimDigest"].clone())
        .collect())
}
