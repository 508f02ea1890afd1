//! A namespace of the Pod Security level "restricted" takes wasm pods that run as somebody else than root.

use anyhow::{Context, Result};
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::workload;

pub const RESTRICTED: &[(&str, &str)] = &[("pod-security.kubernetes.io/enforce", "restricted")];

/// `user` is a line of the container's security context.
fn pod(name: &str, image: &str, user: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata:
  name: {name}
spec:
  runtimeClassName: wasi
  restartPolicy: Never
  containers:
    - name: guest
      image: $IMAGES/{image}:e2e
      imagePullPolicy: IfNotPresent
      args: [say, restricted]
      securityContext:
        runAsNonRoot: true
        allowPrivilegeEscalation: false
        capabilities: {{drop: [ALL]}}
        seccompProfile: {{type: RuntimeDefault}}
        {user}
"#
    )
}

#[tokio::test]
async fn a_restricted_namespace_runs_an_image_with_a_numeric_user_and_one_with_run_as_user() -> Result<()> {
    Namespace::labelled("restricted", RESTRICTED, async |namespace| {
        namespace.create_from(&pod("by-image", "nonroot", "")).await?;
        namespace
            .create_from(&pod("by-pod", "probe", "runAsUser: 65532"))
            .await?;
        for name in ["by-image", "by-pod"] {
            workload::phase(namespace, name, "Succeeded").await?;
            assert_eq!(workload::logs(namespace, name, "guest").await?, "restricted\n");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_image_without_a_user_is_refused_by_name_where_root_is_not_allowed() -> Result<()> {
    Namespace::labelled("root", RESTRICTED, async |namespace| {
        namespace.create_from(&pod("nobody", "probe", "")).await?;
        workload::pod_where(namespace, "nobody", "a refusal", |pod| {
            workload::waiting(pod, "guest").as_deref() == Some("CreateContainerConfigError")
        })
        .await?;
        let described = namespace.kubectl(&["describe", "pod", "nobody"]).await?;
        assert!(
            described.contains("container has runAsNonRoot and image will run as root"),
            "{described}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_pod_that_may_be_root_does_not_get_into_a_restricted_namespace() -> Result<()> {
    Namespace::labelled("refused", RESTRICTED, async |namespace| {
        let unsafe_pod = pod("root", "probe", "").replace("runAsNonRoot: true", "runAsNonRoot: false");
        let error = namespace
            .create_from(&unsafe_pod)
            .await
            .err()
            .context("a pod of root was taken")?;
        let error = format!("{error:#}");
        assert!(error.contains("violates PodSecurity \"restricted:latest\""), "{error}");
        Ok(())
    })
    .await
}
