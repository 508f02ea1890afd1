//! Create: from a bundle to a process that waits for its start, or to an error and nothing left behind.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use containerd_shim_protos::api::CreateTaskRequest;
use kubewasi_options::{AnnotationError, Guest, WorldChoice};
use oci_spec::runtime::Spec;
use tracing::Instrument;

use super::body::Body;
use super::container::{Container, Made};
use super::error::TaskError;
use super::events::Facts;
use super::exec;
use super::phase::{Move, Phase};
use super::search::{self, Search};
use super::service::{Api, Node};
use crate::bootstrap::bundle::{self, BundleError};
use crate::bootstrap::delete::PID_FILE;
use crate::compile::Artifact;
use crate::image::{Image, Mount, Program};
use crate::native;
use crate::observe::exits::Cause;
use crate::observe::identity::Identity;
use crate::observe::metrics::Kind;
use crate::observe::oom::Kills;
use crate::sandbox::group;
use crate::sandbox::plan::{self, Role};
use crate::stdio::{self, Console, Kept, Streams, terminal};
use crate::sys::cgroup;

/// What kind of CRI container it is, `sandbox` or `container` (containerd, internal/cri/annotations).
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";

/// 128 + SIGKILL.
const KILLED: u32 = 137;

/// The pod's sandbox container.
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

/// Creates a container, whose program is compiled by the deadline; returns its pid.
pub async fn create(
    node: Arc<Node>,
    namespace: String,
    api: Api,
    request: CreateTaskRequest,
    deadline: Option<Instant>,
) -> Result<u32, TaskError> {
    if !request.bundle.starts_with('/') {
        return Err(TaskError::BundlePath(request.bundle));
    }
    let container = Arc::new(Container::new(Facts {
        namespace: namespace.clone(),
        id: request.id.clone(),
        bundle: request.bundle.clone().into(),
        rootfs: request.rootfs.iter().map(mount).collect(),
        streams: Streams {
            namespace,
            id: request.id.clone(),
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
        },
        terminal: request.terminal,
        exec_id: None,
    }));
    node.containers.insert(&container)?;
    node.sinks.open(container.key(), &container.facts().bundle);
    let unfinished = Unfinished {
        node: &node,
        container: &container,
        finished: false,
    };
    let made = make(&node, &container, api, &request, deadline)
        .instrument(container.span.clone())
        .await;
    match made {
        Ok(()) => {
            unfinished.finish();
            tokio::spawn(watch(node.clone(), container.clone()).instrument(container.span.clone()));
            Ok(container.pid())
        }
        Err(error) => {
            node.metrics.not_made();
            container
                .span
                .in_scope(|| tracing::error!(cause = %error, "cannot create the container"));
            Err(error)
        }
    }
}

/// Takes a container back unless it was finished: on errors and on panics.
struct Unfinished<'a> {
    node: &'a Arc<Node>,
    container: &'a Arc<Container>,
    finished: bool,
}

impl Unfinished<'_> {
    fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.finished {
            // From Creating this move is always allowed, and whoever waits must be told.
            let _ = self.container.step(Move::FailCreate, &self.node.events);
            drop(self.container.init.take_streams());
            self.node.containers.remove(self.container);
            self.node.sinks.close(&self.container.key());
        }
    }
}

