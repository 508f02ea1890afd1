//! What keeps the runtime on nodes that it is to leave, in words.

use super::Decisions;
use super::silence::is_silent;
use super::standing::Progress;
use crate::api::WasmNode;
use crate::api::labels;
use crate::api::wasm_node::WishedState;
use crate::operator::view::{View, WasmPod};

/// How many pods or nodes a message names.
const MOST_NAMES: usize = 5;

/// How the deletion of a runtime stands.
pub fn deleting(view: &View, decisions: &Decisions) -> String {
    let mut parts: Vec<String> = held(view).collect();
    if parts.is_empty() {
        parts.push(format!(
            "the runtime is being taken from {} nodes",
            view.wasm_nodes.len()
        ));
    }
    if view.runtime.spec.rollout.paused {
        parts.push("no node is cleaned while spec.rollout.paused is set".to_owned());
    }
    if decisions.rollout.halted {
        parts.push(format!(
            "{} nodes failed, which is spec.rollout.failureThreshold, so no other is cleaned; mend them, or set the \
             annotation {} to a new value to try them again",
            decisions.rollout.count(Progress::Failed),
            labels::RETRY
        ));
    }
    for name in view.unreadable.keys().take(1) {
        parts.push(format!(
            "WasmNode {name} cannot be read; delete it to go on without its node"
        ));
    }
    parts.join("; ")
}

/// What keeps nodes from being cleaned: their pods, or nobody who could do it.
pub fn held(view: &View) -> impl Iterator<Item = String> {
    let leaving = || {
        view.wasm_nodes
            .iter()
            .filter(move |(_, wasm_node)| is_leaving(view, wasm_node))
    };
    let pods: Vec<String> = view
        .pods
        .iter()
        .filter(|pod| leaving().any(|(name, _)| *name == pod.node))
        .map(|WasmPod { namespace, name, .. }| format!("{namespace}/{name}"))
        .collect();
    let dead: Vec<String> = leaving()
        .filter(|(name, _)| !view.is_ready(name))
        .map(|(name, _)| name.clone())
        .collect();
    let silent: Vec<String> = leaving()
        .filter(|(name, wasm_node)| view.is_ready(name) && is_silent(view, wasm_node))
        .map(|(name, _)| name.clone())
        .collect();
    let say = |what: String, names: &[String]| (!names.is_empty()).then(|| format!("{what}: {}", named(names)));
    [
        say(format!("waiting for {} wasm pods to end", pods.len()), &pods),
        say(
            format!(
                "waiting for {} nodes that are not ready, whose Node may be deleted if they do not come back",
                dead.len()
            ),
            &dead,
        ),
        say(
            format!("waiting for the agents of {} nodes, which do not report", silent.len()),
            &silent,
        ),
    ]
    .into_iter()
    .flatten()
}

/// Whether the runtime is to go from the node.
pub fn is_leaving(view: &View, wasm_node: &WasmNode) -> bool {
    view.is_deleting() || wasm_node.spec.wish.state == WishedState::Removed
}

fn named(names: &[String]) -> String {
    let more = if names.len() > MOST_NAMES { " and others" } else { "" };
    format!("{}{more}", names[..names.len().min(MOST_NAMES)].join(", "))
}
