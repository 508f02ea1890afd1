//! Registries in the cluster: one on each node's loopback, where containerd takes plain http without being told to.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use kubewasi_testbed::image::Image;
use tokio::process::Command;

use crate::forward::Forward;
use crate::namespace::Namespace;
use crate::node::Node;
use crate::workload;

/// Ready when it listens; the kubelet asks on the node itself.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: $POD
spec:
  nodeName: $NODE
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  containers:
    - name: registry
      image: $IMAGES/registry:e2e
      imagePullPolicy: IfNotPresent
      env: [{name: REGISTRY_HTTP_ADDR, value: "127.0.0.1:$PORT"}]
      ports: [{containerPort: $PORT}]
      readinessProbe:
        tcpSocket: {host: 127.0.0.1, port: $PORT}
        periodSeconds: 1
"#;

/// A registry on each node, all with the same images.
pub struct Registry<'a> {
    namespace: &'a Namespace,
    port: u16,
    /// The names of the nodes that have one: all of the cluster.
    pub nodes: Vec<String>,
}

impl Registry<'_> {
    /// Starts one on this port of each node's loopback; scenarios that run at the same time take different ones.
    pub async fn start(namespace: &Namespace, port: u16) -> Result<Registry<'_>> {
        let nodes = Node::all(namespace).await?.into_iter().map(|node| node.name);
        let registry = Registry {
            namespace,
            port,
            nodes: nodes.collect(),
        };
        for (number, node) in registry.nodes.iter().enumerate() {
            let manifest = POD
                .replace("$POD", &pod(number))
                .replace("$NODE", node)
                .replace("$PORT", &port.to_string());
            namespace.create_from(&manifest).await?;
        }
        for number in 0..registry.nodes.len() {
            workload::ready(namespace, &pod(number)).await?;
        }
        Ok(registry)
    }

    /// Pushes an image to all of them as `name`, with or without a tag, and returns what pods pull it by.
    pub async fn push(&self, image: &Image, name: &str) -> Result<String> {
        let layout = tempfile::tempdir()?;
        image.write_folder(layout.path())?;
        let from = format!("oci:{}:latest", layout.path().display());
        for number in 0..self.nodes.len() {
            let forward = Forward::to(self.namespace, &pod(number), self.port).await?;
            let to = format!("docker://{}/{name}", forward.address);
            let copied = Command::new("skopeo")
                .args(["--insecure-policy", "copy", "--all", "--quiet", "--preserve-digests"])
                .args(["--dest-tls-verify=false", &from, &to])
                .stdin(Stdio::null())
                .kill_on_drop(true)
                .output()
                .await
                .context("cannot start skopeo: is it on PATH?")?;
            ensure!(
                copied.status.success(),
                "skopeo copy {from} {to}: {}: {}",
                copied.status,
                String::from_utf8_lossy(&copied.stderr).trim()
            );
        }
        Ok(format!("127.0.0.1:{}/{name}", self.port))
    }
}

fn pod(number: usize) -> String {
    format!("registry-{number}")
}