async fn make(
    node: &Node,
    container: &Container,
    api: Api,
    request: &CreateTaskRequest,
    deadline: Option<Instant>,
) -> Result<(), TaskError> {
    if !request.checkpoint.is_empty() {
        return Err(TaskError::CannotCreateYet("starting from a checkpoint".to_owned()));
    }
    let begun = Instant::now();
    let facts = container.facts();
    let spec = read(&facts.bundle).await?;
    let annotation = |key| spec.annotations().as_ref().and_then(|annotations| annotations.get(key));
    if let Some(pod) = annotation(SANDBOX_ID) {
        container.span.record("pod", pod.as_str());
    }
    record(
        &facts.bundle,
        api,
        annotation(SANDBOX_ID).map(String::as_str),
        &node.sockets.address(&facts.namespace),
    );
    // Of every container, native ones too: a pod with a wrong annotation fails at its sandbox.
    let options = options(node, &spec)?;
    let holder = annotation(CONTAINER_TYPE).is_some_and(|kind| kind == "sandbox");
    let (found, image) = if holder {
        (Found::Guest(Role::Holder, None), None)
    } else {
        // Compiling goes on: the next container of this image finds the artifact.
        tokio::select! {
            found = program(node, container, &spec, options.world, deadline) => found?,
            () = container.given_up() => return Err(TaskError::GivenUp(facts.id.clone())),
        }
    };
    let (body, kept, console) = match found {
        Found::Guest(role, artifact) => guest(node, container, &spec, role, options, artifact.as_ref()).await?,
        Found::Native => native(node, container, &spec).await?,
    };
    if let Err(error) = fs::write(facts.bundle.join(PID_FILE), body.child().pid().to_string()) {
        // Only the pid in the exit event of a dead server's container hangs on it.
        tracing::warn!(%error, "cannot write the pid into the bundle");
    }
    let identity = Identity::of(&facts.namespace, &facts.id, spec.annotations().as_ref());
    let kind = match &body {
        Body::Native(_) => Kind::Native,
        Body::Guest(_) if holder => Kind::Pod,
        Body::Guest(guest) => {
            node.metrics.made(&identity, guest.counters().cloned());
            Kind::Wasm
        }
    };
    let made = Made {
        identity,
        kind,
        took: begun.elapsed(),
        image,
    };
    container.adopt(body, made, kept, console);
    container.step(Move::Create, &node.events)?;
    tracing::info!(pid = container.pid(), holder, "container created");
    Ok(())
}

/// The container's spec; errors name the file and the cause.
pub(super) async fn read(bundle: &Path) -> Result<Spec, BundleError> {
    let path = bundle.join("config.json");
    let bytes = tokio::fs::read(&path).await.map_err(|cause| BundleError::Read {
        path: path.clone(),
        cause,
    })?;
    serde_json::from_slice(&bytes).map_err(|cause| BundleError::Malformed { path, cause })
}

/// What the guests of a container run with, by its annotations.
pub(super) fn options(node: &Node, spec: &Spec) -> Result<Guest, AnnotationError> {
    let annotations = spec.annotations().iter().flatten();
    kubewasi_options::annotated(
        &node.options,
        annotations.map(|(name, value)| (name.as_str(), value.as_str())),
    )
}

/// A container's body, our ends of its streams, and its terminal.
type Parts = (Body, Kept, Option<Console>);

/// A process of ours, confined as the spec says.
async fn guest(
    node: &Node,
    container: &Container,
    spec: &Spec,
    role: Role,
    options: Guest,
    artifact: Option<&Artifact>,
) -> Result<Parts, TaskError> {
    let facts = container.facts();
    let plan = plan::plan(plan::Request {
        namespace: &facts.namespace,
        id: &facts.id,
        spec,
        bundle: &facts.bundle,
        rootfs: &facts.rootfs,
        terminal: facts.terminal,
        role,
        options,
    })?;
    let size = spec.process().as_ref().and_then(terminal::size_of);
    let opened = tokio::select! {
        opened = stdio::open(&facts.streams, facts.terminal, size, node.launcher.children()) => opened?,
        () = container.given_up() => return Err(TaskError::GivenUp(facts.id.clone())),
    };
    let guest = node
        .launcher
        .spawn(&facts.id, &facts.bundle, &plan, opened.stdio, artifact, || {
            container.given_up()
        })
        .await?;
    Ok((Body::Guest(Arc::new(guest)), opened.kept, opened.console))
}

/// A container of the node's own runtime, which reads the spec by itself.
async fn native(node: &Node, container: &Container, spec: &Spec) -> Result<Parts, TaskError> {
    let facts = container.facts();
    let linux = spec.linux().as_ref();
    let scope = match cgroup::systemd_runs(Path::new("/run")) {
        true => None,
        false => linux.and_then(|linux| group::scope_without_systemd(linux.cgroups_path().as_deref()?)),
    };
    let request = native::Request {
        id: &facts.id,
        bundle: &facts.bundle,
        spec,
        rootfs: &facts.rootfs,
        streams: &facts.streams,
        terminal: facts.terminal,
        scope: scope.as_deref(),
    };
    let (made, kept, console) = node.natives.create(request, container.given_up()).await?;
    Ok((Body::Native(Arc::new(made)), kept, console))
}

