//! A running guest gets other limits, without a restart.

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::node::{self, Node};
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
            limit(pod, "memory").as_deref() == Some("256Mi")
        })
        .await?;
        assert_eq!(workload::restarts(&pod, "guest"), 0);
        assert_eq!(held(namespace, 200).await?, 200);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_guest_gets_more_cpu_time_in_place() -> Result<()> {
    Namespace::with("resize-cpu", async |namespace| {
        for node in Node::all(namespace).await? {
            let name = format!("on-{}", node.name);
            let manifest = format!(
                r#"
apiVersion: v1
kind: Pod
metadata:
  name: {name}
spec:
  nodeName: {}
  runtimeClassName: wasi
  terminationGracePeriodSeconds: 1
  containers:
    - name: guest
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: [idle]
      resources:
        requests: {{cpu: 50m}}
        limits: {{cpu: 100m}}
"#,
                node.name
            );
            namespace.create_from(&manifest).await?;
            let pod = workload::ready(namespace, &name).await?;
            let guest = workload::container_id(&pod, "guest")?;
            let settings = node.cpu_settings(guest).await?;
            assert_eq!(node::quota(&settings), Some("10000"), "{settings:?}");

            let patch = r#"{"spec":{"containers":[{"name":"guest","resources":{"limits":{"cpu":"300m"}}}]}}"#;
            namespace
                .kubectl(&["patch", "pod", &name, "--subresource", "resize", "--patch", patch])
                .await?;
            let resized = workload::pod_where(namespace, &name, "a limit of 300m", |pod| {
                limit(pod, "cpu").as_deref() == Some("300m")
            })
            .await?;
            assert_eq!(workload::restarts(&resized, "guest"), 0);
            let settings = node.cpu_settings(guest).await?;
            assert_eq!(node::quota(&settings), Some("30000"), "{settings:?}");
        }
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

/// The limit that the guest runs with now.
fn limit(pod: &Pod, resource: &str) -> Option<String> {
    let limits = workload::status(pod, "guest")?.resources.as_ref()?.limits.as_ref()?;
    Some(limits.get(resource)?.0.clone())
}
