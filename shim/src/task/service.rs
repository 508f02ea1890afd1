//! The task API, under both of its names.
//!
//! ttrpc drops a handler when the client's deadline passes or its connection closes, so whatever changes something runs
//! in a task of its own to its end; a panic there is that one request's internal error.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use containerd_shim_protos::api::*;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};
use containerd_shim_protos::shim_async::{Task, create_task};
use containerd_shim_protos::ttrpc;
use kubewasi_options::Options;
use tracing::Instrument;
use ttrpc::asynchronous::{Service, TtrpcContext};

use super::container::Container;
use super::containers::Containers;
use super::control;
use super::create;
use super::error::TaskError;
use super::events::timestamp;
use super::exec;
use super::forward::Publisher;
use super::phase::{Move, Phase};
use super::pids;
use super::process::Process;
use super::sockets::Sockets;
use crate::bootstrap::remains;
use crate::bootstrap::sinks::Sinks;
use crate::compile::Artifacts;
use crate::image::Images;
use crate::native;
use crate::observe::metrics::Metrics;
use crate::sandbox::control::Launcher;
use crate::stdio::Size;
use crate::sys::child::Exit;

/// What all containers of the server share.
pub struct Node {
    pub containers: Containers,
    pub events: Publisher,
    pub sinks: Arc<Sinks>,
    pub images: Arc<Images>,
    pub artifacts: Arc<Artifacts>,
    pub launcher: Launcher,
    /// The handler's.
    pub options: Options,
    pub natives: native::Runtime,
    pub sockets: Sockets,
    pub metrics: Arc<Metrics>,
    /// How many requests are being answered.
    pub requests: AtomicUsize,
}

/// The name under which containerd speaks to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    V2,
    V3,
}

/// Both names of the task API on one table of methods, v3 is v2 renamed, for the containers of `namespace`.
pub fn services(node: &Arc<Node>, namespace: &str) -> HashMap<String, Service> {
    let service = |api| {
        create_task(Arc::new(TaskService {
            node: node.clone(),
            namespace: namespace.to_owned(),
            api,
        }))
    };
    let mut services = service(Api::V3);
    services.extend(
        service(Api::V2)
            .into_values()
            .map(|v2| ("containerd.task.v2.Task".to_owned(), v2)),
    );
    services
}

struct TaskService {
    node: Arc<Node>,
    /// The namespace of all containers that are asked for here.
    namespace: String,
    api: Api,
}

/// Counts a request while it is answered.
struct Answering<'a>(&'a AtomicUsize);

