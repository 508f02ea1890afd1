//! The proof of a node: containerd runs a wasm module by the handler, as it would a pod's container.
//!
//! The task API is used, since CRI would need an image and a network. Runtime type, path and the form of cgroups are
//! those of the running CRI plugin, so it is containerd that starts the shim's server, in its own cgroup.

use std::path::Path;
use std::time::{Duration, SystemTime};

use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteNamespaceRequest,
    DeleteTaskRequest, KillRequest, StartRequest, WaitRequest,
};
use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Code, Request, Status};
use containerd_client::types::Mount;
use prost_types::Any;
use serde_json::{Value as Json, json};

use super::cri::{ConnectError, connect, timed};
use super::durable::{self, WriteError};
use super::health::Health;
use super::layout::Layout;

/// The module: it exits with the code that it is asked for.
const MODULE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/smoke.wasm"));
const NAME: &str = "smoke.wasm";
/// The longest that all of it may take; the first one on a node compiles.
const LIMIT: Duration = Duration::from_secs(60);

/// How the module did not run.
#[derive(Debug, thiserror::Error)]
pub enum SmokeError {
    #[error("the running containerd does not list the handler {0:?}")]
    NotListed(String),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("containerd could not {act} the test container: {}", .status.message())]
    Call { act: &'static str, status: Box<Status> },
    #[error("the test module ended with {found}, and was asked to end with {asked}")]
    Code { found: u32, asked: u32 },
    #[error("the test module did not end within {} seconds", LIMIT.as_secs())]
    TimedOut,
}

/// Writes the module's root filesystem.
pub fn install(layout: &Layout) -> Result<(), WriteError> {
    durable::make_folder(&layout.smoke())?;
    durable::ensure(&layout.smoke().join(NAME), MODULE, 0o755)
}

/// Runs the module by `handler`, as the running CRI plugin (`health`) has it, on the containerd at `socket`.
pub async fn run(socket: &Path, layout: &Layout, health: &Health, handler: &str) -> Result<(), SmokeError> {
    let entry = health.handlers.get(handler);
    let entry = entry.ok_or_else(|| SmokeError::NotListed(handler.to_owned()))?;
    let smoke = Smoke {
        channel: connect(socket).await?,
        namespace: format!("kubewasi-smoke-{}", layout.runtime()),
        // One of an agent that was killed has another id.
        id: format!("smoke-{}-{}", std::process::id(), fresh_number()),
    };
    let asked = 1 + fresh_number() % 90;
    let ran = tokio::time::timeout(LIMIT, smoke.run(layout, health, entry, asked)).await;
    smoke.clean().await;
    match ran.map_err(|_| SmokeError::TimedOut)?? {
        found if found == asked => Ok(()),
        found => Err(SmokeError::Code { found, asked }),
    }
}

/// A number that the last run did not have.
fn fresh_number() -> u32 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| now.subsec_micros())
}

struct Smoke {
    channel: Channel,
    namespace: String,
    id: String,
}

