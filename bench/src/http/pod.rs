//! A service in a container of ours.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use kubewasi_bench::client::{Client, Streams, rootfs};
use serde_json::json;

/// Where containers are made.
pub struct Node {
    pub client: Client,
    /// Takes snapshots and logs.
    pub folder: PathBuf,
    /// Holds the components.
    pub layer: PathBuf,
    /// The wasi handler's options file.
    pub options: PathBuf,
}

/// A service that runs.
pub struct Pod<'a> {
    node: &'a Node,
    id: String,
    pub pid: u32,
    log: PathBuf,
}

impl Node {
    /// Starts the component `file` with these annotations, `kubewasi.dev/` before each key.
    pub async fn start(&self, id: &str, file: &str, annotations: &[(&str, &str)]) -> Result<Pod<'_>> {
        let rootfs = rootfs(&self.layer, &self.folder.join("snapshots").join(id))?;
        let log = self.folder.join(format!("{id}.log"));
        let streams = Streams {
            stdout: format!("file://{}", log.display()),
            ..Streams::default()
        };
        let spec = spec(id, file, annotations);
        self.client
            .declare(id, "io.containerd.wasi.v1", Some(&self.options), &spec)
            .await?;
        let pid = self.client.create(id, vec![rootfs], &streams).await?;
        self.client.start(id, "").await?;
        let id = id.to_owned();
        Ok(Pod {
            node: self,
            id,
            pid,
            log,
        })
    }
}

impl Pod<'_> {
    /// Ends it by SIGTERM; what it wrote on stdout.
    ///
    /// # Errors
    ///
    /// When it does not exit with 0.
    pub async fn end(self) -> Result<String> {
        let (client, id) = (&self.node.client, &self.id);
        client.kill(id, 15, true).await?;
        let code = client.wait(id, "").await?;
        client.delete(id).await?;
        client.forget(id).await?;
        ensure!(code == 0, "{id} exited with {code}");
        std::fs::read_to_string(&self.log).with_context(|| format!("cannot read {}", self.log.display()))
    }
}

/// A service in the network namespace of its containerd.
fn spec(id: &str, file: &str, annotations: &[(&str, &str)]) -> serde_json::Value {
    let annotations: serde_json::Map<_, _> = annotations
        .iter()
        .map(|(key, value)| (format!("kubewasi.dev/{key}"), json!(value)))
        .collect();
    json!({
        "ociVersion": "1.0.2",
        "annotations": annotations,
        "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": [format!("/{file}")], "noNewPrivileges": true},
        "root": {"path": "rootfs"},
        "linux": {
            "cgroupsPath": format!("/bench-http/{id}"),
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
        },
    })
}
