//! From wasm bytes to a trusted artifact: compiled once, cached by content, mapped by every guest.
//!
//! ```text
//! Artifacts ──> key ──> cache (found: open, check once)
//!     └─ one flight a key, a task of its own ──> driver ══ stdin, stdout, stderr ══> worker (confined: world, engine)
//! guest ──> artifact (maps it)
//! ```

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kubewasi_options::WorldChoice;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::{Semaphore, watch};

use crate::image::{Digest, Images, Source, Wasm};

pub mod artifact;
mod cache;
mod compression;
pub mod confine;
mod driver;
pub mod engine;
mod flight;
pub mod keeper;
mod key;
pub mod worker;
mod world;

use cache::Cache;
use driver::{Driver, WorkerError};
use flight::{Flight, NoResult, Waiting};
use key::{Compatibility, Key};

/// The engine settings an artifact is compiled for, by its world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Profile {
    /// Runs once to its end: no epoch checks, no fuel.
    Command,
    /// Serves requests: epoch interruption is on.
    Service,
}

/// The world a wasm binary targets, read from its bytes alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum World {
    /// A core module, with or without WASI 0.1 imports.
    Module,
    /// A component that exports `wasi:cli/run` 0.2.
    Command02,
    /// A component that exports `wasi:cli/run` 0.3.
    Command03,
    /// A component that exports `wasi:http/incoming-handler` 0.2.
    Http02,
    /// A component that exports `wasi:http/handler` 0.3.
    Http03,
}

impl World {
    /// What its artifacts are compiled for.
    pub fn profile(self) -> Profile {
        match self {
            World::Module | World::Command02 | World::Command03 => Profile::Command,
            World::Http02 | World::Http03 => Profile::Service,
        }
    }
}

/// What a wasm binary runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Worlds {
    /// The one that it is compiled for.
    pub world: World,
    /// The one that it exports too and that was not chosen: a component may be a command and a service.
    #[serde(default)]
    pub other: Option<World>,
}

/// A compiled module or component, safe to map: verified once by this server.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// The file, open for reading.
    pub file: Arc<OwnedFd>,
    pub worlds: Worlds,
    /// It was there already, or another caller was compiling it.
    pub cached: bool,
}

/// Where artifacts are kept and what compiling may cost.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The root-only folder of the cache.
    pub folder: PathBuf,
    /// The most bytes the cache keeps.
    pub size: u64,
    /// The most processor time one compilation may use; whole seconds.
    pub timeout: Duration,
    /// The most memory one compilation may use, in bytes.
    pub memory: u64,
    /// How it is compiled, and what the engine that runs it is like.
    pub engine: kubewasi_options::Engine,
}

/// How often the cache did what, since the server started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counters {
    pub hits: u64,
    pub compiled: u64,
    pub failed: u64,
    /// Compiled, but the cache could not keep it.
    pub unkept: u64,
}

/// The artifacts of a node.
pub struct Artifacts {
    settings: Settings,
    driver: Driver,
    compatibility: Compatibility,
    /// `None` while the folder cannot be used; tried again at the next artifact.
    cache: Mutex<Option<Arc<Cache>>>,
    /// The keys being compiled now, and those that failed after their callers were asked to try again.
    flights: watch::Sender<HashMap<Key, Waiting>>,
    /// So many workers run at once.
    workers: Arc<Semaphore>,
    counters: Arc<Tally>,
    /// What each compilation took.
    seconds: Histogram,
}

#[derive(Default)]
struct Tally {
    hits: AtomicU64,
    compiled: AtomicU64,
    failed: AtomicU64,
    unkept: AtomicU64,
}

/// Why there is no artifact.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CompileError {
    #[error("{name}: the file is empty, not a wasm module or component")]
    Empty { name: String },
    #[error("{name}: not a wasm module or component: it does not begin with \\0asm")]
    NotWasm { name: String },
    /// The module's own fault, the compiler's limits included.
    #[error("{name}: {source}")]
    Worker { name: String, source: Arc<WorkerError> },
    #[error("{name}: {source}")]
    Read {
        name: String,
        source: Arc<crate::image::ImageError>,
    },
    /// The caller's deadline has passed before the compilation has ended.
    #[error(
        "{name} is still being compiled: {} s of processor time so far, of at most {} s (option compile_timeout); compiling continues, try again",
        .used.as_secs(), .limit.as_secs()
    )]
    Unfinished {
        name: String,
        used: Duration,
        limit: Duration,
    },
    /// As `Unfinished`, before a worker has started.
    #[error("{name} waits to be compiled, as do other programs of this node; it keeps its place, try again")]
    Queued { name: String },
    #[error("the wasm engine cannot be configured: {message}")]
    Engine { message: String },
    #[error("compiling {name} failed: {message}")]
    Internal { name: String, message: String },
}