impl<'a> Answering<'a> {
    fn new(requests: &'a AtomicUsize) -> Answering<'a> {
        requests.fetch_add(1, Ordering::Relaxed);
        Answering(requests)
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// When a request has to be answered for its client to learn why it is not met yet: a tenth of the client's timeout before
/// the client gives up, at most [`TO_ANSWER`]. `None` when the client sets no timeout, as `ctr` and Docker do. The kubelet's
/// is `--runtime-request-timeout`, 2 minutes by default, and arrives by CRI and ttrpc in nanoseconds.
fn deadline(now: Instant, timeout_nano: i64) -> Option<Instant> {
    let timeout = u64::try_from(timeout_nano).ok().filter(|nanos| *nanos > 0)?;
    let timeout = Duration::from_nanos(timeout);
    now.checked_add(timeout - (timeout / 10).min(TO_ANSWER))
}

/// The time that an answer takes to its client on a busy node.
const TO_ANSWER: Duration = Duration::from_secs(10);

/// Runs `work` to its end, whatever becomes of the request.
async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T, TaskError>> + Send + 'static,
) -> Result<T, TaskError> {
    tokio::spawn(work).await?
}

impl TaskService {
    fn container(&self, id: &str) -> Result<Arc<Container>, TaskError> {
        self.node.containers.get(&self.namespace, id)
    }

    /// The container of a request, and its process that is asked for.
    fn process(&self, id: &str, exec_id: &str) -> Result<(Arc<Container>, Arc<Process>), TaskError> {
        let container = self.container(id)?;
        let process = container.process(exec_id)?;
        Ok((container, process))
    }

    fn not_yet(&self, id: &str, what: &str) -> ttrpc::Error {
        match self.container(id) {
            Ok(_) => TaskError::NotYet(what.to_owned()).into(),
            Err(error) => error.into(),
        }
    }
}

/// Gives the start.
async fn start(node: &Node, container: &Container) -> Result<u32, TaskError> {
    let begun = Instant::now();
    let body = container.body()?;
    container.step(Move::Start, &node.events)?;
    if let Err(error) = body.start(&container.facts().id).await {
        tracing::warn!(%error, "cannot start the container");
        container.step(Move::FailStart, &node.events)?;
        return Err(error);
    }
    container.step(Move::Started, &node.events)?;
    if let Some(made) = container.made() {
        node.metrics
            .started(&made.identity, made.kind, made.took + begun.elapsed());
    }
    tracing::info!(pid = container.pid(), "container started");
    Ok(container.pid())
}

/// Removes what a stopped container holds; returns how it ended.
pub async fn delete(node: &Arc<Node>, container: &Arc<Container>) -> Result<Exit, TaskError> {
    if container.phase() == Phase::Creating {
        // containerd 2.x deletes so what it gave up to create; nobody will ask for it again.
        container.give_up();
        if container.init.until(|phase| *phase != Phase::Creating).await == Phase::Deleted(None) {
            return Err(container.facts().unknown());
        }
    }
    if container.phase() == Phase::Created {
        // It never ran, so there is no exit that containerd could have waited for.
        container.kill().await?;
    }
    container.step(Move::Delete, &node.events)?;
    let bundle = container.facts().bundle.clone();
    let cleaned = tokio::task::spawn_blocking(move || remains::clean(&bundle)).await;
    match cleaned.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
        Ok(None) => {}
        Ok(Some(hooks)) => node.launcher.poststop(hooks, container.given_up()).await,
        Err(cause) => {
            container.step(Move::FailDelete, &node.events)?;
            tracing::error!(%cause, "cannot delete the container");
            return Err(TaskError::Io {
                id: container.facts().id.clone(),
                act: "remove what it holds",
                cause,
            });
        }
    }
    end_streams(node, &container.init).await;
    let exit = container.ended().await?;
    container.step(Move::Deleted, &node.events)?;
    tracing::info!("container deleted");
    node.containers.remove(container);
    if let Some(made) = container.made()
        && node
            .containers
            .get(&container.facts().namespace, &made.identity.sandbox)
            .is_err()
    {
        node.metrics.forget(&made.identity.sandbox);
    }
    node.sinks.close(&container.key());
    Ok(exit)
}

/// How long output that nobody has read outlives its container, as containerd's own shim has it
/// (cmd/containerd-shim-runc-v2/process/init.go, `waitTimeout`).
const LINGER: Duration = Duration::from_secs(10);

/// Ends the streams of a process that is gone. Its logger's end is waited for; a reader that is late is not, but by the
/// server's end.
pub async fn end_streams(node: &Arc<Node>, process: &Process) {
    let (node, mut kept) = (node.clone(), process.take_streams());
    kept.end_logger().await;
    tokio::spawn(
        async move {
            let _answering = Answering::new(&node.requests);
            kept.linger(LINGER).await;
        }
        .in_current_span(),
    );
}

/// Ends and removes a container that containerd has given up; `None` when there is none.
pub async fn force_delete(node: &Arc<Node>, key: &(String, String)) -> Result<Option<(u32, Exit)>, TaskError> {
    let Some(container) = node.containers.find(key) else {
        return Ok(None);
    };
    container.give_up();
    container.kill().await?;
    let pid = container.pid();
    match delete(node, &container).instrument(container.span.clone()).await {
        Ok(exit) => Ok(Some((pid, exit))),
        // Somebody else deletes it already; a Create that failed has left nothing.
        Err(TaskError::Phase { .. }) => {
            let phase = container
                .init
                .until(|phase| matches!(phase, Phase::Deleted(_) | Phase::Stopped(_)))
                .await;
            Ok(phase.exit().map(|exit| (pid, exit.clone())))
        }
        Err(error) => Err(error),
    }
}

#[async_trait]
impl Task for TaskService {
    async fn create(&self, context: &TtrpcContext, request: CreateTaskRequest) -> ttrpc::Result<CreateTaskResponse> {
        let _answering = Answering::new(&self.node.requests);
        let namespace = self.namespace.clone();
        let deadline = deadline(Instant::now(), context.timeout_nano);
        let create = create::create(self.node.clone(), namespace, self.api, request, deadline);
        let pid = whole(create).await?;
        Ok(CreateTaskResponse {
            pid,
            ..CreateTaskResponse::default()
        })
    }

