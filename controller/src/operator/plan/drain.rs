//! How running pods leave a node that is to lose the runtime.

use crate::api::wasm_node::WishedState;
use crate::api::wasm_runtime::Drain;
use crate::operator::view::{View, is_labelled};
use crate::operator::write::Write;

/// Decides about evictions: only where the spec asks for them, and only when no new pod can come.
pub fn decide(view: &View) -> Vec<Write> {
    if view.runtime.spec.drain != Drain::Evict {
        return Vec::new();
    }
    let name = view.name();
    view.pods
        .iter()
        .filter(|pod| {
            view.wasm_nodes
                .get(&pod.node)
                .is_some_and(|wasm_node| wasm_node.spec.wish.state == WishedState::Removed)
                && view.nodes.get(&pod.node).is_some_and(|node| !is_labelled(node, &name))
        })
        .cloned()
        .map(Write::EvictPod)
        .collect()
}