/// From a small module to a large one on a busy node, in seconds.
const SECONDS: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0];

/// Two compilations at once: a burst of new images waits rather than taking the node's memory.
const WORKERS: usize = 2;

impl Artifacts {
    /// Opens the cache, making its folder when it is missing. A folder that cannot be used is no error: artifacts are
    /// compiled anew each time, with a warning, until it can.
    pub fn open(settings: Settings) -> Result<Artifacts, CompileError> {
        confine::sweep();
        let mut artifacts = Artifacts::open_with(settings, PathBuf::from("/proc/self/exe"))?;
        artifacts.driver.confined = true;
        Ok(artifacts)
    }

    /// As [`Artifacts::open`], with workers that run `program`, without cgroups of their own.
    pub fn open_with(settings: Settings, program: PathBuf) -> Result<Artifacts, CompileError> {
        let compatibility = Compatibility::own(&settings.engine).map_err(|error| CompileError::Engine {
            message: format!("{error:#}"),
        })?;
        let artifacts = Artifacts {
            driver: Driver {
                program,
                timeout: settings.timeout,
                look: driver::LOOK,
                memory: settings.memory,
                engine: settings.engine,
                confined: false,
            },
            compatibility,
            settings,
            cache: Mutex::default(),
            flights: watch::Sender::new(HashMap::new()),
            workers: Arc::new(Semaphore::new(WORKERS)),
            counters: Arc::default(),
            seconds: Histogram::new(SECONDS),
        };
        artifacts.cache();
        Ok(artifacts)
    }

    /// The artifact of `wasm` as `choice` has it run, from the cache or compiled now. Callers for one key compile once
    /// and get the same result, the same error when that fails. Compiling goes on to its end when
    /// the caller goes away or its deadline passes, and the next caller finds the artifact.
    ///
    /// # Errors
    ///
    /// [`CompileError::Unfinished`] or [`CompileError::Queued`] at the deadline; `None` waits for as long as it takes.
    pub async fn get(
        self: &Arc<Self>,
        images: &Arc<Images>,
        wasm: &Wasm,
        choice: WorldChoice,
        deadline: Option<Instant>,
    ) -> Result<Artifact, CompileError> {
        let key = self.compatibility.key(&wasm.digest, choice);
        let (flight, mut waiting) = flight::begin();
        let mut first = false;
        self.flights.send_if_modified(|flights| {
            match flights.get(&key) {
                Some(present) => waiting = present.clone(),
                None => first = flights.insert(key, waiting.clone()).is_none(),
            }
            // A failure that was kept for the next caller.
            let heard = waiting.is_finished() && flights.remove(&key).is_some();
            first || heard
        });
        if first {
            self.compile_in_background(images, wasm, choice, key, flight);
        }
        let name = || wasm.name.clone();
        let result = waiting.result(deadline).await.map_err(|error| match error {
            NoResult::Queued => CompileError::Queued { name: name() },
            NoResult::Compiling(used) => CompileError::Unfinished {
                name: name(),
                used,
                limit: self.settings.timeout,
            },
            NoResult::Gone => CompileError::Internal {
                name: name(),
                message: "the server is ending".to_owned(),
            },
        })?;
        let artifact = result.map(|artifact| Artifact {
            cached: artifact.cached || !first,
            ..artifact
        })?;
        if artifact.cached {
            self.counters.hits.fetch_add(1, Ordering::Relaxed);
        }
        Ok(artifact)
    }

    /// Finds or compiles on a task of its own.
    fn compile_in_background(
        self: &Arc<Self>,
        images: &Arc<Images>,
        wasm: &Wasm,
        choice: WorldChoice,
        key: Key,
        flight: Flight,
    ) {
        let (artifacts, images, wasm) = (self.clone(), images.clone(), wasm.clone());
        let flight = Arc::new(flight);
        tokio::spawn(async move {
            let name = wasm.name.clone();
            let work = {
                let (artifacts, flight) = (artifacts.clone(), flight.clone());
                // In a task within, so that a panic ends the flight too.
                tokio::spawn(async move { artifacts.find_or_compile(&images, &wasm, choice, key, &flight).await })
            };
            let result = work.await.unwrap_or_else(|panic| {
                Err(CompileError::Internal {
                    name,
                    message: panic.to_string(),
                })
            });
            let failed = result.is_err();
            artifacts.flights.send_modify(|flights| {
                // The next caller looks into the cache, or compiles again; but a failure that no caller waited for is
                // reported once.
                if !(flight.finish(result) && failed) {
                    flights.remove(&key);
                }
            });
        });
    }

    /// Resolves when nothing is being compiled.
    pub async fn idle(&self) {
        let all_finished = |flights: &HashMap<Key, Waiting>| flights.values().all(Waiting::is_finished);
        // The sender is ours, so it outlives the wait.
        let _ = self.flights.subscribe().wait_for(all_finished).await;
    }

