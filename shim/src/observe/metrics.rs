//! What this server has seen of its containers, as Prometheus reads it from the server's socket.
//!
//! ```text
//! node    starts, their latency, exits by cause, creates that failed; compilations and the cache
//! guest   starts, exits by cause; of a service what its process counts, read when somebody asks
//! ```
//!
//! A guest's numbers end with its pod, so a container that is made anew goes on counting.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::net::UnixListener;
use tokio::time::sleep;

use super::exits::Cause;
use super::identity::{Identity, Name};
use crate::compile::Artifacts;
use crate::guest::http::exposition::{self, Labels, PREFIX};
use crate::guest::http::figures::{COUNTERS, Snapshot};
use crate::sys::counters;

/// From a start out of the cache, milliseconds, to one that compiles a large module.
const SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// Until the next try when there is no fd for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// What a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of the pod: its sandbox.
    Pod,
    Wasm,
    Native,
}

impl Kind {
    fn label(self) -> Label {
        let name = match self {
            Kind::Pod => "pod",
            Kind::Wasm => "wasm",
            Kind::Native => "native",
        };
        [("kind", name)]
    }
}

type Label = [(&'static str, &'static str); 1];

/// The metrics of a server.
pub struct Metrics {
    socket: PathBuf,
    starts: Family<Label, Counter>,
    start_seconds: Family<Label, Histogram>,
    exits: Family<Label, Counter>,
    create_failures: Counter,
    guests: Arc<Guests>,
    registry: Registry,
}

#[derive(Default)]
struct Guests(Mutex<BTreeMap<Name, Guest>>);

#[derive(Default)]
struct Guest {
    sandbox: String,
    starts: u64,
    exits: BTreeMap<Cause, u64>,
    /// Where the present container counts, if it is a service.
    counters: Option<Arc<File>>,
    ended: bool,
}

impl Metrics {
    /// Metrics that are shown at `socket`.
    pub fn new(socket: &Path, artifacts: Arc<Artifacts>) -> Metrics {
        let mut registry = Registry::with_prefix(PREFIX);
        let starts = Family::<Label, Counter>::default();
        registry.register("starts", "Containers that were started", starts.clone());
        let histogram: fn() -> Histogram = || Histogram::new(SECONDS);
        let start_seconds = Family::new_with_constructor(histogram);
        registry.register(
            "start_duration_seconds",
            "What Create and Start of a container took together",
            start_seconds.clone(),
        );
        let exits = Family::<Label, Counter>::default();
        registry.register("exits", "Containers whose first process ended, by cause", exits.clone());
        let create_failures = Counter::default();
        registry.register(
            "create_failures",
            "Containers that could not be made",
            create_failures.clone(),
        );
        registry.register(
            "compile_duration_seconds",
            "What compiling a module or component took",
            artifacts.compile_seconds(),
        );
        registry.register_collector(Box::new(Cache(artifacts)));
        let guests = Arc::new(Guests::default());
        registry.register_collector(Box::new(guests.clone()));
        Metrics {
            socket: socket.to_owned(),
            starts,
            start_seconds,
            exits,
            create_failures,
            guests,
            registry,
        }
    }

    /// Where they are shown.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A guest was made, which counts in `counters` when it is a service.
    pub fn made(&self, identity: &Identity, counters: Option<Arc<File>>) {
        let mut guests = self.guests.lock();
        let guest = guests.entry(identity.name.clone()).or_default();
        guest.sandbox.clone_from(&identity.sandbox);
        guest.counters = counters;
        guest.ended = false;
    }

    /// A container could not be made.
    pub fn not_made(&self) {
        self.create_failures.inc();
    }

    /// A container was started, which took so long together with making it.
    pub fn started(&self, identity: &Identity, kind: Kind, took: Duration) {
        self.starts.get_or_create(&kind.label()).inc();
        self.start_seconds
            .get_or_create(&kind.label())
            .observe(took.as_secs_f64());
        if let Some(guest) = self.guests.lock().get_mut(&identity.name) {
            guest.starts += 1;
        }
    }

    /// A container's first process has ended.
    pub fn ended(&self, identity: &Identity, cause: Cause) {
        self.exits.get_or_create(&[("cause", cause.name())]).inc();
        if let Some(guest) = self.guests.lock().get_mut(&identity.name) {
            *guest.exits.entry(cause).or_default() += 1;
            guest.ended = true;
        }
    }

