//! A wasm pod counts with its overhead, which the RuntimeClass has.

use anyhow::Result;
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::{wait, workload};

const QUOTA: &str = r#"
apiVersion: v1
kind: ResourceQuota
metadata:
  name: small
spec:
  hard: {requests.memory: 12Mi}
"#;

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: $NAME
spec:
  runtimeClassName: wasi
  terminationGracePeriodSeconds: 1
  containers:
    - name: guest
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: [idle]
      resources: {requests: {memory: 8Mi}}
"#;

#[tokio::test]
async fn a_quota_counts_the_overhead_of_wasm_pods() -> Result<()> {
    Namespace::with("quota", async |namespace| {
        namespace.create_from(QUOTA).await?;
        let quotas = namespace.api::<ResourceQuota>();
        let used = async || {
            let status = quotas.get("small").await?.status.unwrap_or_default();
            let used = status.used.unwrap_or_default();
            Ok(used.get("requests.memory").map(|memory| memory.0.clone()))
        };
        wait::until("the quota to be counted", used, Option::is_some).await?;
        namespace.create_from(&POD.replace("$NAME", "first")).await?;
        workload::ready(namespace, "first").await?;

        let pod = namespace.api::<Pod>().get("first").await?;
        let overhead = pod.spec.and_then(|spec| spec.overhead).unwrap_or_default();
        assert_eq!(overhead.get("memory").map(|memory| memory.0.as_str()), Some("2Mi"));
        let used = wait::until("the pod to be counted", used, |used| used.as_deref() != Some("0")).await?;
        assert_eq!(used.as_deref(), Some("10Mi"), "8Mi of the container and 2Mi beside it");

        let error = namespace
            .create_from(&POD.replace("$NAME", "second"))
            .await
            .unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.contains("exceeded quota: small, requested: requests.memory=10Mi"),
            "{error}"
        );
        Ok(())
    })
    .await
}
