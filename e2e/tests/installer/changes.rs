//! Changes of the release under running pods: none restarts containerd, and no pod notices.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kubewasi_e2e::namespace::{Namespace, images};
use kubewasi_e2e::node::Node;
use kubewasi_e2e::{release, runtime, workload};
use serde_json::{Value, json};

use crate::idle::start_idle;

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

#[tokio::test]
async fn another_overhead_and_other_tolerations_reach_the_class_and_no_pod_of_before() -> Result<()> {
    Namespace::with("spec", async |namespace| {
        let toleration = json!({"key": "e2e", "operator": "Exists"});
        let spec = json!({"overhead": {"memory": "3Mi"}, "podTolerations": [toleration]});
        change(namespace, spec).await?;
        let class = runtime::get(&namespace.cluster, "runtimeclass", release::RUNTIME).await?;
        ensure!(class["overhead"]["podFixed"] == json!({"memory": "3Mi"}), "{class:#}");
        ensure!(class["scheduling"]["tolerations"] == json!([toleration]), "{class:#}");
        let memory = async |pod: &str| {
            let pod = namespace.api::<Pod>().get(pod).await?;
            let overhead = pod.spec.and_then(|spec| spec.overhead).unwrap_or_default();
            anyhow::Ok(overhead.get("memory").map(|memory| memory.0.clone()))
        };
        assert_eq!(memory("before").await?.as_deref(), Some("2Mi"));
        assert_eq!(memory("after").await?.as_deref(), Some("3Mi"));
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
    let before = workload::identity(&workload::ready(namespace, "before").await?);

    release::ready(cluster, spec).await?;
    start_idle(namespace, "after", release::RUNTIME).await?;
    for (node, containerd) in nodes.iter().zip(&containerds) {
        ensure!(
            node.containerd().await? == *containerd,
            "containerd of {} was restarted",
            node.name
        );
    }
    let after = workload::identity(&workload::ready(namespace, "before").await?);
    ensure!(before == after, "the pod was restarted: {before:?}, {after:?}");
    Ok(())
}

/// The shims that the nodes proved.
async fn digests(namespace: &Namespace) -> Result<Vec<Value>> {
    let nodes = runtime::nodes(&namespace.cluster, release::RUNTIME).await?;
    Ok(nodes
        .values()
        .map(|node| node["status"]["proof"]["shimDigest"].clone())
        .collect())
}
