//! Containers through containerd's own API: what a client like the kubelet's runtime does, without a client's start-up.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteTaskRequest, KillRequest,
    StartRequest, WaitRequest,
};
use containerd_client::tonic::Request;
use containerd_client::tonic::transport::Channel;
use containerd_client::types::Mount;
use containerd_client::with_namespace;
use prost::Message;
use prost_types::Any;
use serde_json::json;

/// `runtimeoptions.v1.Options` of containerd's api/types/runtimeoptions/v1.
#[derive(Clone, PartialEq, Message)]
struct RuntimeOptions {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(string, tag = "2")]
    config_path: String,
}

/// A program in a folder that a runtime can run.
#[derive(Clone, Debug)]
pub struct Workload {
    /// How tables name it.
    pub name: &'static str,
    /// The runtime's type, as containerd knows it.
    pub runtime: &'static str,
    /// The read-only layer of its root filesystem.
    pub layer: PathBuf,
    /// The path of the program in that layer.
    pub entry: String,
    /// The handler's options file, for runtimes that take one.
    pub options: Option<PathBuf>,
}

/// A private containerd.
pub struct Node {
    channel: Channel,
    namespace: String,
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
        let channel = containerd_client::connect(socket)
            .await
            .with_context(|| format!("cannot connect to containerd at {}", socket.display()))?;
        Ok(Node {
            channel,
            namespace: "bench".into(),
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
        let request = KillRequest {
            container_id: id.into(),
            signal: 9,
            all: true,
            ..Default::default()
        };
        let mut tasks = TasksClient::new(self.channel.clone());
        tasks
            .kill(with_namespace!(request, self.namespace))
            .await
            .with_context(|| format!("cannot kill {id}"))?;
        self.wait(id).await?;
        self.delete(id).await?;
        self.forget(id).await
    }

    /// Makes the container's record, and the mounts of its root filesystem: the layer below, a folder of its own above.
    async fn declare(&self, workload: &Workload, id: &str, args: &[&str]) -> Result<Vec<Mount>> {
        let own = self.folder.join("snapshots").join(id);
        for part in ["upper", "work"] {
            fs::create_dir_all(own.join(part)).with_context(|| format!("cannot make {}", own.display()))?;
        }
        let spec = serde_json::to_vec(&spec(&self.namespace, id, &workload.entry, args))?;
        let options = workload.options.as_ref().map(|path| Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value: RuntimeOptions {
                type_url: String::new(),
                config_path: path.display().to_string(),
            }
            .encode_to_vec(),
        });
        let container = Container {
            id: id.into(),
            runtime: Some(Runtime {
                name: workload.runtime.into(),
                options,
            }),
            spec: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
                value: spec,
            }),
            ..Default::default()
        };
        let request = CreateContainerRequest {
            container: Some(container),
        };
        ContainersClient::new(self.channel.clone())
            .create(with_namespace!(request, self.namespace))
            .await
            .with_context(|| format!("cannot make the container {id}"))?;
        Ok(vec![Mount {
            r#type: "overlay".into(),
            source: "overlay".into(),
            options: vec![
                "index=off".into(),
                format!("workdir={}", own.join("work").display()),
                format!("upperdir={}", own.join("upper").display()),
                format!("lowerdir={}", workload.layer.display()),
            ],
            ..Default::default()
        }])
    }

    async fn create(&self, id: &str, rootfs: Vec<Mount>) -> Result<u32> {
        let request = CreateTaskRequest {
            container_id: id.into(),
            rootfs,
            ..Default::default()
        };
        let mut tasks = TasksClient::new(self.channel.clone());
        let created = tasks.create(with_namespace!(request, self.namespace)).await;
        Ok(created
            .with_context(|| format!("cannot create the task of {id}"))?
            .into_inner()
            .pid)
    }

    async fn start(&self, id: &str) -> Result<()> {
        let request = StartRequest {
            container_id: id.into(),
            ..Default::default()
        };
        let mut tasks = TasksClient::new(self.channel.clone());
        let started = tasks.start(with_namespace!(request, self.namespace)).await;
        started.map(drop).with_context(|| format!("cannot start {id}"))
    }

    async fn wait(&self, id: &str) -> Result<u32> {
        let request = WaitRequest {
            container_id: id.into(),
            ..Default::default()
        };
        let mut tasks = TasksClient::new(self.channel.clone());
        let ended = tasks.wait(with_namespace!(request, self.namespace)).await;
        Ok(ended
            .with_context(|| format!("cannot wait for {id}"))?
            .into_inner()
            .exit_status)
    }

    async fn delete(&self, id: &str) -> Result<()> {
        let request = DeleteTaskRequest {
            container_id: id.into(),
        };
        let mut tasks = TasksClient::new(self.channel.clone());
        let deleted = tasks.delete(with_namespace!(request, self.namespace)).await;
        deleted
            .map(drop)
            .with_context(|| format!("cannot delete the task of {id}"))
    }

    async fn forget(&self, id: &str) -> Result<()> {
        let request = DeleteContainerRequest { id: id.into() };
        let mut containers = ContainersClient::new(self.channel.clone());
        let deleted = containers.delete(with_namespace!(request, self.namespace)).await;
        deleted
            .map(drop)
            .with_context(|| format!("cannot delete the container {id}"))
    }
}

/// A spec as containerd's default one is, without what differs between the runtimes under comparison.
fn spec(namespace: &str, id: &str, entry: &str, args: &[&str]) -> serde_json::Value {
    let args: Vec<&str> = [&[entry], args].concat();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": args,
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "NAME=bench"],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        ],
        "linux": {
            "cgroupsPath": format!("/{namespace}/{id}"),
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}],
        },
    })
}
