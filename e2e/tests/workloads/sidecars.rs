//! Native sidecars: init containers that go on running beside a guest, and end after it.

use anyhow::Result;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::workload;

#[tokio::test]
async fn a_native_sidecar_runs_beside_a_guest_and_ends_with_it() -> Result<()> {
    Namespace::with("sidecar", async |namespace| {
        namespace
            .create_from(
                r#"
apiVersion: v1
kind: Pod
metadata:
  name: served
spec:
  runtimeClassName: wasi
  restartPolicy: Never
  volumes:
    - {name: work, emptyDir: {}}
  initContainers:
    - name: sidecar
      image: $IMAGES/busybox:e2e
      imagePullPolicy: IfNotPresent
      restartPolicy: Always
      command: [sh, -c, "trap 'echo told to end; exit 0' TERM; echo served > /work/page; while true; do sleep 1; done"]
      startupProbe:
        exec: {command: [test, -e, /work/page]}
        periodSeconds: 1
      volumeMounts: [{name: work, mountPath: /work}]
  containers:
    - name: guest
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: [read, /work/page]
      volumeMounts: [{name: work, mountPath: /work}]
"#,
            )
            .await?;
        workload::phase(namespace, "served", "Succeeded").await?;
        assert_eq!(workload::logs(namespace, "served", "guest").await?, "served\n");
        assert_eq!(workload::logs(namespace, "served", "sidecar").await?, "told to end\n");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_wasm_sidecar_runs_beside_a_native_container() -> Result<()> {
    Namespace::with("wasm-sidecar", async |namespace| {
        namespace
            .create_from(
                r#"
apiVersion: v1
kind: Pod
metadata:
  name: mixed
spec:
  runtimeClassName: wasi
  restartPolicy: Never
  initContainers:
    - name: sidecar
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      restartPolicy: Always
      args: [idle]
  containers:
    - name: native
      image: $IMAGES/busybox:e2e
      imagePullPolicy: IfNotPresent
      command: [echo, done]
"#,
            )
            .await?;
        workload::phase(namespace, "mixed", "Succeeded").await?;
        assert_eq!(workload::logs(namespace, "mixed", "native").await?, "done\n");
        let sidecar = workload::end(namespace, "mixed", "sidecar").await?;
        assert_eq!(sidecar.exit_code, 143, "SIGTERM ends a command: {sidecar:?}");
        Ok(())
    })
    .await
}
