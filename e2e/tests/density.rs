//! How many pods a node takes, how soon and in how much memory: wasm beside the same Deployment on runc. Nothing else runs
//! meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::ListParams;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::wait;
use serde_json::Value;

/// The pods of each Deployment.
const COUNTS: [usize; 2] = [200, 300];

/// The kubelet measures its node that often at least.
const MEASURED: Duration = Duration::from_secs(30);

/// How long hundreds of ordinary pods may take to end.
const GONE: Duration = Duration::from_secs(600);

const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata:
  name: dense
spec:
  replicas: $COUNT
  selector: {matchLabels: {app: dense}}
  template:
    metadata:
      labels: {app: dense}
    spec:
      nodeSelector: {kubernetes.io/hostname: $NODE}
      terminationGracePeriodSeconds: 1
      automountServiceAccountToken: false
"#;

const WASM: &str = r#"
      runtimeClassName: wasi
      containers:
        - name: idle
          image: $IMAGES/probe:e2e
          imagePullPolicy: IfNotPresent
          args: [idle]
"#;

const ORDINARY: &str = r#"
      containers:
        - name: idle
          image: $IMAGES/busybox:e2e
          imagePullPolicy: IfNotPresent
          command: [sleep, infinity]
"#;

/// What pods cost.
struct Cost {
    /// Until all of them were ready.
    time: Duration,
    /// Of the node's working set, each.
    mebibytes: f64,
}

#[tokio::test]
#[ignore = "minutes long: part of make e2e-full"]
async fn hundreds_of_wasm_pods_run_on_a_node_in_less_memory_than_ordinary_ones() -> Result<()> {
    Namespace::with("density", async |namespace| {
        let nodes = Api::<Node>::all(namespace.cluster.client.clone());
        let nodes = nodes.list(&ListParams::default()).await?;
        let node = nodes.items.first().and_then(|node| node.metadata.name.clone());
        let node = node.context("the cluster has no node")?;
        for count in COUNTS {
            let wasm = cost(namespace, &node, count, WASM).await?;
            let ordinary = cost(namespace, &node, count, ORDINARY).await?;
            eprintln!(
                "{count} pods at once on {node}: wasm all ready in {:.1} s, {:.1} MiB each; ordinary in {:.1} s, {:.1} MiB each",
                wasm.time.as_secs_f64(),
                wasm.mebibytes,
                ordinary.time.as_secs_f64(),
                ordinary.mebibytes
            );
            assert!(wasm.mebibytes < ordinary.mebibytes);
        }
        Ok(())
    })
    .await
}

/// Runs so many pods of a template's `containers`, and takes them away.
async fn cost(namespace: &Namespace, node: &str, count: usize, containers: &str) -> Result<Cost> {
    let deployment = DEPLOYMENT.trim_end().to_owned() + containers;
    let before = working_set(namespace, node).await?;
    let start = Instant::now();
    namespace
        .create_from(&deployment.replace("$COUNT", &count.to_string()).replace("$NODE", node))
        .await?;
    namespace
        .kubectl(&["rollout", "status", "deployment/dense", "--timeout=900s"])
        .await?;
    let time = start.elapsed();
    let after = working_set(namespace, node).await?;
    namespace.kubectl(&["delete", "deployment", "dense"]).await?;
    let pods = namespace.api::<Pod>();
    wait::until_within(
        GONE,
        "the pods to be gone",
        async || Ok(pods.list_metadata(&ListParams::default()).await?.items.len()),
        |left| *left == 0,
    )
    .await?;
    Ok(Cost {
        time,
        mebibytes: (after - before) / f64::from(1 << 20) / count as f64,
    })
}

/// The memory that the node cannot do without, in bytes, once nothing of what came before is in it.
async fn working_set(namespace: &Namespace, node: &str) -> Result<f64> {
    tokio::time::sleep(MEASURED).await;
    let path = format!("/api/v1/nodes/{node}/proxy/stats/summary");
    let summary = namespace.cluster.output_of_kubectl(&["get", "--raw", &path]).await?;
    let summary: Value = serde_json::from_str(&summary).context("the kubelet's summary is no JSON")?;
    let bytes = summary["node"]["memory"]["workingSetBytes"].as_f64();
    bytes.with_context(|| format!("the summary of {node} has no working set"))
}
