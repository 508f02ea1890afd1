//! Two WasmRuntimes on the same nodes, each with a handler of its own.

use anyhow::Result;
use kubewasi_e2e::namespace::{Namespace, images};
use kubewasi_e2e::{release, runtime, wait, workload};
use serde_json::json;

use crate::start_idle;

const SECOND: &str = r#"
apiVersion: kubewasi.dev/v1alpha1
kind: WasmRuntime
metadata:
  name: second
spec:
  handler: wasi-second
  runtimeClasses: [second]
  tolerations: [{operator: Exists}]
  shim:
    image: $IMAGES/shim-next:e2e
"#;

#[tokio::test]
async fn a_second_runtime_comes_and_goes_beside_the_first() -> Result<()> {
    Namespace::with("second", async |namespace| {
        let cluster = &namespace.cluster;
        release::ready(cluster, json!({})).await?;
        start_idle(namespace, "of-first", release::RUNTIME).await?;
        let files = SECOND.replace("$IMAGES", &images());
        cluster
            .kubectl_with_input(&["apply", "--filename", "-"], &files)
            .await?;
        runtime::settled(cluster, "second").await?;
        start_idle(namespace, "of-second", "second").await?;

        namespace.kubectl(&["delete", "pod", "of-second"]).await?;
        cluster
            .output_of_kubectl(&["delete", "wasmruntime", "second", "--wait=false"])
            .await?;
        let left = ["get", "wasmruntime", "second", "--ignore-not-found", "--output", "name"];
        wait::until(
            "the second runtime to be gone",
            async || cluster.output_of_kubectl(&left).await,
            String::is_empty,
        )
        .await?;

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
