//! Which WasmNodes there are, what they wish for, and where agents run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;

use super::selection::{Conflict, conflict, is_selected};
use super::standing::{is_of, is_untouched};
use crate::api::wasm_node::{Phase, WishedState, digest};
use crate::api::{WasmNode, WasmNodeSpec, labels};
use crate::operator::view::{View, label};
use crate::operator::write::{Seen, Write};

/// What membership decides.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// At most one write a WasmNode and one a node.
    pub writes: Vec<Write>,
    /// Nodes that are selected, and that an older runtime has.
    pub conflicts: BTreeMap<String, Conflict>,
    /// Names of the nodes that should have the runtime.
    pub wanted: Vec<String>,
    /// Names of those whose WasmNode is not there yet, or wishes for something else: what it reports is of the past.
    pub outdated: BTreeSet<String>,
}

/// Decides about WasmNodes and agents.
pub fn decide(view: &View) -> Decision {
    let mut decision = Decision::default();
    for (name, node) in &view.nodes {
        let existing = view.wasm_nodes.get(name);
        let unreadable = is_unreadable(view, name);
        let selected = !view.is_deleting() && is_selected(&view.runtime, node, existing.is_some() || unreadable);
        let conflict = if selected { conflict(view, node) } else { None };
        let wanted = selected && conflict.is_none();
        if let Some(conflict) = conflict {
            decision.conflicts.insert(name.clone(), conflict);
        }
        if wanted {
            decision.wanted.push(name.clone());
        }
        if unreadable {
            continue;
        }
        let membership = membership(view, node, existing, wanted);
        let is_past = match membership {
            Some(Write::CreateWasmNode(_) | Write::ChangeWish { .. }) => true,
            // It is of another node, and will be made anew.
            Some(_) => wanted,
            None => false,
        };
        if is_past {
            decision.outdated.insert(name.clone());
        }
        decision.writes.extend(membership);
        decision.writes.extend(agent(view, node, existing.is_some()));
    }
    // The garbage collector does this too, some time after the node went.
    for (name, wasm_node) in &view.wasm_nodes {
        if !view.nodes.contains_key(name) {
            decision
                .writes
                .push(Write::DeleteWasmNode(Seen::of(wasm_node.as_ref())));
        }
    }
    decision
}

fn membership(view: &View, node: &Node, existing: Option<&Arc<WasmNode>>, wanted: bool) -> Option<Write> {
    let Some(wasm_node) = existing else {
        return wanted.then(|| Write::CreateWasmNode(Box::new(new(view, node))));
    };
    let seen = Seen::of(wasm_node.as_ref());
    if !is_of(wasm_node, node) || (!wanted && is_clean(view, wasm_node)) {
        return Some(Write::DeleteWasmNode(seen));
    }
    let wish = if wanted {
        view.wish(WishedState::Installed)
    } else {
        // The rest stays as it was, or the agent would wait for a shim that it is only to remove.
        let mut wish = wasm_node.spec.wish.clone();
        wish.state = WishedState::Removed;
        wish
    };
    (wish != wasm_node.spec.wish).then(|| Write::ChangeWish {
        wasm_node: seen,
        wish: Box::new(wish),
    })
}

fn is_clean(view: &View, wasm_node: &WasmNode) -> bool {
    let removed = wasm_node.spec.wish.state == WishedState::Removed
        && wasm_node.status.as_ref().is_some_and(|status| {
            status.phase == Some(Phase::Removed) && status.observed_wish.as_deref() == Some(&wasm_node.spec.wish.hash())
        });
    removed || is_untouched(view, wasm_node)
}

fn agent(view: &View, node: &Node, has_wasm_node: bool) -> Option<Write> {
    let key = labels::agent(&view.name());
    let has_label = label(node, &key) == Some(labels::WANTED);
    match (has_wasm_node, has_label) {
        (true, false) => Some(Write::RequestAgent {
            node: Seen::of(node),
            labels: [(key, Some(labels::WANTED.to_owned()))].into(),
        }),
        (false, _) if label(node, &key).is_some() => Some(Write::ReleaseAgent {
            node: Seen::of(node),
            labels: [(key, None)].into(),
        }),
        _ => None,
    }
}

fn new(view: &View, node: &Node) -> WasmNode {
    let seen = Seen::of(node);
    WasmNode {
        metadata: ObjectMeta {
            name: Some(wasm_node_name(&view.name(), &seen.name)),
            labels: Some([(labels::RUNTIME.to_owned(), view.name())].into()),
            owner_references: Some(vec![OwnerReference {
                api_version: Node::api_version(&()).into_owned(),
                kind: Node::kind(&()).into_owned(),
                name: seen.name.clone(),
                uid: seen.uid,
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: WasmNodeSpec {
            node_name: seen.name,
            runtime: view.name(),
            wish: view.wish(WishedState::Installed),
            permit: None,
        },
        status: None,
    }
}

/// Whether the node's WasmNode is there, and nobody knows what it says.
pub fn is_unreadable(view: &View, node: &str) -> bool {
    !view.unreadable.is_empty() && view.unreadable.contains_key(&wasm_node_name(&view.name(), node))
}

/// The name of a runtime's WasmNode: `wasi.node-1`, shortened with a digest where a node's name is too long for that.
pub fn wasm_node_name(runtime: &str, node: &str) -> String {
    // A name has at most 253 characters.
    let name = format!("{runtime}.{node}");
    if name.len() <= 253 {
        return name;
    }
    format!("{}-{}", &name[..236], digest(&name))
}