    /// The sandbox is gone, and nothing more will be heard of who was in it.
    pub fn forget(&self, sandbox: &str) {
        self.guests.lock().retain(|_, guest| guest.sandbox != sandbox);
    }

    /// Answers whoever connects.
    pub async fn serve(self: Arc<Metrics>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let metrics = self.clone();
                    tokio::spawn(async move { exposition::serve(stream, &metrics.registry).await });
                }
                Err(error) => {
                    tracing::error!(%error, "cannot accept who asks for metrics");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

impl Guests {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, Guest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guest {
    /// What its service has counted; nothing when it is none.
    fn service(&self) -> Option<Snapshot> {
        let counters = counters::read(self.counters.as_ref()?, COUNTERS);
        let counters = counters.inspect_err(|error| tracing::warn!(%error, "the counters of a guest cannot be read"));
        let now = Snapshot::of(&counters.ok()?);
        // A process that was killed has left what it held at that time.
        Some(match self.ended {
            false => now,
            true => Snapshot {
                in_flight: 0,
                instances: 0,
                ..now
            },
        })
    }
}

impl fmt::Debug for Guests {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Guests")
    }
}

impl Collector for Guests {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let guests = self.lock();
        let labelled: Vec<(Labels, &Guest)> = guests.iter().map(|(name, guest)| (name.labels(), guest)).collect();
        let help = "Starts of a wasm container, by its names";
        let mut metric = encoder.encode_descriptor("guest_starts", help, None, MetricType::Counter)?;
        for (labels, guest) in &labelled {
            labels.on(&mut metric, |mut metric| {
                metric.encode_counter::<NoLabelSet, _, f64>(&guest.starts, None)
            })?;
        }
        let help = "Ends of a wasm container, by its names and by cause";
        let mut metric = encoder.encode_descriptor("guest_exits", help, None, MetricType::Counter)?;
        for (labels, guest) in &labelled {
            for (cause, count) in &guest.exits {
                let labels = labels.with("cause", cause.name());
                labels.on(&mut metric, |mut metric| {
                    metric.encode_counter::<NoLabelSet, _, f64>(count, None)
                })?;
            }
        }
        let services = labelled
            .into_iter()
            .filter_map(|(labels, guest)| Some((labels, guest.service()?)));
        exposition::encode(&mut encoder, &services.collect::<Vec<_>>())
    }
}

/// What the cache of artifacts counts.
struct Cache(Arc<Artifacts>);

impl fmt::Debug for Cache {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Cache")
    }
}

impl Collector for Cache {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counters = self.0.counters();
        for (name, help, count) in [
            ("cache_hits", "Artifacts that were there already", counters.hits),
            (
                "cache_misses",
                "Artifacts that had to be compiled",
                counters.compiled + counters.failed,
            ),
            (
                "compile_failures",
                "Artifacts that could not be compiled",
                counters.failed,
            ),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            metric.encode_counter::<NoLabelSet, _, f64>(&count, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use prometheus_client::encoding::text;

    use super::*;

    fn text_of(guests: &Arc<Guests>) -> String {
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(guests.clone()));
        let mut text = String::new();
        text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn a_dead_service_keeps_its_counts_and_loses_what_was_in_flight() {
        let file = counters::create("test", COUNTERS).unwrap();
        for counter in counters::map(&file, COUNTERS).unwrap() {
            counter.store(3, Ordering::Relaxed);
        }
        let guests = Arc::new(Guests::default());
        let name = Identity::of("default", "a\"b", None).name;
        let guest = Guest {
            counters: Some(Arc::new(file)),
            ..Guest::default()
        };
        guests.lock().insert(name.clone(), guest);
        let labels = r#"containerd_namespace="default",namespace="",pod="",container="a\"b""#;
        let in_flight = |count| format!("kubewasi_http_requests_in_flight{{{labels}}} {count}\n");
        assert!(text_of(&guests).contains(&in_flight(3)), "{}", text_of(&guests));
        guests.lock().entry(name).or_default().ended = true;
        assert!(text_of(&guests).contains(&in_flight(0)), "{}", text_of(&guests));
        assert!(text_of(&guests).contains(&format!("kubewasi_http_requests_total{{{labels},code=\"200\"}} 3\n")));
    }
}
