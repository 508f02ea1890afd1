//! Who has not been heard for too long, and when that says nothing about the nodes.

use crate::api::WasmNode;
use crate::operator::view::View;

/// Whether nothing was heard of the node for longer than the spec allows.
pub fn is_silent(view: &View, wasm_node: &WasmNode) -> bool {
    silence(view, wasm_node) > i64::from(view.runtime.spec.stale_after_seconds)
}

/// For how many seconds nothing was heard, counted from when somebody could have been heard.
fn silence(view: &View, wasm_node: &WasmNode) -> i64 {
    let heard = view.heard.get(&wasm_node.spec.node_name).copied();
    view.now
        .duration_since(heard.map_or(view.since, |heard| heard.max(view.since)))
        .as_secs()
}

/// Whether silence is expected, since agents are being replaced by a change of ours or so many of them do not run that
/// their image is more likely broken than their nodes. Nodes that are not ready do not count: their agent may never
/// come back.
pub fn agents_are_away(view: &View) -> bool {
    let Some(agents) = &view.agents else {
        return true;
    };
    let Some(status) = &agents.status else {
        return true;
    };
    let dead = dead(view);
    let without = |agents: i32| usize::try_from(status.desired_number_scheduled - agents).unwrap_or(0);
    let is_rolling = without(status.updated_number_scheduled.unwrap_or(0)) > dead;
    status.observed_generation < agents.metadata.generation || is_rolling || {
        let alive = without(0).saturating_sub(dead);
        let stopped = stopped(view);
        // One of many is its node's affair, but all are not, however few.
        stopped > 0 && (stopped >= alive || stopped > (alive / 10).max(1))
    }
}

/// How many agents should run and do not, on nodes that are ready.
pub fn stopped(view: &View) -> usize {
    let Some(status) = view.agents.as_ref().and_then(|agents| agents.status.as_ref()) else {
        return 0;
    };
    let running = status.number_available.unwrap_or(0);
    let stopped = usize::try_from(status.desired_number_scheduled - running).unwrap_or(0);
    stopped.saturating_sub(dead(view))
}

fn dead(view: &View) -> usize {
    view.wasm_nodes.keys().filter(|name| !view.is_ready(name)).count()
}
