//! containerd's API, a call a function: what a client like the kubelet's runtime does, without a client's start-up.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    CloseIoRequest, Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteProcessRequest,
    DeleteTaskRequest, ExecProcessRequest, GetRequest, KillRequest, MetricsRequest, PauseTaskRequest, PublishRequest,
    ResumeTaskRequest, StartRequest, SubscribeRequest, WaitRequest,
};
use containerd_client::tonic::transport::{Channel, Error};
use containerd_client::tonic::{Request, Status, Streaming};
use containerd_client::types::{Envelope, Mount};
use containerd_client::with_namespace;
use prost::Message;
use prost_types::Any;

pub use containerd_client::tonic::Code;
pub use containerd_client::types::v1::Status as TaskState;

/// `runtimeoptions.v1.Options` of containerd's api/types/runtimeoptions/v1.
#[derive(Clone, PartialEq, Message)]
struct RuntimeOptions {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(string, tag = "2")]
    config_path: String,
}

/// The streams of a task, as paths of fifos; empty for none.
#[derive(Clone, Debug, Default)]
pub struct Streams {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
}

/// One namespace of a containerd; when that one comes back after its end, so does the connection.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    namespace: String,
}

impl Client {
    /// Connects to the containerd at `socket`.
    ///
    /// # Errors
    ///
    /// When nobody listens there.
    pub async fn connect(socket: &Path, namespace: &str) -> Result<Client, Error> {
        Ok(Client {
            channel: containerd_client::connect(socket).await?,
            namespace: namespace.to_owned(),
        })
    }

    fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone())
    }

    fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone())
    }

    fn events(&self) -> EventsClient<Channel> {
        EventsClient::new(self.channel.clone())
    }

    /// Makes a container's record. `options` is the file of the runtime's options, for those that take one.
    pub async fn declare(
        &self,
        id: &str,
        runtime: &str,
        options: Option<&Path>,
        spec: &serde_json::Value,
    ) -> Result<(), Status> {
        let options = options.map(|path| Any {
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
                name: runtime.into(),
                options,
            }),
            spec: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
                value: spec.to_string().into_bytes(),
            }),
            ..Default::default()
        };
        let request = CreateContainerRequest {
            container: Some(container),
        };
        let made = self.containers().create(with_namespace!(request, self.namespace)).await;
        made.map(drop)
    }

    /// Removes a container's record.
    pub async fn forget(&self, id: &str) -> Result<(), Status> {
        let request = DeleteContainerRequest { id: id.into() };
        let removed = self.containers().delete(with_namespace!(request, self.namespace)).await;
        removed.map(drop)
    }

    /// Creates a container's task; returns its pid.
    pub async fn create(&self, id: &str, rootfs: Vec<Mount>, streams: &Streams) -> Result<u32, Status> {
        let request = CreateTaskRequest {
            container_id: id.into(),
            rootfs,
            stdin: streams.stdin.clone(),
            stdout: streams.stdout.clone(),
            stderr: streams.stderr.clone(),
            ..Default::default()
        };
        let created = self.tasks().create(with_namespace!(request, self.namespace)).await;
        created.map(|reply| reply.into_inner().pid)
    }

    /// Registers a process of the task `id`; `process` is its OCI spec.
    pub async fn exec(&self, id: &str, exec_id: &str, process: &serde_json::Value) -> Result<(), Status> {
        let request = ExecProcessRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            spec: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
                value: process.to_string().into_bytes(),
            }),
            ..Default::default()
        };
        let added = self.tasks().exec(with_namespace!(request, self.namespace)).await;
        added.map(drop)
    }

    /// Starts the task `id`, or the process `exec_id` of it.
    pub async fn start(&self, id: &str, exec_id: &str) -> Result<(), Status> {
        let request = StartRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
        };
        let started = self.tasks().start(with_namespace!(request, self.namespace)).await;
        started.map(drop)
    }

    /// The task's state as containerd has it from the shim.
    pub async fn state(&self, id: &str) -> Result<TaskState, Status> {
        let request = GetRequest {
            container_id: id.into(),
            ..Default::default()
        };
        let got = self.tasks().get(with_namespace!(request, self.namespace)).await?;
        Ok(got
            .into_inner()
            .process
            .map_or(TaskState::Unknown, |process| process.status()))
    }

    /// Waits for the end of the task `id`, or of the process `exec_id` of it; returns its exit code.
    pub async fn wait(&self, id: &str, exec_id: &str) -> Result<u32, Status> {
        let request = WaitRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
        };
        let ended = self.tasks().wait(with_namespace!(request, self.namespace)).await;
        ended.map(|reply| reply.into_inner().exit_status)
    }

    /// Sends `signal` to the task's processes, to the first or to `all`.
    pub async fn kill(&self, id: &str, signal: u32, all: bool) -> Result<(), Status> {
        let request = KillRequest {
            container_id: id.into(),
            signal,
            all,
            ..Default::default()
        };
        let killed = self.tasks().kill(with_namespace!(request, self.namespace)).await;
        killed.map(drop)
    }

    pub async fn pause(&self, id: &str) -> Result<(), Status> {
        let request = PauseTaskRequest {
            container_id: id.into(),
        };
        let paused = self.tasks().pause(with_namespace!(request, self.namespace)).await;
        paused.map(drop)
    }

    pub async fn resume(&self, id: &str) -> Result<(), Status> {
        let request = ResumeTaskRequest {
            container_id: id.into(),
        };
        let resumed = self.tasks().resume(with_namespace!(request, self.namespace)).await;
        resumed.map(drop)
    }

    /// Ends the task's stdin.
    pub async fn close_stdin(&self, id: &str) -> Result<(), Status> {
        let request = CloseIoRequest {
            container_id: id.into(),
            stdin: true,
            ..Default::default()
        };
        let closed = self.tasks().close_io(with_namespace!(request, self.namespace)).await;
        closed.map(drop)
    }

    /// The type URLs of the figures of the task `id`: one, when it has any.
    pub async fn metrics(&self, id: &str) -> Result<Vec<String>, Status> {
        let request = MetricsRequest {
            filters: vec![format!("id=={id}")],
        };
        let reply = self.tasks().metrics(with_namespace!(request, self.namespace)).await?;
        let metrics = reply.into_inner().metrics;
        Ok(metrics
            .into_iter()
            .filter_map(|metric| Some(metric.data?.type_url))
            .collect())
    }

    /// Deletes the task; returns its exit code.
    pub async fn delete(&self, id: &str) -> Result<u32, Status> {
        let request = DeleteTaskRequest {
            container_id: id.into(),
        };
        let deleted = self.tasks().delete(with_namespace!(request, self.namespace)).await;
        deleted.map(|reply| reply.into_inner().exit_status)
    }

    /// Deletes the process `exec_id` of the task `id`; returns its exit code.
    pub async fn delete_exec(&self, id: &str, exec_id: &str) -> Result<u32, Status> {
        let request = DeleteProcessRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
        };
        let deleted = self
            .tasks()
            .delete_process(with_namespace!(request, self.namespace))
            .await;
        deleted.map(|reply| reply.into_inner().exit_status)
    }

    /// Everything that happens from now on; the answer comes with the first event.
    pub async fn subscribe(&self) -> Result<Streaming<Envelope>, Status> {
        let request = SubscribeRequest { filters: Vec::new() };
        let stream = self
            .events()
            .subscribe(with_namespace!(request, self.namespace))
            .await?;
        Ok(stream.into_inner())
    }

    /// Publishes an empty event under `topic`.
    pub async fn publish(&self, topic: &str) -> Result<(), Status> {
        let request = PublishRequest {
            topic: topic.into(),
            event: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
                value: b"{}".to_vec(),
            }),
        };
        let published = self.events().publish(with_namespace!(request, self.namespace)).await;
        published.map(drop)
    }
}

/// Makes the folders of a container's writable layer in `own`; the mount of its root filesystem, with `layer` below.
///
/// # Errors
///
/// When a folder cannot be made.
pub fn rootfs(layer: &Path, own: &Path) -> anyhow::Result<Mount> {
    for part in ["upper", "work"] {
        fs::create_dir_all(own.join(part)).with_context(|| format!("cannot make {}", own.display()))?;
    }
    Ok(Mount {
        r#type: "overlay".into(),
        source: "overlay".into(),
        options: vec![
            "index=off".into(),
            format!("workdir={}", own.join("work").display()),
            format!("upperdir={}", own.join("upper").display()),
            format!("lowerdir={}", layer.display()),
        ],
        ..Default::default()
    })
}
