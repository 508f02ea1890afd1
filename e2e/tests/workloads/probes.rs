//! Probes of the kubelet on wasm containers: an exec probe runs a wasm program beside the guest.

use anyhow::Result;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::workload;

#[tokio::test]
async fn an_exec_probe_of_a_wasm_program_makes_a_guest_ready() -> Result<()> {
    Namespace::with("readiness", async |namespace| {
        namespace
            .create_from(
                r#"
apiVersion: v1
kind: Pod
metadata:
  name: probed
spec:
  runtimeClassName: wasi
  terminationGracePeriodSeconds: 1
  volumes:
    - {name: work, emptyDir: {}}
  containers:
    - name: guest
      image: $IMAGES/tools:e2e
      imagePullPolicy: IfNotPresent
      command: [sh, -c, "sleep 3; touch /work/ready; sleep 600"]
      volumeMounts: [{name: work, mountPath: /work}]
      readinessProbe:
        exec: {command: ["[", -f, /work/ready, "]"]}
        periodSeconds: 1
"#,
            )
            .await?;
        let running = workload::phase(namespace, "probed", "Running").await?;
        assert!(!workload::is_ready(&running), "it is ready before its probe says so");
        workload::ready(namespace, "probed").await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_liveness_probe_that_fails_restarts_a_guest() -> Result<()> {
    Namespace::with("liveness", async |namespace| {
        namespace
            .create_from(
                r#"
apiVersion: v1
kind: Pod
metadata:
  name: stuck
spec:
  runtimeClassName: wasi
  terminationGracePeriodSeconds: 1
  containers:
    - name: guest
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: [idle]
      livenessProbe:
        exec: {command: [/probe02.wasm, exit, "1"]}
        periodSeconds: 1
        failureThreshold: 1
"#,
            )
            .await?;
        workload::pod_where(namespace, "stuck", "a restart", |pod| {
            workload::restarts(pod, "guest") > 0
        })
        .await?;
        let end = workload::end(namespace, "stuck", "guest").await?;
        assert_eq!(end.exit_code, 143, "{end:?}");
        Ok(())
    })
    .await
}
