//! A node is drained of wasm pods like of any others.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kubewasi_e2e::namespace::Namespace;

const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata:
  name: moving
spec:
  replicas: 3
  selector: {matchLabels: {scenario: drain}}
  template:
    metadata:
      labels: {scenario: drain}
    spec:
      runtimeClassName: wasi
      terminationGracePeriodSeconds: 5
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
  selector: {matchLabels: {scenario: drain}}
"#;

#[tokio::test]
async fn a_drained_node_gives_its_wasm_pods_to_others() -> Result<()> {
    Namespace::with("drain", async |namespace| {
        namespace.create_from(DEPLOYMENT).await?;
        let rolled_out = ["rollout", "status", "deployment/moving", "--timeout=120s"];
        namespace.kubectl(&rolled_out).await?;
        let before = nodes(namespace).await?;
        let node = before.first().context("the deployment has no pods")?;

        // Only this scenario's pods: others run on the node.
        let drain = ["drain", node, "--pod-selector=scenario=drain", "--timeout=120s"];
        let drained = namespace.cluster.output_of_kubectl(&drain).await;
        let moved = match &drained {
            Ok(_) => namespace.kubectl(&rolled_out).await,
            Err(_) => Ok(String::new()),
        };
        let after = nodes(namespace).await;
        namespace.cluster.output_of_kubectl(&["uncordon", node]).await?;

        drained?;
        moved?;
        let after = after?;
        assert_eq!(after.len(), 3, "{after:?}");
        assert!(!after.contains(node), "{after:?}");
        Ok(())
    })
    .await
}

/// Where the scenario's pods are, those left out that are on their way out.
async fn nodes(namespace: &Namespace) -> Result<Vec<String>> {
    let pods = namespace
        .api::<Pod>()
        .list(&ListParams::default().labels("scenario=drain"))
        .await?;
    let stay = pods
        .items
        .into_iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none());
    Ok(stay
        .filter_map(|pod| pod.spec.and_then(|spec| spec.node_name))
        .collect())
}
