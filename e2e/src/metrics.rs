//! The APIs of metrics, which `kubectl top` and autoscalers ask: the cluster's own, or what is there as long as the
//! scenario.

use std::panic::{AssertUnwindSafe, resume_unwind};

use anyhow::{Context, Result};
use futures_util::FutureExt;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::namespace::images;
use crate::wait;

/// An API of metrics, and what serves it where a cluster has none.
pub struct Metrics {
    group: &'static str,
    /// The Deployment and the Service in kube-system.
    server: &'static str,
    manifest: &'static str,
}

/// What pods use, by the kubelets.
pub const RESOURCE: Metrics = Metrics {
    group: "metrics.k8s.io",
    server: "metrics-server",
    manifest: include_str!("../metrics-server.yaml"),
};

/// What pods count themselves, by Prometheus: `kubewasi_http_requests_per_second`.
pub const CUSTOM: Metrics = Metrics {
    group: "custom.metrics.k8s.io",
    server: "prometheus",
    manifest: include_str!("../prometheus.yaml"),
};

/// What makes a server a part of the API. While there is one whose server does not answer, no namespace of the cluster is
/// deleted: it comes last and goes first.
const API: &str = r#"
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.$GROUP}
spec:
  group: $GROUP
  version: v1beta1
  service: {name: $SERVER, namespace: kube-system}
  insecureSkipTLSVerify: true
  groupPriorityMinimum: 100
  versionPriority: 100
"#;

impl Metrics {
    /// Runs `scenario` on a cluster with these metrics.
    pub async fn with(&self, cluster: &Cluster, scenario: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
        let api = format!("v1beta1.{}", self.group);
        let there = ["get", "apiservice", &api, "--ignore-not-found", "--output", "name"];
        if !cluster.output_of_kubectl(&there).await?.is_empty() {
            return scenario().await;
        }
        let outcome = AssertUnwindSafe(async {
            self.install(cluster).await?;
            scenario().await
        })
        .catch_unwind()
        .await;
        if !matches!(outcome, Ok(Ok(()))) {
            let of = self.deployment();
            let logs = ["logs", "--namespace", "kube-system", "--all-containers", &of];
            match cluster.output_of_kubectl(&logs).await {
                Ok(text) => eprintln!("--- kubectl {}\n{text}", logs.join(" ")),
                Err(error) => eprintln!("--- {error:#}"),
            }
        }
        let removed = self.remove(cluster).await;
        match outcome {
            Ok(result) => result.and(removed),
            Err(panic) => resume_unwind(panic),
        }
    }

    fn deployment(&self) -> String {
        format!("deployment/{}", self.server)
    }

    /// The API, and what serves it.
    fn manifests(&self) -> [String; 2] {
        [
            API.replace("$GROUP", self.group).replace("$SERVER", self.server),
            self.manifest.replace("$IMAGES", &images()),
        ]
    }

    async fn install(&self, cluster: &Cluster) -> Result<()> {
        let [api, server] = self.manifests();
        let create = ["create", "--filename", "-"];
        cluster.kubectl_with_input(&create, &server).await?;
        let of = self.deployment();
        let ready = ["rollout", "status", &of, "--namespace", "kube-system", "--timeout=120s"];
        cluster.output_of_kubectl(&ready).await?;
        cluster.kubectl_with_input(&create, &api).await?;
        let name = format!("apiservice/v1beta1.{}", self.group);
        let available = ["wait", "--for=condition=Available", &name, "--timeout=60s"];
        cluster.output_of_kubectl(&available).await?;
        // `kubectl top` asks what there is first, and the API server's answer to that comes to know a new API later.
        let version = format!("{}/v1beta1", self.group);
        wait::until(
            "the API server to tell of metrics",
            async || cluster.output_of_kubectl(&["api-versions"]).await,
            |versions| versions.lines().any(|line| line == version),
        )
        .await
        .map(drop)
    }

    async fn remove(&self, cluster: &Cluster) -> Result<()> {
        for manifest in self.manifests() {
            let delete = ["delete", "--ignore-not-found", "--filename", "-"];
            cluster.kubectl_with_input(&delete, &manifest).await?;
        }
        Ok(())
    }
}

/// What the pods of a namespace use, as the API says it: nothing of a pod that was not measured yet.
pub async fn of_pods(cluster: &Cluster, namespace: &str) -> Result<Vec<Value>> {
    let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods");
    let list = cluster.output_of_kubectl(&["get", "--raw", &path]).await?;
    let list: Value = serde_json::from_str(&list).context("the metrics are no JSON")?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}