    async fn start(&self, context: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let _answering = Answering::new(&self.node.requests);
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        let (node, span) = (self.node.clone(), container.span.clone());
        let deadline = deadline(Instant::now(), context.timeout_nano);
        let started = async move {
            match process.facts.exec_id {
                None => start(&node, &container).await,
                Some(_) => exec::start(&node, &container, &process, deadline).await,
            }
        };
        let pid = whole(started.instrument(span)).await?;
        Ok(StartResponse {
            pid,
            ..StartResponse::default()
        })
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let _answering = Answering::new(&self.node.requests);
        let (_, process) = self.process(&request.id, &request.exec_id)?;
        Ok(state(&process))
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        // Changes nothing and may take for ever: neither counted nor kept when the client goes away.
        let exit = self.process(&request.id, &request.exec_id)?.1.ended().await?;
        Ok(WaitResponse {
            exit_status: exit.code,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..WaitResponse::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let _answering = Answering::new(&self.node.requests);
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        // One that waits for a start is sent also when its client does not wait so long.
        whole(async move { control::kill(&container, &process, request.signal, request.all).await }).await?;
        Ok(Empty::new())
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let _answering = Answering::new(&self.node.requests);
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        let (node, span, pid) = (self.node.clone(), container.span.clone(), process.pid());
        let deleted = async move {
            match process.facts.exec_id {
                None => delete(&node, &container).await.map(Some),
                Some(_) => exec::delete(&node, &container, &process).await,
            }
        };
        let exit = whole(deleted.instrument(span)).await?;
        Ok(DeleteResponse {
            pid,
            exit_status: exit.as_ref().map_or(0, |exit| exit.code),
            exited_at: exit.map(|exit| timestamp(exit.at)).into(),
            ..DeleteResponse::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let _answering = Answering::new(&self.node.requests);
        let container = self.container(&request.id)?;
        let processes = pids::list(&container).await?;
        Ok(PidsResponse {
            processes,
            ..PidsResponse::default()
        })
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let _answering = Answering::new(&self.node.requests);
        // An unknown container has pid 0 and is no error: containerd asks before Create too.
        let task_pid = match self.container(&request.id) {
            Ok(container) => container.pid(),
            Err(TaskError::NoContainer { .. }) => 0,
            Err(error) => return Err(error.into()),
        };
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..ConnectResponse::default()
        })
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let _answering = Answering::new(&self.node.requests);
        let (_, process) = self.process(&request.id, &request.exec_id)?;
        if request.stdin {
            process.close_stdin();
        }
        Ok(Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let _answering = Answering::new(&self.node.requests);
        let body = self.container(&request.id)?.body()?.clone();
        let (type_url, value) = body.stats().await.map_err(|cause| TaskError::Io {
            id: request.id,
            act: "read its cgroup's figures",
            cause,
        })?;
        let stats = Any {
            type_url,
            value,
            ..Any::default()
        };
        Ok(StatsResponse {
            stats: MessageField::some(stats),
            ..StatsResponse::default()
        })
    }

    /// containerd says this after every Delete; the server ends by itself when it is idle.
    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let (_, process) = self.process(&request.id, &request.exec_id)?;
        let cut = |length: u32| u16::try_from(length).unwrap_or(u16::MAX);
        let size = Size {
            columns: cut(request.width),
            rows: cut(request.height),
        };
        // Without a terminal there is nothing to resize.
        if let Some(console) = process.console() {
            console.resize(size).map_err(|cause| TaskError::Io {
                id: process.facts.name(),
                act: "resize its terminal",
                cause,
            })?;
        }
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let _answering = Answering::new(&self.node.requests);
        let container = self.container(&request.id)?;
        container.span.in_scope(|| exec::add(&self.node, &container, request))?;
        Ok(Empty::new())
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let _answering = Answering::new(&self.node.requests);
        let (node, container) = (self.node.clone(), self.container(&request.id)?);
        let span = container.span.clone();
        whole(async move { control::pause(&node, &container).await }.instrument(span)).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let _answering = Answering::new(&self.node.requests);
        let (node, container) = (self.node.clone(), self.container(&request.id)?);
        let span = container.span.clone();
        whole(async move { control::resume(&node, &container).await }.instrument(span)).await?;
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let _answering = Answering::new(&self.node.requests);
        let container = self.container(&request.id)?;
        let span = container.span.clone();
        let limits = request.resources.into_option().unwrap_or_default();
        whole(async move { control::update(&container, limits).await }.instrument(span)).await?;
        Ok(Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, request: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        Err(self.not_yet(&request.id, "a checkpoint of a container"))
    }
}

/// The process's phase as containerd names it.
fn state(process: &Process) -> StateResponse {
    let phase = process.phase();
    let status = match &phase {
        Phase::Creating | Phase::Created | Phase::Starting | Phase::Discarding | Phase::EndedEarly(_) => {
            Status::CREATED
        }
        Phase::Running => Status::RUNNING,
        Phase::Pausing => Status::PAUSING,
        Phase::Paused | Phase::Resuming => Status::PAUSED,
        Phase::Stopped(_) | Phase::Deleting(_) | Phase::Deleted(_) => Status::STOPPED,
    };
    let facts = &process.facts;
    StateResponse {
        id: facts.id.clone(),
        exec_id: facts.exec_id.clone().unwrap_or_default(),
        bundle: facts.bundle.display().to_string(),
        pid: process.pid(),
        status: EnumOrUnknown::new(status),
        stdin: facts.streams.stdin.clone(),
        stdout: facts.streams.stdout.clone(),
        stderr: facts.streams.stderr.clone(),
        terminal: facts.terminal,
        exit_status: phase.exit().map_or(0, |exit| exit.code),
        exited_at: phase.exit().map(|exit| timestamp(exit.at)).into(),
        ..StateResponse::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_answered_before_its_client_gives_up() {
        let now = Instant::now();
        let after = |timeout: Duration| {
            let nanos = i64::try_from(timeout.as_nanos()).unwrap();
            deadline(now, nanos).unwrap() - now
        };
        assert_eq!(after(Duration::from_secs(120)), Duration::from_secs(110));
        assert_eq!(after(Duration::from_secs(5)), Duration::from_millis(4500));
    }

    #[test]
    fn a_client_without_a_timeout_is_answered_when_the_request_is_met() {
        for none in [0, -1] {
            assert_eq!(deadline(Instant::now(), none), None);
        }
    }
}
