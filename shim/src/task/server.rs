//! `serve`: the one server, from its sockets to its end.
//!
//! It ends when it was idle for a while, under the lock that `start` takes, or on SIGTERM with all its containers.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, sleep_until, timeout};

use super::answer;
use super::containers::{Containers, Need, RESERVATION};
use super::forward::Publisher;
use super::service::{self, Node};
use super::sockets::{self, SocketError, Sockets};
use crate::bootstrap::burial;
use crate::bootstrap::folder::{self, Lock, Settings};
use crate::bootstrap::logging::{self, LoggingError};
use crate::bootstrap::sinks::Sinks;
use crate::bootstrap::start::READY;
use crate::compile::keeper::keep;
use crate::compile::{self, Artifacts, CompileError};
use crate::image::Images;
use crate::native;
use crate::observe::metrics::Metrics;
use crate::sandbox::control::{Launcher, SandboxError};
use crate::sys::children::Children;
use crate::sys::{cgroup, open_files, standard};

/// How long the last requests and events may take when the server ends.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long a server that has nothing else to do waits for a containerd that is away: longer than an upgrade takes, not
/// for ever for one that was removed.
const AWAY: Duration = Duration::from_secs(600);

/// Why there is no server; `start` tells it to containerd.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("cannot {act} {}: {cause}", path.display())]
    Io {
        act: &'static str,
        path: PathBuf,
        cause: io::Error,
    },
    #[error(transparent)]
    Logging(#[from] LoggingError),
    #[error("cannot start the launcher: {0}")]
    Launcher(#[from] SandboxError),
    #[error("cannot open the artifact cache: {0}")]
    Cache(#[from] CompileError),
    #[error(transparent)]
    Socket(#[from] SocketError),
}

fn io_error(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ServeError {
    let path = path.to_owned();
    move |cause| ServeError::Io { act, path, cause }
}

/// Runs the server of `folder` until its end; tells on stdout when it listens, or why it does not.
pub fn run(folder: &Path) -> ExitCode {
    let mut stdout = match standard::take_stdout() {
        Ok(stdout) => File::from(stdout),
        Err(error) => {
            let _ = writeln!(io::stdout(), "cannot take stdout: {error}");
            return ExitCode::FAILURE;
        }
    };
    let sinks = Arc::new(Sinks::default());
    let served = prepare(folder, &sinks).and_then(|(settings, runtime)| {
        let served = runtime.block_on(serve(folder, &settings, sinks, &mut stdout));
        // Whatever still blocks in a thread must not keep the process.
        runtime.shutdown_timeout(Duration::from_millis(100));
        served
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the server cannot serve");
            // One line: `start` reads no further.
            let _ = writeln!(stdout, "{}", error.to_string().replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

/// Makes the process a server: a session, a log, a reaper, its limits.
fn prepare(folder: &Path, sinks: &Arc<Sinks>) -> Result<(Settings, tokio::runtime::Runtime), ServeError> {
    // Without a session of its own a signal to containerd's group would be ours too. It fails only for a group's
    // leader, which has been put on its own already.
    let _ = rustix::process::setsid();
    let settings = folder::settings(folder).map_err(io_error("read the settings in", folder))?;
    let environment = std::env::var_os("RUST_LOG");
    let filter = logging::choose(environment.as_deref(), &settings.options.log, settings.debug);
    logging::set_up(sinks.clone(), &filter)?;
    let myself = Path::new("/proc/self");
    // Guests are forked by a helper that ends at once: they come to us, and we wait for them.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|errno| io_error("become the subreaper of", myself)(errno.into()))?;
    raise_open_files();
    raise_oom_score();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // The server only carries messages; more threads would cost each node memory.
        .worker_threads(2)
        // So would those of a burst of requests; tokio keeps them for ten seconds.
        .thread_keep_alive(Duration::from_secs(1))
        .enable_all()
        .build()
        .map_err(io_error("start threads in", myself))?;
    Ok((settings, runtime))
}

/// A container costs the server half a dozen descriptors: the usual soft limit of 1024 ends at 150 containers.
fn raise_open_files() {
    if let Err(error) = open_files::raise() {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// containerd's score, which we inherit, plus 1: when memory ends, we go before containerd and after the guests.
fn raise_oom_score() {
    let path = "/proc/self/oom_score_adj";
    let raised = fs::read_to_string(path)
        .and_then(|score| score.trim().parse::<i32>().map_err(io::Error::other))
        .and_then(|score| fs::write(path, (score + 1).min(1000).to_string()));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot set the OOM score, it stays containerd's");
    }
}

async fn serve(folder: &Path, settings: &Settings, sinks: Arc<Sinks>, stdout: &mut File) -> Result<(), ServeError> {
    let options = &settings.options;
    let control = sockets::bind(&folder::control(folder))?;
    let shown = folder::metrics(folder);
    let scraped = sockets::bind(&shown)?;
    let images = Arc::new(Images::new(settings.address.clone()).remember_in(&options.cache_dir));
    let artifacts = Arc::new(Artifacts::open(compile::Settings {
        folder: options.cache_dir.clone(),
        size: options.cache_size,
        timeout: options.compile_timeout,
        memory: options.compile_memory,
        engine: options.engine,
    })?);
    let children = Arc::<Children>::default();
    let reaper = tokio::spawn(children.clone().keep_sweeping());
    let keeper = tokio::spawn(keep(images.clone(), artifacts.clone(), options.guest.world));
    let node = Arc::new(Node {
        containers: Containers::new(Instant::now() + RESERVATION),
        events: Publisher::start(&settings.ttrpc_address),
        sinks,
        images,
        metrics: Arc::new(Metrics::new(&shown, artifacts.clone())),
        artifacts,
        launcher: Launcher::start(options, children.clone()).await?,
        options: options.clone(),
        natives: native::Runtime::new(options, children)
            .map_err(io_error("find cgroups at", Path::new(cgroup::ROOT)))?,
        sockets: Sockets::new(settings.socket.clone()),
        requests: AtomicUsize::new(0),
    });
    let control = tokio::spawn(answer::accept(control, node.clone()));
    let metrics = tokio::spawn(node.metrics.clone().serve(scraped));
    let signals = |kind| signal(kind).map_err(io_error("take signals of", Path::new("/proc/self")));
    let (mut term, mut int) = (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
    tracing::info!(
        pid = std::process::id(),
        version = env!("CARGO_PKG_VERSION"),
        "server started"
    );
    writeln!(stdout, "{READY}").map_err(io_error("tell", Path::new("stdout")))?;
    let mine = folder.to_owned();
    tokio::task::spawn_blocking(move || burial::sweep(&mine));

    tokio::select! {
        () = idle_end(folder, settings.options.idle_timeout, &node) => tracing::info!("server ends, it was idle"),
        _ = term.recv() => end_all(folder, &node).await,
        _ = int.recv() => end_all(folder, &node).await,
    }
    keeper.abort();
    reaper.abort();
    control.abort();
    metrics.abort();
    let answered = async {
        while node.requests.load(Ordering::Relaxed) > 0 {
            sleep(Duration::from_millis(5)).await;
        }
        // The last reply is on its way to the socket.
        sleep(Duration::from_millis(50)).await;
    };
    let _ = timeout(FAREWELL, answered).await;
    node.events.flush(FAREWELL).await;
    node.launcher.stop().await;
    Ok(())
}

/// Resolves when nothing was held for the idle time and nothing is being compiled, with the sockets gone.
async fn idle_end(folder: &Path, idle: Duration, node: &Node) {
    let mut changes = node.containers.changes();
    loop {
        changes.mark_unchanged();
        for key in node.containers.expire(Instant::now()) {
            node.sinks.close(&key);
        }
        let until = match node.containers.need() {
            Need::Containers => None,
            Need::Announced(until) => Some(until),
            Need::None => Some(Instant::now() + idle),
        };
        let waited = async {
            match until {
                Some(until) => sleep_until(until.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = changes.changed() => continue,
            () = waited => {}
        }
        // What is being compiled would be lost with us, and with it what a client that tries again has waited for.
        tokio::select! {
            _ = changes.changed() => continue,
            () = node.artifacts.idle() => {}
        }
        // What containerd has not taken yet, since it is away, would be lost with us.
        tokio::select! {
            _ = changes.changed() => continue,
            () = node.events.flush(AWAY) => {}
        }
        if node.containers.need() == Need::None && leave(folder, node, || node.containers.close_if_unneeded()).await {
            return;
        }
    }
}

/// Ends every container and tells containerd of it.
async fn end_all(folder: &Path, node: &Arc<Node>) {
    tracing::info!("server ends, it was told to");
    leave(folder, node, || {
        node.containers.close();
        true
    })
    .await;
    let mut ends = tokio::task::JoinSet::new();
    for container in node.containers.all() {
        let node = node.clone();
        ends.spawn(async move {
            let span = container.span.clone();
            let ended = async {
                container.kill().await?;
                service::delete(&node, &container).await
            };
            if let Err(error) = tracing::Instrument::instrument(ended, span).await {
                tracing::error!(%error, "cannot end a container");
            }
        });
    }
    if timeout(FAREWELL, ends.join_all()).await.is_err() {
        tracing::error!("not all containers ended in time");
    }
}

/// Removes the sockets and the folder under the lock, if `ready` still says so when it is held.
async fn leave(folder: &Path, node: &Node, ready: impl FnOnce() -> bool) -> bool {
    let taken = folder.to_owned();
    let lock = match tokio::task::spawn_blocking(move || Lock::take(&taken))
        .await
        .map_err(io::Error::other)
    {
        Ok(Ok(lock)) => lock,
        Ok(Err(error)) | Err(error) => {
            tracing::error!(%error, "cannot lock the server's folder");
            return false;
        }
    };
    if !ready() {
        return false;
    }
    let removed = node.sockets.remove().await.and(lock.remove());
    if let Err(error) = removed {
        tracing::warn!(%error, "cannot remove the server's sockets");
    }
    true
}
