//! The API of resource metrics, which `kubectl top` and autoscalers ask: the cluster's own, or a metrics-server that is
//! there as long as the scenario.

use std::panic::{AssertUnwindSafe, resume_unwind};

use anyhow::{Context, Result};
use futures_util::FutureExt;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::namespace::images;
use crate::wait;

const SERVER: &str = include_str!("../metrics-server.yaml");

/// What makes the server a part of the API. While there is one whose server does not answer, no namespace of the cluster
/// is deleted: it comes last and goes first.
const API: &str = r#"
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.metrics.k8s.io}
spec:
  group: metrics.k8s.io
  version: v1beta1
  service: {name: metrics-server, namespace: kube-system}
  insecureSkipTLSVerify: true
  groupPriorityMinimum: 100
  versionPriority: 100
"#;

/// Runs `scenario` on a cluster with metrics.
pub async fn with(cluster: &Cluster, scenario: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    let there = [
        "get",
        "apiservice",
        "v1beta1.metrics.k8s.io",
        "--ignore-not-found",
        "--output",
        "name",
    ];
    if !cluster.output_of_kubectl(&there).await?.is_empty() {
        return scenario().await;
    }
    let outcome = AssertUnwindSafe(async {
        install(cluster).await?;
        scenario().await
    })
    .catch_unwind()
    .await;
    if !matches!(outcome, Ok(Ok(()))) {
        let logs = ["logs", "--namespace", "kube-system", "deployment/metrics-server"];
        match cluster.output_of_kubectl(&logs).await {
            Ok(text) => eprintln!("--- kubectl {}\n{text}", logs.join(" ")),
            Err(error) => eprintln!("--- {error:#}"),
        }
    }
    let removed = remove(cluster).await;
    match outcome {
        Ok(result) => result.and(removed),
        Err(panic) => resume_unwind(panic),
    }
}

async fn install(cluster: &Cluster) -> Result<()> {
    let server = SERVER.replace("$IMAGES", &images());
    cluster
        .kubectl_with_input(&["create", "--filename", "-"], &server)
        .await?;
    let ready = [
        "rollout",
        "status",
        "deployment/metrics-server",
        "--namespace",
        "kube-system",
        "--timeout=120s",
    ];
    cluster.output_of_kubectl(&ready).await?;
    cluster.kubectl_with_input(&["create", "--filename", "-"], API).await?;
    let available = [
        "wait",
        "--for=condition=Available",
        "apiservice/v1beta1.metrics.k8s.io",
        "--timeout=60s",
    ];
    cluster.output_of_kubectl(&available).await?;
    // `kubectl top` asks what there is first, and the API server's answer to that comes to know a new API later.
    let known = ["api-resources", "--api-group=metrics.k8s.io", "--output=name"];
    wait::until(
        "the API server to tell of metrics",
        async || cluster.output_of_kubectl(&known).await,
        |resources| resources.contains("pods.metrics.k8s.io"),
    )
    .await
    .map(drop)
}

async fn remove(cluster: &Cluster) -> Result<()> {
    for manifest in [API, SERVER] {
        let delete = ["delete", "--ignore-not-found", "--filename", "-"];
        cluster.kubectl_with_input(&delete, manifest).await?;
    }
    Ok(())
}

/// What the pods of a namespace use, as the API says it: nothing of a pod that was not measured yet.
pub async fn of_pods(cluster: &Cluster, namespace: &str) -> Result<Vec<Value>> {
    let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods");
    let list = cluster.output_of_kubectl(&["get", "--raw", &path]).await?;
    let list: Value = serde_json::from_str(&list).context("the metrics are no JSON")?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}