/// What the container runs.
enum Found {
    /// A program of ours, compiled, or none in a holder.
    Guest(Role, Option<Artifact>),
    Native,
}

/// What the container runs, compiled, and the image when it is a layer of that.
async fn program(
    node: &Node,
    container: &Container,
    spec: &Spec,
    choice: WorldChoice,
    deadline: Option<Instant>,
) -> Result<(Found, Option<Image>), TaskError> {
    let search = Search::new(container.facts(), spec, None);
    match node.images.resolve(search.request(spec.process().as_ref())).await? {
        Program::Wasm(mut wasm) => {
            let image = wasm.image.take();
            let (role, artifact) = search::guest(node, wasm, choice, deadline).await?;
            Ok((Found::Guest(role, Some(artifact)), image))
        }
        Program::Native => Ok((Found::Native, None)),
    }
}

/// Leaves in the bundle what containerd writes only where it called `start`: our address, and with the task API v3 the
/// path of our binary, without which containerd loses the container at its own restart.
fn record(bundle: &Path, api: Api, sandbox: Option<&str>, address: &str) {
    let missing = |name: &str| !bundle.join(name).exists();
    let mut wrote = Ok(());
    if missing("address") {
        wrote = fs::write(bundle.join("address"), address);
    }
    if api == Api::V3 && missing("shim-binary-path") {
        let sandboxes = sandbox
            .and_then(|id| bundle::sibling(bundle, id))
            .map(|path| path.join("shim-binary-path"));
        let path = sandboxes.and_then(|path| fs::read(path).ok()).or_else(|| {
            let exe = fs::read_link("/proc/self/exe").ok()?;
            Some(std::os::unix::ffi::OsStringExt::into_vec(exe.into_os_string()))
        });
        if let Some(path) = path {
            wrote = wrote.and(fs::write(bundle.join("shim-binary-path"), path));
        }
    }
    if let Err(error) = wrote {
        tracing::warn!(%error, "cannot write into the bundle what a restarted containerd looks for");
    }
}

/// Waits for the end of the process and tells of it.
async fn watch(node: Arc<Node>, container: Arc<Container>) {
    let Ok(body) = container.body() else { return };
    let kills = Kills::watch(body.cgroup());
    let mut killed = 0;
    let exit = loop {
        tokio::select! {
            exit = body.child().exited() => break exit,
            () = kills.heard() => {
                let untold = kills.untold();
                killed += untold;
                tell(untold, &container, &node).await;
            }
        }
    };
    // The kernel counts a kill before it kills: containerd hears of it before the exit.
    let unasked = exit.code == KILLED && !body.child().was_killed();
    let untold = kills.untold_at_end(unasked);
    killed += untold;
    tell(untold, &container, &node).await;
    if let Some(made) = container.made() {
        // A SIGKILL that was asked for is no OOM kill, even when there was one before.
        let killed = if unasked { killed } else { 0 };
        node.metrics.ended(&made.identity, Cause::of(&exit, killed));
    }
    match &exit.message {
        Some(message) => tracing::info!(code = exit.code, message, "container exited"),
        None => tracing::info!(code = exit.code, "container exited"),
    }
    exec::end_all(&container).await;
    if let Err(error) = body.end_rest().await {
        tracing::warn!(%error, "the container's end left processes behind");
    }
    container.init.drained().await;
    container.init.finish_streams();
    if let Err(error) = container.step(Move::Exit(exit), &node.events) {
        tracing::error!(%error, "an exit came twice");
    }
}

/// Tells of OOM kills that nobody was told of.
async fn tell(untold: u64, container: &Container, node: &Node) {
    if untold == 0 {
        return;
    }
    tracing::warn!(
        kills = untold,
        "the kernel killed a process of the container: its memory limit was reached"
    );
    // No event of a container comes before its start's.
    container.init.until(|phase| *phase != Phase::Starting).await;
    for _ in 0..untold {
        if let Err(error) = container.step(Move::OutOfMemory, &node.events) {
            tracing::error!(%error, "an OOM kill came after the exit");
        }
    }
}

fn mount(mount: &containerd_shim_protos::api::Mount) -> Mount {
    Mount {
        kind: mount.type_.clone(),
        source: mount.source.clone(),
        options: mount.options.clone(),
    }
}
