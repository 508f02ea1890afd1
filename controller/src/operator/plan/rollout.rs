//! Who may change a node now: the rollout is nothing but permits.
//!
//! Two steps keep two controllers from letting out too many. First the node's name goes into the runtime's status, whose
//! version makes one of two concurrent decisions fail. Only a node that is seen there gets the permit itself. The way
//! back is the other way round: the permit is withdrawn, then the name goes.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::nodes;
use super::standing::{Progress, progress};
use crate::api::wasm_node::{Permit, WishedState, digest};
use crate::api::{WasmNode, WasmRuntime, labels};
use crate::operator::view::{View, is_control_plane, is_labelled, is_node_ready};
use crate::operator::write::{Seen, Write};

/// What the rollout decides.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// Permits to grant and to withdraw now, at most one a node.
    pub writes: Vec<Write>,
    /// The names for the runtime's status.
    pub permitted: Vec<String>,
    /// How far each node is.
    pub progress: BTreeMap<String, Progress>,
    /// Whether so many failed that no further node is tried.
    pub halted: bool,
}

impl Decision {
    /// How many nodes are as far as this.
    pub fn count(&self, progress: Progress) -> usize {
        self.progress.values().filter(|of_node| **of_node == progress).count()
    }
}

/// The name of a try: the same until the spec or the retry annotation changes, so that a failed node is not tried again.
pub fn attempt(runtime: &WasmRuntime) -> String {
    let retry = runtime.annotations().get(labels::RETRY).map_or("", String::as_str);
    digest(&format!("{}/{retry}", runtime.metadata.generation.unwrap_or_default()))
}

/// Decides about permits, once membership has decided what is wished for.
pub fn decide(view: &View, nodes: &nodes::Decision) -> Decision {
    let attempt = attempt(&view.runtime);
    let mut decision = Decision::default();
    for (name, wasm_node) in &view.wasm_nodes {
        decision.progress.insert(name.clone(), progress(wasm_node, &attempt));
    }
    for name in &nodes.outdated {
        // What has begun is finished first.
        let progress = decision.progress.entry(name.clone()).or_insert(Progress::Unseen);
        if *progress != Progress::Working {
            *progress = Progress::Unseen;
        }
    }
    decision.halted = decision.count(Progress::Failed) >= view.runtime.spec.rollout.failure_threshold as usize;
    let stopped = decision.halted || view.runtime.spec.rollout.paused;

    for (name, wasm_node) in &view.wasm_nodes {
        let listed = view.runtime.status.iter().any(|status| status.permitted.contains(name));
        let open = listed && !stopped && may_change(view, name, wasm_node);
        let seen = || Seen::of(wasm_node.as_ref());
        match step(wasm_node, decision.progress[name], &attempt, open) {
            Step::Grant(permit) => decision.writes.push(Write::GrantPermit {
                wasm_node: seen(),
                permit,
            }),
            Step::Withdraw => decision.writes.push(Write::WithdrawPermit { wasm_node: seen() }),
            Step::Keep => {}
            Step::Nothing => continue,
        }
        // A permit that is withdrawn just now is still held by all that anybody knows.
        decision.permitted.push(name.clone());
    }
    // Nobody knows whether they are still at work.
    let listed = view.runtime.status.iter().flat_map(|status| &status.permitted);
    decision
        .permitted
        .extend(listed.filter(|name| nodes::is_unreadable(view, name)).cloned());
    if !stopped {
        admit(view, &mut decision);
    }
    decision.permitted.sort();
    decision
}

/// What becomes of one node's permit.
enum Step {
    Grant(Permit),
    Keep,
    Withdraw,
    /// There is none, and there will be none now.
    Nothing,
}

