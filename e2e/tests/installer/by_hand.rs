//! What people change by hand is put right.

use anyhow::Result;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::{release, runtime, wait};
use serde_json::json;

use crate::idle::start_idle;

#[tokio::test]
async fn a_runtime_class_that_was_deleted_comes_back() -> Result<()> {
    Namespace::with("class", async |namespace| {
        let cluster = &namespace.cluster;
        release::ready(cluster, json!({})).await?;
        let before = runtime::get(cluster, "runtimeclass", release::RUNTIME).await?;
        cluster
            .output_of_kubectl(&["delete", "runtimeclass", release::RUNTIME])
            .await?;
        let kubectl = [
            "get",
            "runtimeclass",
            release::RUNTIME,
            "--ignore-not-found",
            "--output",
            "name",
        ];
        wait::until(
            "the RuntimeClass to be back",
            async || cluster.output_of_kubectl(&kubectl).await,
            |found| !found.is_empty(),
        )
        .await?;
        let after = runtime::get(cluster, "runtimeclass", release::RUNTIME).await?;
        assert_ne!(before["metadata"]["uid"], after["metadata"]["uid"]);
        for part in ["handler", "overhead", "scheduling"] {
            assert_eq!(before[part], after[part], "{part}");
        }
        start_idle(namespace, "guest", release::RUNTIME).await
    })
    .await
}

#[tokio::test]
async fn a_label_that_was_edited_says_the_truth_again() -> Result<()> {
    Namespace::with("label", async |namespace| {
        let cluster = &namespace.cluster;
        release::ready(cluster, json!({})).await?;
        let before = runtime::labels_and_taints(cluster).await?;
        for node in before.keys() {
            for edit in ["runtime.kubewasi.dev/wasi-", "runtime.kubewasi.dev/wasi=broken"] {
                cluster
                    .output_of_kubectl(&["label", "--overwrite", "node", node, edit])
                    .await?;
                wait::until(
                    &format!("node {node} to be labelled as before, after {edit}"),
                    async || runtime::labels_and_taints(cluster).await,
                    |labels| *labels == before,
                )
                .await?;
            }
        }
        Ok(())
    })
    .await
}
