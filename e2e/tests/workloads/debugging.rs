//! An ephemeral container looks into a wasm pod.

use anyhow::Result;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::workload;

#[tokio::test]
async fn kubectl_debug_adds_a_native_shell_to_a_wasm_pod() -> Result<()> {
    Namespace::with("debug", async |namespace| {
        namespace
            .create_from(
                r#"
apiVersion: v1
kind: Pod
metadata:
  name: puzzling
spec:
  runtimeClassName: wasi
  hostname: puzzle
  containers:
    - name: guest
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: [idle]
"#,
            )
            .await?;
        workload::ready(namespace, "puzzling").await?;
        let image = format!("--image={}/busybox:e2e", kubewasi_e2e::namespace::images());
        let debug = [
            "debug",
            "puzzling",
            "--profile=general",
            "--image-pull-policy=IfNotPresent",
            "--container=shell",
            &image,
            "--",
            "hostname",
        ];
        namespace.kubectl(&debug).await?;
        let end = workload::end(namespace, "puzzling", "shell").await?;
        assert_eq!(end.exit_code, 0, "{end:?}");
        assert_eq!(workload::logs(namespace, "puzzling", "shell").await?, "puzzle\n");
        // The guest did not notice.
        workload::ready(namespace, "puzzling").await?;
        Ok(())
    })
    .await
}
