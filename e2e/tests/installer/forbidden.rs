//! A namespace where Pod Security stops the agents.

use anyhow::{Result, ensure};
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::{release, runtime};
use serde_json::json;

const ENFORCE: &str = "pod-security.kubernetes.io/enforce";

#[tokio::test]
async fn agents_that_pod_security_forbids_are_told_of_with_the_label_that_lets_them_in() -> Result<()> {
    Namespace::with("forbidden", async |namespace| {
        let cluster = &namespace.cluster;
        release::absent(cluster).await?;
        let mut manifest = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": release::NAME}});
        manifest["metadata"]["labels"][ENFORCE] = json!("baseline");
        cluster
            .kubectl_with_input(&["apply", "--filename", "-"], &manifest.to_string())
            .await?;
        release::apply(cluster, json!({})).await?;
        let degraded = runtime::with_reason(cluster, release::RUNTIME, "Degraded", "AgentsForbidden").await?;
        let message = runtime::condition(&degraded, "Degraded").map(|condition| condition["message"].to_string());
        let message = message.unwrap_or_default();
        eprintln!("{message}");
        for said in [&format!("{ENFORCE}=privileged"), "violates PodSecurity"] {
            ensure!(message.contains(said), "{message}");
        }
        ensure!(runtime::ready_nodes(cluster, release::RUNTIME).await?.is_empty());

        // As the message says.
        let label = format!("{ENFORCE}=privileged");
        let mend = ["label", "--overwrite", "namespace", release::NAME, &label];
        cluster.output_of_kubectl(&mend).await?;
        runtime::settled(cluster, release::RUNTIME).await?;
        runtime::with_reason(cluster, release::RUNTIME, "Degraded", "AsExpected")
            .await
            .map(drop)
    })
    .await
}
