//! Containers through containerd's own API: what a client like the kubelet's runtime does, without a client's start-up.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use containerd_client::types::Mount;
use kubewasi_bench::client::{Client, Streams, rootfs};
use serde_json::json;

/// The containerd namespace of all that is measured.
const NAMESPACE: &str = "bench";

/// The types of the runtimes that are measured.
pub const WASI: &str = "io.containerd.wasi.v1";
pub const RUNC: &str = "io.containerd.runc.v2";

/// A program in a folder that a runtime can run.
#[derive(Clone, Debug)]
pub struct Workload {
    /// How tables name it.
    pub name: &'static str,
    /// The runtime's type, as containerd knows it, or the path of its shim.
    pub runtime: String,
    /// The read-only layer of its root filesystem.
    pub layer: PathBuf,
    /// The program in that layer and its arguments.
    pub command: Vec<String>,
    /// What it finds in its environment, beside `PATH` and `NAME`.
    pub environment: Vec<String>,
    /// The handler's options file, for runtimes that take one.
    pub options: Option<PathBuf>,
}

impl Workload {
    /// `examples/hello` as a component, by the shim on containerd's PATH and without options.
    pub fn hello(layer: &Path) -> Workload {
        Workload {
            name: "wasi",
            runtime: WASI.into(),
            layer: layer.into(),
            command: vec!["/hello.wasm".into()],
            environment: Vec::new(),
            options: None,
        }
    }
}

/// A private containerd.
pub struct Node {
    client: Client,
    /// Where the writable layers of containers are made.
    folder: PathBuf,
}

/// How long one container's life took, from the Create call to the answer of Delete.
#[derive(Clone, Copy, Debug)]
pub struct Lifecycle {
    /// Until the program had been started.
    pub start: Duration,
    /// Until the program had ended and everything was gone.
    pub whole: Duration,
}

impl Node {
    pub async fn connect(socket: &Path, folder: &Path) -> Result<Node> {
        let client = Client::connect(socket, NAMESPACE).await;
        Ok(Node {
            client: client.with_context(|| format!("cannot connect to containerd at {}", socket.display()))?,
            folder: folder.to_owned(),
        })
    }

    /// Runs a container to its end.
    pub async fn lifecycle(&self, workload: &Workload, id: &str) -> Result<Lifecycle> {
        let rootfs = self.declare(workload, id, &[]).await?;
        let since = Instant::now();
        self.create(id, rootfs).await?;
        self.start(id).await?;
        let start = since.elapsed();
        let code = self.wait(id).await?;
        self.delete(id).await?;
        let whole = since.elapsed();
        ensure!(code == 0, "{id} ({}) exited with {code}", workload.name);
        self.forget(id).await?;
        Ok(Lifecycle { start, whole })
    }

    /// Starts a container that idles, and returns its pid.
    pub async fn idle(&self, workload: &Workload, id: &str) -> Result<u32> {
        let rootfs = self.declare(workload, id, &["idle"]).await?;
        let pid = self.create(id, rootfs).await?;
        self.start(id).await?;
        Ok(pid)
    }

    /// Kills a container and removes all of it.
    pub async fn remove(&self, id: &str) -> Result<()> {
        let killed = self.client.kill(id, 9, true).await;
        killed.with_context(|| format!("cannot kill {id}"))?;
        self.wait(id).await?;
        self.delete(id).await?;
        self.forget(id).await
    }

    /// Makes the container's record, and the mounts of its root filesystem: the layer below, a folder of its own above.
    async fn declare(&self, workload: &Workload, id: &str, args: &[&str]) -> Result<Vec<Mount>> {
        let rootfs = rootfs(&workload.layer, &self.folder.join("snapshots").join(id))?;
        let spec = spec(id, workload, args);
        let declared = self
            .client
            .declare(id, &workload.runtime, workload.options.as_deref(), &spec)
            .await;
        declared.with_context(|| format!("cannot make the container {id}"))?;
        Ok(vec![rootfs])
    }

    async fn create(&self, id: &str, rootfs: Vec<Mount>) -> Result<u32> {
        let created = self.client.create(id, rootfs, &Streams::default()).await;
        created.with_context(|| format!("cannot create the task of {id}"))
    }

    async fn start(&self, id: &str) -> Result<()> {
        let started = self.client.start(id, "").await;
        started.with_context(|| format!("cannot start {id}"))
    }

    async fn wait(&self, id: &str) -> Result<u32> {
        let ended = self.client.wait(id, "").await;
        ended.with_context(|| format!("cannot wait for {id}"))
    }

    async fn delete(&self, id: &str) -> Result<u32> {
        let deleted = self.client.delete(id).await;
        deleted.with_context(|| format!("cannot delete the task of {id}"))
    }

    async fn forget(&self, id: &str) -> Result<()> {
        let deleted = self.client.forget(id).await;
        deleted.with_context(|| format!("cannot delete the container {id}"))
    }
}

/// A spec as containerd's default one is, without what differs between the runtimes under comparison.
fn spec(id: &str, workload: &Workload, args: &[&str]) -> serde_json::Value {
    let args: Vec<&str> = workload
        .command
        .iter()
        .map(String::as_str)
        .chain(args.iter().copied())
        .collect();
    let mut environment = vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "NAME=bench"];
    environment.extend(workload.environment.iter().map(String::as_str));
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": args,
            "env": environment,
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        ],
        "linux": {
            "cgroupsPath": format!("/{NAMESPACE}/{id}"),
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}],
        },
    })
}
