//! The plan: listed objects in, writes out. Nothing here asks, waits or writes.
//!
//! ```text
//! View ──> nodes ───────> WasmNodes and their wishes, where agents run
//!          rollout ─────> permits
//!          node_labels ─> labels and startup taints
//!          classes ─────> RuntimeClasses
//!          agents ──────> the DaemonSet
//!          drain ───────> evictions
//!          status ──────> what people read, and who may hold permits
//! ```
//!
//! A plan writes an object once at most: each write carries the version that was seen, so a second one would be
//! refused. What is left to do follows from what is seen next.

pub mod agents;
mod classes;
mod drain;
mod held;
pub mod node_labels;
pub mod nodes;
mod quantity;
mod rollout;
mod selection;
mod silence;
mod standing;
mod status;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use super::view::View;
use super::write::{Refusal, Seen, Write};
use crate::api::labels;

/// What is to be done for a runtime now, and when to look again if nothing changes.
#[derive(Debug, PartialEq)]
pub struct Plan {
    pub writes: Vec<Write>,
    pub look_again: Duration,
}

/// What the parts of a plan decided, for the status.
pub struct Decisions {
    nodes: nodes::Decision,
    rollout: rollout::Decision,
    classes: classes::Decision,
    agents_generation: Option<i64>,
}

/// Makes the plan for a runtime.
pub fn plan(view: &View) -> Plan {
    let finalizers = view.runtime.metadata.finalizers.clone().unwrap_or_default();
    let has_ours = finalizers.iter().any(|finalizer| finalizer == labels::FINALIZER);
    if view.is_deleting() && !has_ours {
        // Others' finalizers hold it; we are done.
        return Plan {
            writes: Vec::new(),
            look_again: look_again(view),
        };
    }
    if !has_ours {
        let mut finalizers = finalizers;
        finalizers.push(labels::FINALIZER.to_owned());
        return Plan {
            writes: vec![Write::AddFinalizer {
                runtime: Seen::of(view.runtime.as_ref()),
                finalizers,
            }],
            look_again: look_again(view),
        };
    }

    let (agents, decisions) = decide(view);
    let mut writes: Vec<Write> = Vec::new();
    // A node that should lose its label loses it first, and the classes are there before a label is.
    let (taken, labelled): (Vec<Write>, Vec<Write>) = node_labels::decide(view)
        .into_iter()
        .partition(|write| matches!(write, Write::TakeReady { .. }));
    writes.extend(taken);
    writes.extend(decisions.classes.writes.iter().cloned());
    writes.extend(decisions.nodes.writes.iter().cloned());
    writes.extend(decisions.rollout.writes.iter().cloned());
    writes.extend(agents);
    writes.extend(labelled);
    writes.extend(drain::decide(view));

    if writes.is_empty() && view.is_deleting() && is_gone(view) {
        writes.push(Write::RemoveFinalizer {
            runtime: Seen::of(view.runtime.as_ref()),
            finalizers: finalizers
                .into_iter()
                .filter(|finalizer| finalizer != labels::FINALIZER)
                .collect(),
        });
    } else {
        writes.extend(told(view, &decisions, &[]));
    }
    Plan {
        writes: once_an_object(writes),
        look_again: look_again(view),
    }
}

/// The status when the API server refused some of the plan's writes, to be written instead of the plan's own.
pub fn told_of(view: &View, refused: &[Refusal]) -> Option<Write> {
    let (_, mut decisions) = decide(view);
    if refused.iter().any(|refusal| refusal.kind == "ApplyAgents") {
        // What was not applied is applied again, even if somebody else brought the DaemonSet to this generation.
        decisions.agents_generation = None;
    }
    told(view, &decisions, refused)
}

fn told(view: &View, decisions: &Decisions, refused: &[Refusal]) -> Option<Write> {
    let status = status::status(view, decisions, refused);
    (view.runtime.status.as_ref() != Some(&status)).then(|| Write::UpdateStatus {
        runtime: Seen::of(view.runtime.as_ref()),
        status: Box::new(status),
    })
}

fn decide(view: &View) -> (Vec<Write>, Decisions) {
    let (agents, agents_generation) = agents::decide(view);
    let nodes = nodes::decide(view);
    let decisions = Decisions {
        rollout: rollout::decide(view, &nodes),
        nodes,
        classes: classes::decide(view),
        agents_generation,
    };
    (agents, decisions)
}

/// Whether nothing of a deleted runtime is left but itself.
fn is_gone(view: &View) -> bool {
    !view.has_wasm_nodes() && view.agents.is_none() && view.pods.is_empty()
}

fn once_an_object(writes: Vec<Write>) -> Vec<Write> {
    let mut seen = BTreeSet::new();
    writes
        .into_iter()
        .filter(|write| write.target().is_none_or(|target| seen.insert(target.uid.clone())))
        .collect()
}

/// Silence makes no event, and neither do pods: a runtime is looked at from time to time, and often while it drains.
fn look_again(view: &View) -> Duration {
    if view.is_draining() {
        Duration::from_secs(3)
    } else {
        Duration::from_secs(30)
    }
}
