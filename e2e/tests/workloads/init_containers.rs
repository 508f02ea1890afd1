//! Init containers, wasm and native, before wasm containers.

use anyhow::Result;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::workload;

#[tokio::test]
async fn wasm_and_native_init_containers_prepare_a_volume_for_a_guest() -> Result<()> {
    Namespace::with("init", async |namespace| {
        namespace
            .create_from(
                r#"
apiVersion: v1
kind: Pod
metadata:
  name: prepared
spec:
  runtimeClassName: wasi
  restartPolicy: Never
  volumes:
    - {name: work, emptyDir: {}}
  initContainers:
    - name: first
      image: $IMAGES/busybox:e2e
      imagePullPolicy: IfNotPresent
      command: [sh, -c, "echo -n one > /work/first"]
      volumeMounts: [{name: work, mountPath: /work}]
    - name: second
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: [write, /work/second, two]
      volumeMounts: [{name: work, mountPath: /work}]
  containers:
    - name: guest
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: [read, /work/first]
      volumeMounts: [{name: work, mountPath: /work}]
    - name: native
      image: $IMAGES/busybox:e2e
      imagePullPolicy: IfNotPresent
      command: [cat, /work/second]
      volumeMounts: [{name: work, mountPath: /work}]
"#,
            )
            .await?;
        workload::phase(namespace, "prepared", "Succeeded").await?;
        assert_eq!(workload::logs(namespace, "prepared", "guest").await?, "one");
        assert_eq!(workload::logs(namespace, "prepared", "native").await?, "two");
        Ok(())
    })
    .await
}
