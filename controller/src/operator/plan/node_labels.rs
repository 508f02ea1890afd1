//! Which nodes pods of the runtime may be scheduled to: the labels, and the startup taint.
//!
//! A label is set on proof alone. It is taken away on disproof and on silence, and slowly: what looks like many broken
//! nodes at once is more likely one broken controller.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;

use super::nodes::is_unreadable;
use super::silence::agents_are_away;
use super::standing::{Standing, is_of, standing};
use crate::api::labels;
use crate::api::wasm_node::Proof;
use crate::operator::view::{View, is_labelled, label};
use crate::operator::write::{Seen, Write};

/// The time in which at most a tenth of the nodes may lose their label.
pub const WINDOW: SignedDuration = SignedDuration::from_mins(1);

/// Decides about labels and startup taints, at most one write a node.
pub fn decide(view: &View) -> Vec<Write> {
    let mut room = (view.wasm_nodes.len() / 10).max(1).saturating_sub(taken_lately(view));
    let away = agents_are_away(view);
    let mut writes = Vec::new();
    for (name, node) in &view.nodes {
        if is_unreadable(view, name) {
            continue;
        }
        // What was said of a node that had the name before is not said of this one.
        let own = view.wasm_nodes.get(name).filter(|wasm_node| is_of(wasm_node, node));
        let standing = own.map(|wasm_node| standing(view, wasm_node));
        let labelled = is_labelled(node, &view.name()) || label(node, &labels::version(&view.name())).is_some();
        match standing {
            Some(Standing::Proven(proof)) => writes.extend(proven(view, node, &proof)),
            Some(Standing::Open) => {}
            _ if !labelled => {}
            // Who deletes the runtime means every node of it.
            Some(Standing::Leaving) if view.is_deleting() => writes.push(take(view, node, "the runtime is deleted")),
            Some(Standing::Silent) if away => {}
            _ if room == 0 => {}
            Some(Standing::Disproved(why)) => {
                room -= 1;
                writes.push(take(view, node, &why));
            }
            Some(Standing::Silent) => {
                room -= 1;
                let limit = view.runtime.spec.stale_after_seconds;
                writes.push(take(view, node, &format!("no report for more than {limit} seconds")));
            }
            Some(Standing::Leaving) => {
                room -= 1;
                writes.push(take(view, node, "the runtime leaves the node"));
            }
            None => {
                room -= 1;
                writes.push(take(view, node, "the runtime is not on the node"));
            }
        }
    }
    writes
}

fn taken_lately(view: &View) -> usize {
    view.taken.iter().filter(|at| is_recent(view.now, **at)).count()
}

/// Whether a label taken away then still counts.
pub fn is_recent(now: Timestamp, taken: Timestamp) -> bool {
    now.duration_since(taken) < WINDOW
}

fn proven(view: &View, node: &Node, proof: &Proof) -> Option<Write> {
    let version = label_value(&proof.shim_version);
    let wanted = [
        (labels::ready(&view.name()), labels::READY.to_owned()),
        (labels::version(&view.name()), version),
    ];
    if wanted.iter().any(|(key, value)| label(node, key) != Some(value)) {
        return Some(Write::SetReady {
            node: Seen::of(node),
            labels: wanted.into_iter().map(|(key, value)| (key, Some(value))).collect(),
        });
    }
    let key = view.runtime.spec.startup_taint.as_ref()?;
    let taints = node.spec.as_ref()?.taints.as_ref()?;
    taints
        .iter()
        .any(|taint| taint.key == *key)
        .then(|| Write::RemoveStartupTaint {
            node: Seen::of(node),
            taints: taints.iter().filter(|taint| taint.key != *key).cloned().collect(),
        })
}

fn take(view: &View, node: &Node, why: &str) -> Write {
    Write::TakeReady {
        node: Seen::of(node),
        labels: [
            (labels::ready(&view.name()), None),
            (labels::version(&view.name()), None),
        ]
        .into(),
        why: why.to_owned(),
    }
}

/// What a label may hold of a version: at most 63 letters, digits, dots, dashes and underscores.
fn label_value(version: &str) -> String {
    let kept: String = version
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .take(63)
        .collect();
    kept.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}
