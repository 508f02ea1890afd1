//! What the controller measures of itself, and how the runtimes stand.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::api::wasm_runtime::NodeCounts;

/// All metrics, below the prefix `kubewasi`.
pub struct Metrics {
    registry: Registry,
    writes: Family<WriteLabels, Counter>,
    failures: Counter,
    reconcile: Histogram,
    nodes: Family<NodeLabels, Gauge>,
    leading: Gauge<i64>,
    resident: Gauge<u64, AtomicU64>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WriteLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct NodeLabels {
    runtime: String,
    state: &'static str,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::with_prefix("kubewasi");
        let metrics = Metrics {
            writes: Family::default(),
            failures: Counter::default(),
            // From a millisecond to half a minute.
            reconcile: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            nodes: Family::default(),
            leading: Gauge::default(),
            resident: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register("writes", "Writes to the API server, by kind", metrics.writes.clone());
        registry.register(
            "reconcile_failures",
            "Reconciliations that ended with an error",
            metrics.failures.clone(),
        );
        registry.register_with_unit(
            "reconcile_duration",
            "How long a reconciliation took",
            Unit::Seconds,
            metrics.reconcile.clone(),
        );
        registry.register(
            "nodes",
            "Nodes of a runtime, by where they stand",
            metrics.nodes.clone(),
        );
        registry.register("leading", "1 while this replica leads", metrics.leading.clone());
        registry.register_with_unit(
            "resident_memory",
            "The resident set of the process",
            Unit::Bytes,
            metrics.resident.clone(),
        );
        Metrics { registry, ..metrics }
    }
}

impl Metrics {
    /// Counts a write that was performed.
    pub fn wrote(&self, kind: &'static str) {
        self.writes.get_or_create(&WriteLabels { kind }).inc();
    }

    /// Notes how long a reconciliation took, in seconds, and whether it failed.
    pub fn reconciled(&self, seconds: f64, failed: bool) {
        self.reconcile.observe(seconds);
        if failed {
            self.failures.inc();
        }
    }

    /// Notes how a runtime's nodes stand.
    pub fn counted(&self, runtime: &str, counts: &NodeCounts) {
        for (state, count) in states(counts) {
            let labels = NodeLabels {
                runtime: runtime.to_owned(),
                state,
            };
            self.nodes.get_or_create(&labels).set(i64::from(count));
        }
    }

    /// Forgets a runtime that is gone.
    pub fn forget(&self, runtime: &str) {
        for (state, _) in states(&NodeCounts::default()) {
            self.nodes.remove(&NodeLabels {
                runtime: runtime.to_owned(),
                state,
            });
        }
    }

    /// Notes that this replica leads.
    pub fn leads(&self) {
        self.leading.set(1);
    }

    /// All metrics in Prometheus' text format.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        if let Some(bytes) = resident_bytes() {
            self.resident.set(bytes);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn states(counts: &NodeCounts) -> [(&'static str, u32); 6] {
    [
        ("selected", counts.selected),
        ("ready", counts.ready),
        ("updated", counts.updated),
        ("working", counts.working),
        ("failed", counts.failed),
        ("refused", counts.refused),
    ]
}

fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    u64::try_from(rustix::param::page_size()).ok().map(|size| pages * size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_counted_by_kind_and_a_runtime_that_is_gone_is_forgotten() {
        let metrics = Metrics::default();
        metrics.wrote("GrantPermit");
        metrics.wrote("GrantPermit");
        metrics.counted(
            "wasi",
            &NodeCounts {
                selected: 3,
                ..NodeCounts::default()
            },
        );
        let text = metrics.text().unwrap();
        assert!(text.contains("kubewasi_writes_total{kind=\"GrantPermit\"} 2"), "{text}");
        assert!(
            text.contains("kubewasi_nodes{runtime=\"wasi\",state=\"selected\"} 3"),
            "{text}"
        );
        metrics.forget("wasi");
        assert!(!metrics.text().unwrap().contains("wasi\""));
    }
}
