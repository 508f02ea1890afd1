//! What people read: conditions with reasons that say what to do, counts, and the nodes that need somebody.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::Decisions;
use super::held;
use super::nodes::wasm_node_name;
use super::selection::Conflict;
use super::silence::{self, agents_are_away, is_silent};
use super::standing::{Progress, Standing, standing};
use crate::api::bounds::cut;
use crate::api::wasm_node::WishedState;
use crate::api::wasm_runtime::{Attention, NodeCounts, WasmRuntimeStatus};
use crate::operator::view::{View, is_labelled};
use crate::operator::write::Refusal;

/// How many nodes that need somebody are listed; who has more of them has one problem, not many.
const MOST_ATTENTION: usize = 10;
/// How many characters of the API server's reason a message has: it says first what is wrong.
const MOST_REASON: usize = 1000;

/// Why a node is listed whose agent does not report.
const SILENT: &str = "Silent";

/// A condition without its times.
struct Verdict {
    holds: bool,
    reason: &'static str,
    message: String,
}

/// The status that follows from what was seen and decided.
pub fn status(view: &View, decisions: &Decisions, refused: &[Refusal]) -> WasmRuntimeStatus {
    let counts = counts(view, decisions);
    let attention = attention(view, decisions);
    let verdicts = [
        ("Available", available(&counts)),
        ("Progressing", progressing(view, decisions, &counts)),
        ("Degraded", degraded(view, decisions, &counts, &attention, refused)),
    ];
    let old = view.runtime.status.as_ref();
    WasmRuntimeStatus {
        observed_generation: view.runtime.metadata.generation,
        conditions: verdicts
            .into_iter()
            .map(|(type_, verdict)| condition(view, type_, verdict))
            .collect(),
        nodes: counts,
        attention: attention.into_iter().take(MOST_ATTENTION).collect(),
        permitted: decisions.rollout.permitted.clone(),
        agents_generation: decisions
            .agents_generation
            .or(old.and_then(|old| old.agents_generation)),
    }
}

fn condition(view: &View, type_: &str, verdict: Verdict) -> Condition {
    let status = if verdict.holds { "True" } else { "False" };
    let since = view
        .runtime
        .status
        .as_ref()
        .and_then(|old| old.conditions.iter().find(|condition| condition.type_ == type_))
        .filter(|old| old.status == status)
        .map(|old| old.last_transition_time.clone());
    Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.to_owned(),
        message: verdict.message,
        observed_generation: view.runtime.metadata.generation,
        // Whole seconds are what the API server keeps.
        last_transition_time: since.unwrap_or_else(|| Time(whole_seconds(view.now))),
    }
}