impl Smoke {
    async fn run(&self, layout: &Layout, health: &Health, entry: &Json, asked: u32) -> Result<u32, SmokeError> {
        let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        let spec = spec(&self.id, health.systemd_cgroups(), asked);
        let container = Container {
            id: self.id.clone(),
            runtime: Some(Runtime {
                name: text("runtimeType"),
                options: None,
            }),
            spec: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".to_owned(),
                value: spec.to_string().into_bytes(),
            }),
            ..Container::default()
        };
        let request = self.request(CreateContainerRequest {
            container: Some(container),
        });
        self.containers().create(request).await.map_err(failed("record"))?;
        let root = Mount {
            r#type: "bind".to_owned(),
            source: layout.smoke().display().to_string(),
            options: vec!["rbind".to_owned(), "ro".to_owned()],
            ..Mount::default()
        };
        let request = self.request(CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs: vec![root],
            runtime_path: text("runtimePath"),
            ..CreateTaskRequest::default()
        });
        let mut tasks = self.tasks();
        tasks.create(request).await.map_err(failed("create"))?;
        let request = self.request(StartRequest {
            container_id: self.id.clone(),
            ..StartRequest::default()
        });
        tasks.start(request).await.map_err(failed("start"))?;
        let request = self.request(WaitRequest {
            container_id: self.id.clone(),
            ..WaitRequest::default()
        });
        let ended = tasks.wait(request).await.map_err(failed("wait for"))?;
        Ok(ended.into_inner().exit_status)
    }

    /// Takes everything away; what is left of a failed run is told, and the proof's own result counts.
    async fn clean(&self) {
        // containerd waits for a shim that hangs for as long as it is let.
        let kill = self.timed(KillRequest {
            container_id: self.id.clone(),
            signal: 9,
            all: true,
            ..KillRequest::default()
        });
        let wait = self.timed(WaitRequest {
            container_id: self.id.clone(),
            ..WaitRequest::default()
        });
        let task = self.timed(DeleteTaskRequest {
            container_id: self.id.clone(),
        });
        let container = self.timed(DeleteContainerRequest { id: self.id.clone() });
        let namespace = self.timed(DeleteNamespaceRequest {
            name: self.namespace.clone(),
        });
        let mut tasks = self.tasks();
        if tasks.kill(kill).await.is_ok() {
            let _ = tasks.wait(wait).await;
        }
        let left = [
            tasks.delete(task).await.map(drop).err(),
            self.containers().delete(container).await.map(drop).err(),
            NamespacesClient::new(self.channel.clone())
                .delete(namespace)
                .await
                .map(drop)
                .err(),
        ];
        for status in left
            .into_iter()
            .flatten()
            .filter(|status| status.code() != Code::NotFound)
        {
            tracing::warn!(
                id = self.id,
                namespace = self.namespace,
                error = status.message(),
                "left in containerd"
            );
        }
    }

    fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone())
    }

    fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone())
    }

    fn request<T>(&self, message: T) -> Request<T> {
        in_namespace(Request::new(message), &self.namespace)
    }

    fn timed<T>(&self, message: T) -> Request<T> {
        in_namespace(timed(message), &self.namespace)
    }
}

/// A request about what is in one of containerd's namespaces.
pub(super) fn in_namespace<T>(mut request: Request<T>, namespace: &str) -> Request<T> {
    // containerd's names are identifiers, which every header takes.
    if let Ok(namespace) = namespace.parse() {
        request.metadata_mut().insert("containerd-namespace", namespace);
    }
    request
}

fn failed(act: &'static str) -> impl FnOnce(Status) -> SmokeError {
    move |status| SmokeError::Call {
        act,
        status: Box::new(status),
    }
}

/// The container: an unprivileged user, namespaces of its own, and a cgroup of the form that pods of this node get.
fn spec(id: &str, systemd_cgroups: bool, asked: u32) -> Json {
    let cgroup = match systemd_cgroups {
        true => format!("system.slice:kubewasi:{id}"),
        false => format!("/kubewasi-{id}"),
    };
    let argument = char::from_u32(32 + asked).unwrap_or(' ').to_string();
    let namespaces = ["pid", "ipc", "uts", "mount", "network"].map(|kind| json!({"type": kind}));
    json!({
        "ociVersion": "1.1.0",
        "process": {
            "user": {"uid": 65532, "gid": 65532},
            "args": [format!("/{NAME}"), argument],
            "env": [], "cwd": "/", "noNewPrivileges": true, "capabilities": {},
        },
        "root": {"path": "rootfs", "readonly": true},
        "mounts": [],
        "linux": {"namespaces": namespaces, "cgroupsPath": cgroup},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_that_is_asked_for_is_a_character_of_its_own() {
        for asked in 1..=90 {
            let spec = spec("x", true, asked);
            let argument = spec["process"]["args"][1].as_str().unwrap();
            assert_eq!(argument.as_bytes(), [32 + u8::try_from(asked).unwrap()]);
        }
    }

    #[test]
    fn the_cgroup_has_the_form_of_the_nodes_pods() {
        assert_eq!(spec("x", true, 1)["linux"]["cgroupsPath"], "system.slice:kubewasi:x");
        assert_eq!(spec("x", false, 1)["linux"]["cgroupsPath"], "/kubewasi-x");
    }
}
