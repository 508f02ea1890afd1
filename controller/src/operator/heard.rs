//! When each agent was last heard, by the controller's own clock.
//!
//! As the node lifecycle controller does with a kubelet's lease: a report counts from when its change was seen here. What
//! a node's clock says is only compared with what it said before.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::ResourceExt;

use crate::api::WasmNode;

/// What is remembered, by the uid of the WasmNode. A new leader starts with nothing, so everybody is heard anew.
#[derive(Clone, Debug, Default)]
pub struct Heard(BTreeMap<String, Last>);

#[derive(Clone, Debug)]
struct Last {
    reported_at: Option<Timestamp>,
    seen: Timestamp,
}

impl Heard {
    /// Looks at all WasmNodes that there are: one that is new, or tells another time than before, is heard now.
    pub fn listen<'a>(&mut self, now: Timestamp, wasm_nodes: impl IntoIterator<Item = &'a WasmNode>) {
        let mut before = std::mem::take(&mut self.0);
        for wasm_node in wasm_nodes {
            let uid = wasm_node.uid().unwrap_or_default();
            let reported_at = wasm_node
                .status
                .as_ref()
                .and_then(|status| status.reported_at.as_ref())
                .map(|at| at.0);
            let last = before
                .remove(&uid)
                .filter(|last| last.reported_at == reported_at)
                .unwrap_or(Last { reported_at, seen: now });
            self.0.insert(uid, last);
        }
    }

    /// When the agent of one of them was last heard.
    pub fn last(&self, wasm_node: &WasmNode) -> Option<Timestamp> {
        self.0.get(&wasm_node.uid()?).map(|last| last.seen)
    }
}