fn step(wasm_node: &WasmNode, progress: Progress, attempt: &str, open: bool) -> Step {
    let held = wasm_node.spec.permit.as_ref();
    let plan = wasm_node.status.as_ref().and_then(|status| status.plan.as_ref());
    match (progress, plan) {
        // What has begun is finished, whatever changed meanwhile.
        (Progress::Working, _) => Step::Keep,
        // Whether the next node may be tried, the proof of this one says.
        (Progress::Unproven, _) if held.is_some() => Step::Keep,
        (Progress::Planned, Some(plan)) => {
            let wanted = Permit {
                plan: plan.hash.clone(),
                attempt: attempt.to_owned(),
            };
            match held {
                Some(held) if *held == wanted => Step::Keep,
                // An agent that looked again and has another plan goes on in its own place.
                _ if open => Step::Grant(wanted),
                Some(_) => Step::Withdraw,
                None => Step::Nothing,
            }
        }
        _ if held.is_some() => Step::Withdraw,
        _ => Step::Nothing,
    }
}

/// Adds names to the list while there is room: workers in the order of their names, then control-plane nodes, alone.
fn admit(view: &View, decision: &mut Decision) {
    let broken = view
        .wasm_nodes
        .iter()
        .filter(|(name, wasm_node)| {
            decision.progress[*name] == Progress::Failed
                && !decision.permitted.contains(name)
                && !wasm_node
                    .status
                    .as_ref()
                    .and_then(|status| status.failure.as_ref())
                    .is_some_and(|failure| failure.rolled_back)
        })
        .count();
    let most = max_unavailable(&view.runtime.spec.rollout.max_unavailable, view.wasm_nodes.len());
    let mut room = most.saturating_sub(decision.permitted.len() + broken);

    let is_control = |name: &String| view.nodes.get(name).is_some_and(|node| is_control_plane(node));
    let is_candidate = |name: &String, wasm_node: &WasmNode| {
        decision.progress[name] == Progress::Planned && may_change(view, name, wasm_node)
    };
    let mut admitted: Vec<String> = Vec::new();
    for (name, wasm_node) in &view.wasm_nodes {
        if room > 0 && !is_control(name) && !decision.permitted.contains(name) && is_candidate(name, wasm_node) {
            admitted.push(name.clone());
            room -= 1;
        }
    }
    let worker_is_open = view.wasm_nodes.iter().any(|(name, wasm_node)| {
        !is_control(name)
            && match decision.progress[name] {
                Progress::Unseen => view.is_ready(name),
                Progress::Planned => is_candidate(name, wasm_node),
                Progress::Working => true,
                Progress::Unproven | Progress::Done | Progress::Failed | Progress::Refused => false,
            }
    });
    if room > 0 && !worker_is_open && admitted.is_empty() && decision.permitted.is_empty() {
        let next = view
            .wasm_nodes
            .iter()
            .find(|(name, wasm_node)| is_control(name) && is_candidate(name, wasm_node));
        admitted.extend(next.map(|(name, _)| name.clone()));
    }
    decision.permitted.extend(admitted);
}

/// Whether nothing but the rollout's room stands between a node and its permit.
fn may_change(view: &View, name: &str, wasm_node: &WasmNode) -> bool {
    let Some(node) = view.nodes.get(name) else {
        return false;
    };
    let drained = || {
        let sandboxes = wasm_node.status.as_ref().and_then(|status| status.sandboxes);
        // The pods were listed when the label was seen to be gone, so the scheduler sends no more; the agent's count
        // knows those that are not the API server's.
        !is_labelled(node, &view.name()) && view.pods_on(name).next().is_none() && sandboxes.unwrap_or(0) == 0
    };
    is_node_ready(node) && (wasm_node.spec.wish.state == WishedState::Installed || drained())
}

/// How many of so many nodes may be out, at least one.
fn max_unavailable(limit: &IntOrString, nodes: usize) -> usize {
    match limit {
        IntOrString::Int(number) => usize::try_from(*number).unwrap_or(0),
        IntOrString::String(text) => {
            let percent: usize = text.trim_end_matches('%').parse().unwrap_or(0);
            nodes * percent / 100
        }
    }
    .max(1)
}
