//! What a report says about a node: for its label, and for the rollout.

use k8s_openapi::api::core::v1::Node;
use kube::{Resource, ResourceExt};

use super::held::is_leaving;
use super::silence::is_silent;
use crate::api::wasm_node::{DisproofReason, Phase, Proof, Step, WishedState};
use crate::api::{WasmNode, WasmNodeStatus};
use crate::operator::view::{View, is_labelled};

/// How often in a row the smoke module must fail: once may be a full disk or a busy node.
const SMOKE_FAILURES: u32 = 3;

/// What the node's label should follow.
#[derive(Clone, Debug, PartialEq)]
pub enum Standing {
    /// The agent saw a module run, with what is on the node now.
    Proven(Proof),
    /// The agent saw that it does not work, or gave the host up.
    Disproved(String),
    /// Nothing was heard for too long.
    Silent,
    /// The runtime is to leave the node.
    Leaving,
    /// Something is going on; what was true stays.
    Open,
}

/// Where a node stands.
pub fn standing(view: &View, wasm_node: &WasmNode) -> Standing {
    if is_leaving(view, wasm_node) {
        return Standing::Leaving;
    }
    if is_silent(view, wasm_node) {
        return Standing::Silent;
    }
    let Some(status) = &wasm_node.status else {
        return Standing::Open;
    };
    if let Some(disproof) = &status.disproof {
        return match disproof.reason {
            DisproofReason::HandlerGone => Standing::Disproved(disproof.message.clone()),
            DisproofReason::SmokeFailed if disproof.times >= SMOKE_FAILURES => Standing::Disproved(format!(
                "the smoke module failed {SMOKE_FAILURES} times in a row: {}",
                disproof.message
            )),
            DisproofReason::SmokeFailed => Standing::Open,
        };
    }
    match (&status.proof, status.phase) {
        (Some(proof), _) => Standing::Proven(proof.clone()),
        (None, Some(Phase::Refused)) => Standing::Disproved(status.refusal.as_ref().map_or_else(
            || "the agent refuses the host".to_owned(),
            |refusal| refusal.message.clone(),
        )),
        (None, Some(Phase::Failed)) => Standing::Disproved(
            status
                .failure
                .as_ref()
                .map_or_else(|| "the plan failed".to_owned(), |failure| failure.message.clone()),
        ),
        (None, Some(Phase::Waiting)) if is_said_ready(view, wasm_node) && changes_containerd(status) => {
            Standing::Disproved(
                "the node's containerd has the runtime no more; its agent waits to install it".to_owned(),
            )
        }
        _ => Standing::Open,
    }
}

/// Whether the node's label says that pods can run, as it does on a node that was given a new disk.
fn is_said_ready(view: &View, wasm_node: &WasmNode) -> bool {
    let node = view.nodes.get(&wasm_node.spec.node_name);
    node.is_some_and(|node| is_labelled(node, &view.name()))
}

/// Whether the runtime is not even in what containerd runs with.
fn changes_containerd(status: &WasmNodeStatus) -> bool {
    let steps = status.plan.iter().flat_map(|plan| &plan.steps);
    steps
        .into_iter()
        .any(|step| matches!(step, Step::WriteConfig | Step::RestartContainerd))
}

/// Whether a WasmNode is of this very Node, and not of one that had the name before.
pub fn is_of(wasm_node: &WasmNode, node: &Node) -> bool {
    let owners = wasm_node.owner_references();
    let mut uids = owners
        .iter()
        .filter(|owner| owner.kind == Node::kind(&()) && owner.name == node.name_any())
        .map(|owner| &owner.uid);
    uids.all(|uid| node.metadata.uid.as_ref() == Some(uid))
}

/// How far a node is with its wish, in one try of the rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The agent has not yet looked at the wish.
    Unseen,
    /// The agent has a plan that nobody tried in this attempt.
    Planned,
    /// A permitted plan is carried out.
    Working,
    /// The agent is through with its plan, and no module ran since that would show it.
    Unproven,
    /// The wish is fulfilled, and proven where something was installed.
    Done,
    /// The plan failed in this attempt.
    Failed,
    /// The agent leaves the host alone.
    Refused,
}

/// How far a node is.
pub fn progress(wasm_node: &WasmNode, attempt: &str) -> Progress {
    let Some(status) = &wasm_node.status else {
        return Progress::Unseen;
    };
    if status.phase == Some(Phase::Working) && wasm_node.spec.permit.is_some() {
        return Progress::Working;
    }
    if status.observed_wish.as_deref() != Some(&wasm_node.spec.wish.hash()) {
        return Progress::Unseen;
    }
    if status
        .failure
        .as_ref()
        .is_some_and(|failure| failure.attempt == attempt)
    {
        return Progress::Failed;
    }
    match (&status.plan, status.phase) {
        (_, Some(Phase::Refused)) => Progress::Refused,
        (None, Some(Phase::Ready)) if wasm_node.spec.wish.state == WishedState::Installed => {
            let proven = status.proof.as_ref().map(|proof| &proof.wish);
            if proven == status.observed_wish.as_ref() {
                Progress::Done
            } else {
                Progress::Unproven
            }
        }
        (None, Some(Phase::Removed)) if wasm_node.spec.wish.state == WishedState::Removed => Progress::Done,
        (Some(_), _) => Progress::Planned,
        (None, _) => Progress::Unseen,
    }
}

/// Whether no agent can have changed anything on the node: it never had a permit, and reported nothing.
pub fn is_untouched(view: &View, wasm_node: &WasmNode) -> bool {
    wasm_node.spec.permit.is_none()
        && wasm_node.status.is_none()
        && !view
            .runtime
            .status
            .as_ref()
            .is_some_and(|status| status.permitted.contains(&wasm_node.spec.node_name))
}
