//! How a guest ended, where somebody looks who wonders: in the pod's status and in kubectl describe.

use anyhow::Result;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::workload;

/// A pod that ends by itself: `arguments` for the probe, as YAML.
fn pod(arguments: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata:
  name: ending
spec:
  runtimeClassName: wasi
  restartPolicy: Never
  terminationGracePeriodSeconds: 30
  containers:
    - name: guest
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: {arguments}
      resources: {{limits: {{memory: 64Mi}}}}
"#
    )
}

#[tokio::test]
async fn a_trap_is_told_with_its_message_and_backtrace() -> Result<()> {
    Namespace::with("trap", async |namespace| {
        namespace.create_from(&pod("[trap]")).await?;
        let end = workload::end(namespace, "ending", "guest").await?;
        assert_eq!((end.exit_code, end.reason.as_deref()), (134, Some("Error")), "{end:?}");
        let described = namespace.kubectl(&["describe", "pod", "ending"]).await?;
        assert!(
            described.contains("wasm trap: wasm `unreachable` instruction executed"),
            "{described}"
        );
        assert!(described.contains("wasm backtrace"), "{described}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_exit_code_is_the_guest_s_own() -> Result<()> {
    Namespace::with("exit", async |namespace| {
        namespace.create_from(&pod("[exit-with-code, '42']")).await?;
        assert_eq!(workload::end(namespace, "ending", "guest").await?.exit_code, 42);
        workload::phase(namespace, "ending", "Failed").await?;
        Ok(())
    })
    .await
}

/// A guest's own memory stops growing before the limit; what it writes to a volume of memory does not.
#[tokio::test]
async fn an_oom_kill_is_told_as_one() -> Result<()> {
    Namespace::with("oom", async |namespace| {
        namespace
            .create_from(
                r#"
apiVersion: v1
kind: Pod
metadata:
  name: ending
spec:
  runtimeClassName: wasi
  restartPolicy: Never
  volumes:
    - {name: memory, emptyDir: {medium: Memory, sizeLimit: 256Mi}}
  containers:
    - name: guest
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: [flood, /memory/file, "128"]
      volumeMounts: [{name: memory, mountPath: /memory}]
      resources: {limits: {memory: 64Mi}}
"#,
            )
            .await?;
        let end = workload::end(namespace, "ending", "guest").await?;
        assert_eq!(
            (end.exit_code, end.reason.as_deref()),
            (137, Some("OOMKilled")),
            "{end:?}"
        );
        let described = namespace.kubectl(&["describe", "pod", "ending"]).await?;
        assert!(described.contains("OOMKilled"), "{described}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_deleted_pod_ends_its_guest_long_before_the_grace_period() -> Result<()> {
    Namespace::with("graceful", async |namespace| {
        namespace.create_from(&pod("[idle]")).await?;
        workload::ready(namespace, "ending").await?;
        let start = std::time::Instant::now();
        namespace.kubectl(&["delete", "pod", "ending"]).await?;
        assert!(start.elapsed().as_secs() < 15, "{:?} of 30 s", start.elapsed());
        Ok(())
    })
    .await
}