    /// Removes the artifacts of images whose wasm is not in `live`; answers how many.
    pub async fn sweep(&self, live: HashSet<Digest>) -> io::Result<usize> {
        let Some(cache) = self.cache() else { return Ok(0) };
        tokio::task::spawn_blocking(move || cache.sweep(&live))
            .await
            .map_err(io::Error::other)?
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            hits: count(&self.counters.hits),
            compiled: count(&self.counters.compiled),
            failed: count(&self.counters.failed),
            unkept: count(&self.counters.unkept),
        }
    }

    /// What each compilation took, in seconds; failed ones too.
    pub fn compile_seconds(&self) -> Histogram {
        self.seconds.clone()
    }

    async fn find_or_compile(
        &self,
        images: &Images,
        wasm: &Wasm,
        choice: WorldChoice,
        key: Key,
        flight: &Arc<Flight>,
    ) -> Result<Artifact, CompileError> {
        let name = || wasm.name.clone();
        let internal = |error: &dyn std::fmt::Display| CompileError::Internal {
            name: name(),
            message: error.to_string(),
        };
        let cache = self.cache();
        let artifact = move |file: File, worlds, cached| Artifact {
            file: Arc::new(file.into()),
            worlds,
            cached,
        };
        if let Some(cache) = cache.clone() {
            let found = tokio::task::spawn_blocking(move || cache.get(key))
                .await
                .map_err(|error| internal(&error))?;
            if let Some((file, worlds)) = found {
                return Ok(artifact(file, worlds, true));
            }
        }
        let compiled = async {
            // Before the bytes are fetched: a layer is held in memory until it is compiled.
            let permit = self
                .workers
                .clone()
                .acquire_owned()
                .await
                .map_err(|error| internal(&error))?;
            let input = images.open(wasm).await;
            let input = input.map_err(|error| CompileError::Read {
                name: name(),
                source: Arc::new(error),
            })?;
            let input = begins_as_wasm(input, &wasm.name)?;
            let (driver, tally, digest) = (self.driver.clone(), self.counters.clone(), wasm.digest);
            let (seconds, flight) = (self.seconds.clone(), flight.clone());
            let from_image = !matches!(wasm.source, Source::Copy(_));
            // On a thread that lives as long as the worker.
            tokio::task::spawn_blocking(move || {
                let _permit = permit;
                let begun = Instant::now();
                let compiled = driver.compile(input, choice, |pid| flight.compiling(pid));
                seconds.observe(begun.elapsed().as_secs_f64());
                let (compiled, worlds) = compiled?;
                tally.compiled.fetch_add(1, Ordering::Relaxed);
                let kept = cache.map(|cache| cache.put(key, &compiled, worlds, digest, from_image));
                let file = match kept {
                    Some(Ok(file)) => file,
                    Some(Err(error)) => {
                        tracing::warn!(%error, "an artifact could not be kept: it is used once and compiled again next time");
                        tally.unkept.fetch_add(1, Ordering::Relaxed);
                        compiled
                    }
                    None => {
                        tally.unkept.fetch_add(1, Ordering::Relaxed);
                        compiled
                    }
                };
                Ok(artifact(file, worlds, false))
            })
            .await
            .map_err(|error| internal(&error))?
            .map_err(|source| CompileError::Worker { name: name(), source: Arc::new(source) })
        };
        compiled.await.inspect_err(|_| {
            self.counters.failed.fetch_add(1, Ordering::Relaxed);
        })
    }

    /// The cache, opened when it was not yet; a warning each time it cannot be.
    fn cache(&self) -> Option<Arc<Cache>> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.is_none() {
            match Cache::open(&self.settings.folder, self.settings.size) {
                Ok(opened) => *cache = Some(Arc::new(opened)),
                Err(error) => tracing::warn!(%error, "no cache: every start compiles"),
            }
        }
        cache.clone()
    }
}

/// Refuses what needs no compiler to be refused.
fn begins_as_wasm(input: OwnedFd, name: &str) -> Result<OwnedFd, CompileError> {
    let file = File::from(input);
    let mut magic = [0; 4];
    let internal = |error: io::Error| CompileError::Internal {
        name: name.to_owned(),
        message: error.to_string(),
    };
    match file.metadata().map_err(internal)?.len() {
        0 => Err(CompileError::Empty { name: name.to_owned() }),
        1..4 => Err(CompileError::NotWasm { name: name.to_owned() }),
        _ => {
            file.read_exact_at(&mut magic, 0).map_err(internal)?;
            match magic == *b"\0asm" || compression::is_compressed(&magic) {
                true => Ok(file.into()),
                false => Err(CompileError::NotWasm { name: name.to_owned() }),
            }
        }
    }
}

#[cfg(test)]
mod tests;
