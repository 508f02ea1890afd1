//! A node is drained of wasm pods like of any others.

use anyhow::Result;
use kubewasi_e2e::deployment::{self, MOVING, MOVING_REPLICAS};
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::node::Node;

#[tokio::test]
async fn a_drained_node_gives_its_wasm_pods_to_others() -> Result<()> {
    Namespace::with("drain", async |namespace| {
        let node = Node::first(namespace).await?.name;
        deployment::start_moving(namespace, "wasi", &node).await?;
        let before = deployment::places(namespace, MOVING).await?;
        assert!(
            before.contains(&node),
            "no pod is where it would be drained: {before:?}"
        );

        // Only this scenario's pods: others run on the node.
        let pods = format!("--pod-selector=app={MOVING}");
        let drain = ["drain", &node, &pods, "--timeout=120s"];
        let drained = namespace.cluster.output_of_kubectl(&drain).await;
        let moved = match &drained {
            Ok(_) => deployment::rolled_out(namespace, MOVING).await,
            Err(_) => Ok(()),
        };
        let after = deployment::places(namespace, MOVING).await;
        namespace.cluster.output_of_kubectl(&["uncordon", &node]).await?;

        drained?;
        moved?;
        let after = after?;
        assert_eq!(after.len(), MOVING_REPLICAS, "{after:?}");
        assert!(!after.contains(&node), "{after:?}");
        Ok(())
    })
    .await
}
