//! A wasm pod differs from an ordinary one by its RuntimeClass alone.

use anyhow::Result;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::workload;

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: wasm
spec:
  runtimeClassName: wasi
  containers:
    - name: guest
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: [idle]
---
apiVersion: v1
kind: Pod
metadata:
  name: ordinary
spec:
  containers:
    - name: shell
      image: $IMAGES/busybox:e2e
      imagePullPolicy: IfNotPresent
      command: [sleep, infinity]
"#;

#[tokio::test]
async fn wasm_and_ordinary_pods_run_side_by_side() -> Result<()> {
    Namespace::with("beside", async |namespace| {
        namespace.create_from(PODS).await?;
        let wasm = workload::ready(namespace, "wasm").await?;
        workload::ready(namespace, "ordinary").await?;
        assert!(
            wasm.status.and_then(|status| status.pod_ip).is_some(),
            "a wasm pod has an address"
        );
        workload::says(namespace, "wasm", "guest", "idle").await?;

        let listed = namespace.kubectl(&["get", "pods", "--no-headers"]).await?;
        assert_eq!(listed.matches("1/1").count(), 2, "{listed}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_guest_gets_arguments_and_environment_of_its_pod() -> Result<()> {
    Namespace::with("arguments", async |namespace| {
        namespace
            .create_from(
                r#"
apiVersion: v1
kind: Pod
metadata:
  name: wasm
spec:
  runtimeClassName: wasi
  restartPolicy: Never
  containers:
    - name: args
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: [args, "two words"]
    - name: env
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: [env]
      env:
        - {name: GREETING, value: hello}
        - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
"#,
            )
            .await?;
        workload::phase(namespace, "wasm", "Succeeded").await?;
        assert_eq!(
            workload::logs(namespace, "wasm", "args").await?,
            "/probe02.wasm\nargs\ntwo words\n"
        );
        let environment = workload::logs(namespace, "wasm", "env").await?;
        assert!(environment.contains("GREETING=hello\n"), "{environment}");
        assert!(environment.contains("POD=wasm\n"), "{environment}");
        Ok(())
    })
    .await
}

/// Versions of WASI that one image holds, by the file that is run.
#[tokio::test]
async fn guests_of_every_wasi_version_run_in_one_pod() -> Result<()> {
    Namespace::with("versions", async |namespace| {
        namespace
            .create_from(
                r#"
apiVersion: v1
kind: Pod
metadata:
  name: wasm
spec:
  runtimeClassName: wasi
  restartPolicy: Never
  containers:
    - {name: p1, image: "$IMAGES/probe:e2e", imagePullPolicy: IfNotPresent, command: [/probe01.wasm, say, "0.1"]}
    - {name: p2, image: "$IMAGES/probe:e2e", imagePullPolicy: IfNotPresent, command: [/probe02.wasm, say, "0.2"]}
    - {name: p3, image: "$IMAGES/probe:e2e", imagePullPolicy: IfNotPresent, command: [/probe03.wasm, say, "0.3"]}
"#,
            )
            .await?;
        workload::phase(namespace, "wasm", "Succeeded").await?;
        for (container, said) in [("p1", "0.1\n"), ("p2", "0.2\n"), ("p3", "0.3\n")] {
            assert_eq!(workload::logs(namespace, "wasm", container).await?, said);
        }
        Ok(())
    })
    .await
}
