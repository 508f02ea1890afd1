//! A running guest gets other limits, without a restart.

use anyhow::Result;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::workload;

#[tokio::test]
async fn a_guest_gets_more_memory_in_place() -> Result<()> {
    Namespace::with("resize", async |namespace| {
        namespace
            .create_from(
                r#"
apiVersion: v1
kind: Pod
metadata:
  name: growing
spec:
  runtimeClassName: wasi
  volumes:
    - {name: work, emptyDir: {}}
  containers:
    - name: guest
      image: $IMAGES/mixed:e2e
      imagePullPolicy: IfNotPresent
      args: [grow, /work]
      volumeMounts: [{name: work, mountPath: /work}]
      resources:
        requests: {memory: 64Mi}
        limits: {memory: 64Mi}
"#,
            )
            .await?;
        workload::ready(namespace, "growing").await?;
        let before = held(namespace, 200).await?;
        assert!(before < 64, "{before} MiB of 64");

        let patch = r#"{"spec":{"containers":[{"name":"guest","resources":{"requests":{"memory":"256Mi"},"limits":{"memory":"256Mi"}}}]}}"#;
        namespace.kubectl(&["patch", "pod", "growing", "--subresource", "resize", "--patch", patch]).await?;
        let pod = workload::pod_where(namespace, "growing", "a limit of 256Mi", |pod| {
            guest(pod).is_some_and(|status| limit(status).as_deref() == Some("256Mi"))
        })
        .await?;
        assert_eq!(workload::restarts(&pod, "guest"), 0);
        assert_eq!(held(namespace, 200).await?, 200);
        Ok(())
    })
    .await
}

/// Tells the guest to hold so many MiB, and returns how many it got.
async fn held(namespace: &Namespace, wanted: u32) -> Result<u32> {
    let script = format!(
        "rm -f /work/held; echo -n {wanted} > /work/new; mv /work/new /work/want; \
                          until [ -s /work/held ]; do sleep 1; done; cat /work/held"
    );
    let held = namespace
        .kubectl(&["exec", "growing", "--", "sh", "-c", &script])
        .await?;
    Ok(held.trim().parse()?)
}

fn guest(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.first()
}

/// The limit of memory that the container runs with now.
fn limit(status: &ContainerStatus) -> Option<String> {
    let limits = status.resources.as_ref()?.limits.as_ref()?;
    Some(limits.get("memory")?.0.clone())
}