fn whole_seconds(at: jiff::Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn counts(view: &View, decisions: &Decisions) -> NodeCounts {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let installed = |name: &String| {
        view.wasm_nodes
            .get(name)
            .is_some_and(|wasm_node| wasm_node.spec.wish.state == WishedState::Installed)
    };
    NodeCounts {
        selected: number(decisions.nodes.wanted.len()),
        ready: number(
            view.nodes
                .values()
                .filter(|node| is_labelled(node, &view.name()))
                .count(),
        ),
        updated: number(
            decisions
                .rollout
                .progress
                .iter()
                .filter(|(name, progress)| **progress == Progress::Done && installed(name))
                .count(),
        ),
        working: number(
            view.wasm_nodes
                .values()
                .filter(|wasm_node| wasm_node.spec.permit.is_some())
                .count(),
        ),
        failed: number(decisions.rollout.count(Progress::Failed)),
        refused: number(decisions.rollout.count(Progress::Refused)),
    }
}

fn available(counts: &NodeCounts) -> Verdict {
    let (holds, reason) = match (counts.selected, counts.ready) {
        (0, _) => (false, "NoNodes"),
        (_, 0) => (false, "NoReadyNodes"),
        (selected, ready) if ready >= selected => (true, "AllNodesReady"),
        _ => (true, "SomeNodesReady"),
    };
    Verdict {
        holds,
        reason,
        message: match reason {
            "NoNodes" => "no node matches spec.nodeSelector, has only taints that spec.tolerations tolerates, and is \
                          free of older runtimes"
                .to_owned(),
            _ => format!("{} of {} selected nodes can run pods", counts.ready, counts.selected),
        },
    }
}

fn progressing(view: &View, decisions: &Decisions, counts: &NodeCounts) -> Verdict {
    let verdict = |holds, reason, message| Verdict { holds, reason, message };
    if view.is_deleting() {
        return verdict(true, "Deleting", held::deleting(view, decisions));
    }
    let open = decisions.rollout.count(Progress::Unseen)
        + decisions.rollout.count(Progress::Planned)
        + decisions.rollout.count(Progress::Working)
        + decisions.rollout.count(Progress::Unproven);
    if decisions.rollout.halted {
        return verdict(
            false,
            "RolloutHalted",
            format!(
                "{} nodes failed, which is spec.rollout.failureThreshold; mend them or the spec, or set the annotation \
                 {} to a new value to try them again",
                counts.failed,
                crate::api::labels::RETRY
            ),
        );
    }
    if open == 0 {
        return verdict(
            false,
            "RolloutComplete",
            format!("{} nodes have what the spec says", counts.updated),
        );
    }
    if view.runtime.spec.rollout.paused {
        return verdict(
            false,
            "RolloutPaused",
            format!("{open} nodes wait, since spec.rollout.paused is set"),
        );
    }
    let held: String = held::held(view).map(|what| format!("; {what}")).collect();
    verdict(
        true,
        "RollingOut",
        format!("{open} nodes to go, {} at work{held}", counts.working),
    )
}

fn degraded(
    view: &View,
    decisions: &Decisions,
    counts: &NodeCounts,
    attention: &[Attention],
    refused: &[Refusal],
) -> Verdict {
    let verdict = |reason, message| Verdict {
        holds: true,
        reason,
        message,
    };
    if let Some(first) = refused.first() {
        let others = match refused.len() - 1 {
            0 => String::new(),
            others => format!(", and {others} other writes"),
        };
        let reason = cut(&first.message, MOST_REASON);
        return verdict(
            "WriteRefused",
            format!(
                "the API server refuses {} of {}{others}: {reason}; mend the field of the spec or the policy that it names",
                first.kind, first.name
            ),
        );
    }
    if let Some(message) = &view.forbidden {
        return verdict(
            "AgentsForbidden",
            format!(
                "the agents' pods are refused; namespace {} needs the label \
                 pod-security.kubernetes.io/enforce=privileged: {message}",
                view.settings.namespace
            ),
        );
    }
    if let Err(error) = view.runtime.spec.shim.options.check() {
        return verdict("InvalidOptions", format!("spec.shim.options: {error}"));
    }
    let stopped = silence::stopped(view);
    // Each change of the agents stops them for a moment.
    if stopped > 0 && agents_are_away(view) && attention.iter().any(|needs| needs.reason == SILENT) {
        return verdict(
            "AgentsNotRunning",
            format!(
                "{stopped} agents do not start; look at their pods in namespace {}, at spec.shim.image and at the agents' \
                 image; nodes keep their label meanwhile",
                view.settings.namespace
            ),
        );
    }
    if !decisions.classes.foreign.is_empty() {
        return verdict(
            "RuntimeClassTaken",
            format!(
                "RuntimeClass {} exists and is not this runtime's; delete it, or name another one",
                decisions.classes.foreign.join(", ")
            ),
        );
    }
    if let Some((node, conflict)) = decisions.nodes.conflicts.first_key_value() {
        return verdict(
            "RuntimeConflict",
            format!(
                "{} nodes have the older WasmRuntime {} with the same {}, {node} among them",
                decisions.nodes.conflicts.len(),
                conflict.with,
                conflict.over
            ),
        );
    }
    let reason = match (counts.failed, counts.refused, attention.is_empty()) {
        (0, 0, true) => {
            return Verdict {
                holds: false,
                reason: "AsExpected",
                message: "no node needs attention".to_owned(),
            };
        }
        (0, 0, false) => "NodesNeedAttention",
        (0, _, _) => "NodesRefused",
        _ => "NodesFailed",
    };
    verdict(
        reason,
        format!("{} nodes need attention, see status.attention", attention.len()),
    )
}

fn attention(view: &View, decisions: &Decisions) -> Vec<Attention> {
    let mut list: Vec<Attention> = view
        .wasm_nodes
        .iter()
        .filter_map(|(name, wasm_node)| {
            let status = wasm_node.status.as_ref();
            let refusal = status.and_then(|status| status.refusal.as_ref());
            let (reason, message) = match (decisions.rollout.progress.get(name), standing(view, wasm_node)) {
                (Some(Progress::Failed), _) => {
                    let failure = status.and_then(|status| status.failure.as_ref())?;
                    let host = if failure.rolled_back {
                        "rolled back"
                    } else {
                        "not rolled back"
                    };
                    (
                        "Failed".to_owned(),
                        format!("{:?}, {host}: {}", failure.step, failure.message),
                    )
                }
                // A plan may also wait for somebody while it is carried out.
                (Some(Progress::Refused | Progress::Working), _) if refusal.is_some() => {
                    let refusal = refusal?;
                    (refusal.reason.clone(), refusal.message.clone())
                }
                (Some(Progress::Refused), _) => return None,
                (_, Standing::Disproved(message)) => ("Disproved".to_owned(), message),
                // How long would be a write each minute.
                (_, Standing::Silent | Standing::Leaving) if is_silent(view, wasm_node) => (
                    SILENT.to_owned(),
                    "the agent does not report; look at its pod and its node".to_owned(),
                ),
                _ => return None,
            };
            Some(Attention {
                node: name.clone(),
                reason,
                message,
            })
        })
        .collect();
    list.extend(view.unreadable.iter().map(|(name, why)| unreadable(view, name, why)));
    list.extend(
        decisions
            .nodes
            .conflicts
            .iter()
            .map(|(node, conflict)| conflicted(node, conflict)),
    );
    list
}

fn unreadable(view: &View, wasm_node: &str, why: &str) -> Attention {
    let why = cut(why, MOST_REASON);
    let node = view
        .nodes
        .keys()
        .find(|node| wasm_node_name(&view.name(), node) == wasm_node);
    Attention {
        // Of a node that is gone, this is all that is known.
        node: node.map_or(wasm_node, String::as_str).to_owned(),
        reason: "Unreadable".to_owned(),
        message: format!("WasmNode {wasm_node} cannot be read: {why}; delete it, and it is made anew"),
    }
}

fn conflicted(node: &str, conflict: &Conflict) -> Attention {
    Attention {
        node: node.to_owned(),
        reason: "Conflict".to_owned(),
        message: format!("WasmRuntime {} is older and has {}", conflict.with, conflict.over),
    }
}
