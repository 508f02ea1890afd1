//! What the agent asks of containerd's CRI plugin; it changes nothing there.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Request, Status};
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ListPodSandboxRequest, PodSandboxFilter, PodSandboxState, PodSandboxStateValue, StatusRequest, VersionRequest,
};

use super::health::{AnswerError, Health};

/// The kubelet's label of a sandbox with the pod's uid.
const POD_UID: &str = "io.kubernetes.pod.uid";
/// The longest that one call may take: a containerd that hangs is not healthy.
const CALL: Duration = Duration::from_secs(10);

/// Why containerd could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    #[error("cannot connect to {path}: {cause}", path = path.display())]
    Connect {
        path: PathBuf,
        cause: containerd_client::tonic::transport::Error,
    },
    #[error("CRI's {call}: {} ({:?})", .status.message(), .status.code())]
    Call { call: &'static str, status: Box<Status> },
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

/// A connection to CRI.
#[derive(Clone)]
pub struct Cri {
    client: RuntimeServiceClient<Channel>,
}

impl Cri {
    /// Connects to the socket at `path`.
    pub async fn connect(path: &Path) -> Result<Cri, CriError> {
        let channel = containerd_client::connect(path)
            .await
            .map_err(|cause| CriError::Connect {
                path: path.to_owned(),
                cause,
            })?;
        Ok(Cri {
            client: RuntimeServiceClient::new(channel),
        })
    }

    /// Asks `Version` and a verbose `Status`.
    pub async fn health(&mut self) -> Result<Health, CriError> {
        let version = self.client.version(timed(VersionRequest::default())).await;
        let version = version.map_err(failed("Version"))?.into_inner();
        let status = self.client.status(timed(StatusRequest { verbose: true })).await;
        let status = status.map_err(failed("Status"))?.into_inner();
        let conditions = status.status.unwrap_or_default().conditions;
        let is = |kind: &str| {
            conditions
                .iter()
                .any(|condition| condition.r#type == kind && condition.status)
        };
        let mut health = Health {
            runtime_name: version.runtime_name,
            release: version.runtime_version,
            runtime_ready: is("RuntimeReady"),
            network_ready: is("NetworkReady"),
            default_runtime: String::new(),
            handlers: BTreeMap::new(),
        };
        // Another runtime need not tell its configuration; who asks for containerd looks at the name first.
        if health.runtime_name == "containerd" {
            let config = status.info.get("config").ok_or(AnswerError::Missing("config"))?;
            health.read_config(config)?;
        }
        Ok(health)
    }

    /// How many sandboxes of `handler` run. Those of pods that have ended need no handler any more, to be removed either,
    /// and stay for as long as their pods do.
    pub async fn sandboxes(&mut self, handler: &str) -> Result<u32, CriError> {
        let ready = PodSandboxState::SandboxReady as i32;
        let all = self
            .list(PodSandboxFilter {
                state: Some(PodSandboxStateValue { state: ready }),
                ..PodSandboxFilter::default()
            })
            .await?;
        let ours = all.iter().filter(|sandbox| sandbox.runtime_handler == handler);
        Ok(u32::try_from(ours.count()).unwrap_or(u32::MAX))
    }

    /// Whether a pod is among the sandboxes.
    pub async fn has_pod(&mut self, uid: &str) -> Result<bool, CriError> {
        let filter = PodSandboxFilter {
            label_selector: HashMap::from([(POD_UID.to_owned(), uid.to_owned())]),
            ..PodSandboxFilter::default()
        };
        Ok(!self.list(filter).await?.is_empty())
    }

    async fn list(&mut self, filter: PodSandboxFilter) -> Result<Vec<k8s_cri::v1::PodSandbox>, CriError> {
        let request = timed(ListPodSandboxRequest { filter: Some(filter) });
        let answer = self.client.list_pod_sandbox(request).await;
        Ok(answer.map_err(failed("ListPodSandbox"))?.into_inner().items)
    }
}

/// A request that may take as long as a call may.
pub(super) fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL);
    request
}

fn failed(call: &'static str) -> impl FnOnce(Status) -> CriError {
    move |status| CriError::Call {
        call,
        status: Box::new(status),
    }
}
