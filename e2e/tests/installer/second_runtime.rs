//! Two WasmRuntimes on the same nodes, each with a handler of its own.

use anyhow::Result;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::runtime::{self, SECOND};
use kubewasi_e2e::{release, workload};
use serde_json::json;

use crate::idle::start_idle;

#[tokio::test]
async fn a_second_runtime_comes_and_goes_beside_the_first() -> Result<()> {
    Namespace::with("second", async |namespace| {
        let cluster = &namespace.cluster;
        release::ready(cluster, json!({})).await?;
        start_idle(namespace, "of-first", release::RUNTIME).await?;
        runtime::apply_second(cluster, json!({})).await?;
        runtime::settled(cluster, SECOND).await?;
        start_idle(namespace, "of-second", SECOND).await?;

        namespace.kubectl(&["delete", "pod", "of-second"]).await?;
        runtime::delete(cluster, SECOND).await?;

        let first = workload::ready(namespace, "of-first").await?;
        assert_eq!(
            workload::restarts(&first, "guest"),
            0,
            "containerd was restarted under it, and it lived on"
        );
        start_idle(namespace, "later", release::RUNTIME).await
    })
    .await
}
