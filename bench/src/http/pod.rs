//! A server in a container: a service by us, a native one by runc.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use kubewasi_bench::client::{Client, Streams, rootfs};
use serde_json::json;

/// Where containers are made.
#[derive(Clone)]
pub struct Node {
    pub client: Client,
    /// Takes snapshots and logs.
    pub folder: PathBuf,
    /// Holds the components, and the programs of native servers.
    pub layer: PathBuf,
    /// The wasi handler's name for containerd, or the path of its shim.
    pub runtime: String,
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
    /// At the containerd that listens on `socket`, with the shim on its PATH and without options.
    pub async fn connect(socket: &str, folder: &str, layer: &str) -> Result<Node> {
        Ok(Node {
            client: Client::connect(Path::new(socket), "bench-http").await?,
            folder: folder.into(),
            layer: layer.into(),
            runtime: "io.containerd.wasi.v1".into(),
            options: PathBuf::new(),
        })
    }

    /// Starts the component `file` with these annotations, `kubewasi.dev/` before each key.
    pub async fn start(&self, id: &str, file: &str, annotations: &[(&str, &str)]) -> Result<Pod<'_>> {
        let annotations: serde_json::Map<_, _> = annotations
            .iter()
            .map(|(key, value)| (format!("kubewasi.dev/{key}"), json!(value)))
            .collect();
        let mut spec = spec(id, &[format!("/{file}")]);
        spec["annotations"] = annotations.into();
        self.run(id, &self.runtime, Some(&self.options), &spec).await
    }

    /// Starts a native server by runc, in the same root filesystem and in control groups like a service's.
    pub async fn start_native(&self, id: &str, args: &[String]) -> Result<Pod<'_>> {
        self.run(id, "io.containerd.runc.v2", None, &spec(id, args)).await
    }

    async fn run(&self, id: &str, runtime: &str, options: Option<&Path>, spec: &serde_json::Value) -> Result<Pod<'_>> {
        let rootfs = rootfs(&self.layer, &self.folder.join("snapshots").join(id))?;
        let log = self.folder.join(format!("{id}.log"));
        let stream = format!("file://{}", log.display());
        let streams = Streams {
            stdout: stream.clone(),
            stderr: stream,
            ..Streams::default()
        };
        self.client.declare(id, runtime, options, spec).await?;
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
    /// Ends it by SIGTERM; what it wrote.
    ///
    /// # Errors
    ///
    /// When it does not exit with 0.
    pub async fn end(self) -> Result<String> {
        let code = self.signal(15).await?;
        ensure!(code == 0, "{} exited with {code}", self.id);
        std::fs::read_to_string(&self.log).with_context(|| format!("cannot read {}", self.log.display()))
    }

    /// Ends it by SIGKILL.
    pub async fn kill(self) -> Result<()> {
        self.signal(9).await.map(drop)
    }

    async fn signal(&self, signal: u32) -> Result<u32> {
        let (client, id) = (&self.node.client, &self.id);
        client.kill(id, signal, true).await?;
        let code = client.wait(id, "").await?;
        client.delete(id).await?;
        client.forget(id).await?;
        Ok(code)
    }
}

/// A process in the network namespace of its containerd.
fn spec(id: &str, args: &[String]) -> serde_json::Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "cwd": "/",
            "args": args,
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        ],
        "linux": {
            "cgroupsPath": format!("/bench-http/{id}"),
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
        },
    })
}
