//! Wasm from a registry: an image by its digest, the CNCF wasm artifact, and a tag that moves on.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::registry::Registry;
use kubewasi_e2e::{wait, workload};
use kubewasi_testbed::image::Image;
use kubewasi_testbed::index::EVERY_NODE;

use crate::pod_security::RESTRICTED;

/// A module that writes a line.
fn says(text: &str) -> Result<Vec<u8>> {
    Ok(wat::parse_str(format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (data (i32.const 0) "\10\00\00\00\{:02x}\00\00\00")
            (data (i32.const 16) "{text}\n")
            (func (export "_start") (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#,
        text.len() + 1
    ))?)
}

/// An ordinary image, of wasm alone, whose program writes a line.
fn image(text: &str) -> Result<Image> {
    Ok(Image::with_files("image", &[("/says.wasm", &says(text)?)]).indexed(&EVERY_NODE))
}

/// What `wkg oci push` makes of such a program.
fn artifact(text: &str) -> Result<Image> {
    Ok(Image::artifact("artifact", &says(text)?))
}

/// A pod on a node, whose image is asked for anew whatever the node has; `container` are more fields of its container, as
/// YAML.
fn pod(name: &str, node: &str, image: &str, container: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata:
  name: {name}
spec:
  nodeName: {node}
  runtimeClassName: wasi
  restartPolicy: Never
  containers:
    - name: guest
      image: {image}
      imagePullPolicy: Always
      {container}
"#
    )
}

#[tokio::test]
async fn an_image_is_pulled_by_its_digest() -> Result<()> {
    Namespace::with("digest", async |namespace| {
        let registry = Registry::start(namespace, 5001).await?;
        let image = image("by digest")?;
        let pulled = format!("{}@{}", registry.push(&image, "says").await?, image.digest());
        for (number, node) in registry.nodes.iter().enumerate() {
            let name = format!("guest-{number}");
            namespace.create_from(&pod(&name, node, &pulled, "")).await?;
            let ended = workload::phase(namespace, &name, "Succeeded").await?;
            assert_eq!(workload::logs(namespace, &name, "guest").await?, "by digest\n");
            assert_eq!(image_id(&ended)?, pulled);
        }
        Ok(())
    })
    .await
}

/// The form that the wasm world publishes has no entry point, and needs any command for that. A native container is its
/// neighbour here.
#[tokio::test]
async fn the_wasm_artifact_runs_when_its_pod_names_a_command() -> Result<()> {
    Namespace::with("artifact", async |namespace| {
        let registry = Registry::start(namespace, 5002).await?;
        let pulled = registry.push(&artifact("an artifact")?, "artifact:v1").await?;
        let neighbour = r#"command: [anything]
    - name: native
      image: $IMAGES/busybox:e2e
      imagePullPolicy: IfNotPresent
      command: [echo, a neighbour]"#;
        for (number, node) in registry.nodes.iter().enumerate() {
            let name = format!("guest-{number}");
            namespace.create_from(&pod(&name, node, &pulled, neighbour)).await?;
            workload::phase(namespace, &name, "Succeeded").await?;
            assert_eq!(workload::logs(namespace, &name, "guest").await?, "an artifact\n");
            assert_eq!(workload::logs(namespace, &name, "native").await?, "a neighbour\n");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_restricted_namespace_runs_the_wasm_artifact_as_the_user_of_its_pod() -> Result<()> {
    Namespace::with("registry", async |unrestricted| {
        let registry = Registry::start(unrestricted, 5003).await?;
        let pulled = registry.push(&artifact("restricted")?, "artifact").await?;
        Namespace::labelled("restricted", RESTRICTED, async |namespace| {
            let container = r#"command: [anything]
      securityContext:
        runAsUser: 65532
        runAsNonRoot: true
        allowPrivilegeEscalation: false
        capabilities: {drop: [ALL]}
        seccompProfile: {type: RuntimeDefault}"#;
            for (number, node) in registry.nodes.iter().enumerate() {
                let name = format!("guest-{number}");
                namespace.create_from(&pod(&name, node, &pulled, container)).await?;
                workload::phase(namespace, &name, "Succeeded").await?;
                assert_eq!(workload::logs(namespace, &name, "guest").await?, "restricted\n");
            }
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn the_wasm_artifact_without_a_command_is_described_with_what_it_lacks() -> Result<()> {
    Namespace::with("commandless", async |namespace| {
        let registry = Registry::start(namespace, 5004).await?;
        let pulled = registry.push(&artifact("never")?, "artifact").await?;
        for (number, node) in registry.nodes.iter().enumerate() {
            let name = format!("guest-{number}");
            namespace.create_from(&pod(&name, node, &pulled, "")).await?;
            wait::until(
                "kubectl describe pod to say that there is no command",
                async || namespace.kubectl(&["describe", "pod", &name]).await,
                |described| described.contains("no command specified"),
            )
            .await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_tag_that_moved_on_runs_its_new_program() -> Result<()> {
    Namespace::with("moved", async |namespace| {
        let registry = Registry::start(namespace, 5005).await?;
        for version in ["one", "two"] {
            for (form, image) in [("image", image(version)?), ("artifact", artifact(version)?)] {
                let pulled = registry.push(&image, &format!("{form}:latest")).await?;
                let container = if form == "artifact" { "command: [anything]" } else { "" };
                for (number, node) in registry.nodes.iter().enumerate() {
                    let name = format!("{form}-{number}-{version}");
                    namespace.create_from(&pod(&name, node, &pulled, container)).await?;
                    workload::phase(namespace, &name, "Succeeded").await?;
                    let said = workload::logs(namespace, &name, "guest").await?;
                    assert_eq!(said, format!("{version}\n"), "{form} on {node}");
                }
            }
        }
        Ok(())
    })
    .await
}

/// What the kubelet says that the guest runs.
fn image_id(pod: &Pod) -> Result<&str> {
    let status = workload::status(pod, "guest").context("the kubelet knows no guest")?;
    Ok(&status.image_id)
}
