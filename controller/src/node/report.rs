//! The report to the API server: written when it says something new, and renewed with each proof.

use std::time::Duration;

use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::api::wasm_node::{WasmNode, WasmNodeStatus};

use super::proof::now;

/// How long a report may take: the work on the host does not wait for an API server that takes connections and no more.
const PATIENCE: Duration = Duration::from_secs(10);

/// The owner of the status's fields.
const MANAGER: &str = "kubewasi-node";

/// What was last reported.
pub struct Reporter {
    client: Client,
    last: Option<WasmNodeStatus>,
}

impl Reporter {
    pub fn new(client: Client) -> Reporter {
        Reporter { client, last: None }
    }

    /// Learns what the API server has: an agent that was restarted has nothing new to tell.
    pub fn saw(&mut self, node: &WasmNode) {
        self.last.clone_from(&node.status);
    }

    /// Reports `status`, unless the last report says the same and is younger than `renew`.
    ///
    /// A report that fails is only logged: the next look makes another one.
    pub async fn report(&mut self, node: &WasmNode, mut status: WasmNodeStatus, renew: Duration) {
        status.fit();
        if self
            .last
            .as_ref()
            .is_some_and(|last| !is_due(last, &status, renew, now().0))
        {
            return;
        }
        status.reported_at = Some(now());
        let patch = json!({
            "apiVersion": "kubewasi.dev/v1alpha1",
            "kind": "WasmNode",
            "metadata": {"name": node.name_any()},
            "status": status,
        });
        let api: Api<WasmNode> = Api::all(self.client.clone());
        let parameters = PatchParams::apply(MANAGER).force();
        let name = node.name_any();
        let patch = Patch::Apply(&patch);
        let answer = tokio::time::timeout(PATIENCE, api.patch_status(&name, &parameters, &patch)).await;
        match answer {
            Ok(Ok(_)) => self.last = Some(status),
            Ok(Err(error)) => tracing::warn!(%error, "the report did not reach the API server"),
            Err(error) => tracing::warn!(%error, "the API server does not answer"),
        }
    }
}

/// Whether `status` says something that `last` does not, or `last` is old.
fn is_due(last: &WasmNodeStatus, status: &WasmNodeStatus, renew: Duration, now: Timestamp) -> bool {
    let renew = i64::try_from(renew.as_secs()).unwrap_or(i64::MAX);
    // A report from the future is one from before a clock was put right.
    let is_old = last.age(now).is_none_or(|age| !(0..renew).contains(&age));
    let same = WasmNodeStatus {
        reported_at: last.reported_at.clone(),
        ..status.clone()
    };
    is_old || same != *last
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::wasm_node::Phase;

    #[test]
    fn the_same_is_told_again_only_when_it_is_old() {
        let at = now();
        let told = WasmNodeStatus {
            phase: Some(Phase::Ready),
            reported_at: Some(at.clone()),
            ..WasmNodeStatus::default()
        };
        let same = WasmNodeStatus {
            reported_at: None,
            ..told.clone()
        };
        let renew = Duration::from_secs(300);
        let after = |seconds: i64| at.0 + jiff::SignedDuration::from_secs(seconds);
        assert!(!is_due(&told, &same, renew, after(299)));
        assert!(is_due(&told, &same, renew, after(300)));
        assert!(is_due(&told, &same, renew, after(-1)), "the clock was put back");
        let news = WasmNodeStatus {
            phase: Some(Phase::Failed),
            ..same
        };
        assert!(is_due(&told, &news, renew, after(1)));
    }
}
