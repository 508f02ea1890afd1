//! Requests and limits of cpu time hold a guest as they hold any container.

use anyhow::Result;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::node::{self, Node};
use kubewasi_e2e::{wait, workload};

/// Two containers that take all the cpu time they get.
const BUSY: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: $NAME
spec:
  nodeName: $NODE
  runtimeClassName: wasi
  terminationGracePeriodSeconds: 0
  containers:
    - name: guest
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: [spin]
      resources: {requests: {cpu: 50m}, limits: {cpu: 200m}}
    - name: native
      image: $IMAGES/busybox:e2e
      imagePullPolicy: IfNotPresent
      command: [sh, -c, "while :; do :; done"]
      resources: {requests: {cpu: 50m}, limits: {cpu: 200m}}
"#;

#[tokio::test]
async fn a_guest_that_spins_is_held_to_its_limit_as_a_native_container_is() -> Result<()> {
    Namespace::with("cpu", async |namespace| {
        // Nodes may differ in versions and drivers of cgroups.
        for node in Node::all(namespace).await? {
            let name = format!("on-{}", node.name);
            let manifest = BUSY.replace("$NAME", &name).replace("$NODE", &node.name);
            namespace.create_from(&manifest).await?;
            let pod = workload::ready(namespace, &name).await?;
            let [guest, native] = [
                workload::container_id(&pod, "guest")?,
                workload::container_id(&pod, "native")?,
            ];
            let settings = node.cpu_settings(guest).await?;
            // 200 of 1000 millicores are 20000 of 100000 µs.
            assert_eq!(node::quota(&settings), Some("20000"), "{settings:?}");
            assert_eq!(settings, node.cpu_settings(native).await?);
            wait::until(
                "the guest to be throttled",
                async || node.throttled(guest).await,
                |times| *times > 0,
            )
            .await?;
        }
        Ok(())
    })
    .await
}
