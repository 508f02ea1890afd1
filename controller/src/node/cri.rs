//! What the agent asks of containerd's CRI plugin; it changes nothing there.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::PluginsRequest;
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::tonic::transport::{self, Channel};
use containerd_client::tonic::{Code, Request, Status};
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ListPodSandboxRequest, PodSandboxFilter, PodSandboxState, PodSandboxStateValue, StatusRequest, VersionRequest,
};

use super::health::{AnswerError, Health};

/// The kubelet's label of a sandbox with the pod's uid.
const POD_UID: &str = "io.kubernetes.pod.uid";
/// The longest that one call may take: a containerd that hangs is not healthy.
const CALL: Duration = Duration::from_secs(10);
/// The type of the plugins that serve gRPC, and CRI's id among them.
const GRPC_PLUGIN: &str = "io.containerd.grpc.v1";
const CRI_PLUGIN: &str = "cri";
/// The plugins that CRI's is made of since 2.0: their errors say more than its own.
const CRI_PARTS: &str = "io.containerd.cri.v1";

/// Why there is no connection to containerd.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot connect to {path}: {why}", path = path.display(), why = innermost(cause))]
    Refused { path: PathBuf, cause: transport::Error },
    #[error("{path} does not accept a connection within {secs} seconds", path = path.display(), secs = CALL.as_secs())]
    TimedOut { path: PathBuf },
}

/// Why containerd could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("CRI's {call}: {} ({:?})", .status.message(), .status.code())]
    Call { call: &'static str, status: Box<Status> },
    #[error("containerd does not answer CRI's {call} within {secs} seconds", secs = CALL.as_secs())]
    NoAnswer { call: &'static str },
    #[error("containerd has no CRI plugin")]
    Disabled,
    #[error("containerd's CRI plugin did not load: {cause}")]
    NotLoaded { cause: String },
    #[error("containerd does not serve version 1 of CRI")]
    OtherVersion,
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

/// Connects to the containerd whose socket is at `path`.
///
/// # Errors
///
/// When nothing accepts the connection within ten seconds.
pub(super) async fn connect(path: &Path) -> Result<Channel, ConnectError> {
    match tokio::time::timeout(CALL, containerd_client::connect(path)).await {
        Ok(channel) => channel.map_err(|cause| ConnectError::Refused {
            path: path.to_owned(),
            cause,
        }),
        Err(_) => Err(ConnectError::TimedOut { path: path.to_owned() }),
    }
}

/// A connection to CRI.
#[derive(Clone)]
pub struct Cri {
    channel: Channel,
    client: RuntimeServiceClient<Channel>,
}

impl Cri {
    /// Connects to the socket at `path`.
    pub async fn connect(path: &Path) -> Result<Cri, CriError> {
        let channel = connect(path).await?;
        Ok(Cri {
            client: RuntimeServiceClient::new(channel.clone()),
            channel,
        })
    }

    /// Asks `Version` and a verbose `Status`.
    pub async fn health(&mut self) -> Result<Health, CriError> {
        let version = match self.client.version(timed(VersionRequest::default())).await {
            Ok(version) => version.into_inner(),
            Err(status) if status.code() == Code::Unimplemented => return Err(self.missing().await?),
            Err(status) => return Err(failed("Version")(status)),
        };
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
        // Another runtime need not report its configuration; callers check the name first.
        if health.runtime_name == "containerd" {
            let config = status.info.get("config").ok_or(AnswerError::Missing("config"))?;
            health.read_config(config)?;
        }
        Ok(health)
    }

    /// Why a containerd does not serve CRI, by its list of plugins.
    async fn missing(&self) -> Result<CriError, CriError> {
        let answer = IntrospectionClient::new(self.channel.clone())
            .plugins(timed(PluginsRequest::default()))
            .await;
        let plugins = answer.map_err(failed("Plugins"))?.into_inner().plugins;
        let error_of = |is_meant: &dyn Fn(&str, &str) -> bool| {
            plugins
                .iter()
                .filter(|plugin| is_meant(&plugin.r#type, &plugin.id))
                .find_map(|plugin| plugin.init_err.as_ref())
                .map(|error| error.message.clone())
        };
        let is_cri = |kind: &str, id: &str| kind == GRPC_PLUGIN && id == CRI_PLUGIN;
        if !plugins.iter().any(|plugin| is_cri(&plugin.r#type, &plugin.id)) {
            return Ok(CriError::Disabled);
        }
        Ok(
            match error_of(&|kind, _| kind == CRI_PARTS).or_else(|| error_of(&is_cri)) {
                Some(cause) => CriError::NotLoaded { cause },
                None => CriError::OtherVersion,
            },
        )
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
    move |status| match status.code() {
        // The first is the client's own timeout.
        Code::Cancelled | Code::DeadlineExceeded => CriError::NoAnswer { call },
        _ => CriError::Call {
            call,
            status: Box::new(status),
        },
    }
}

/// The root cause of an error: the transport's own texts name their layer only.
fn innermost(error: &transport::Error) -> String {
    let mut innermost: &dyn Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
