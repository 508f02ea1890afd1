//! Which nodes should have the runtime, and which other runtime is in the way.

use k8s_openapi::api::core::v1::{Node, Taint, Toleration};
use kube::ResourceExt;

use crate::api::WasmRuntime;
use crate::operator::view::{View, label};

/// Another runtime that has what this one wants on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The older runtime.
    pub with: String,
    /// What both want, like `handler wasi`.
    pub over: String,
}

/// Whether a runtime is meant for a node.
///
/// A node that already has the runtime keeps it under a new taint: taints come and go with maintenance, and say
/// nothing about what is installed.
pub fn is_selected(runtime: &WasmRuntime, node: &Node, has_runtime: bool) -> bool {
    let linux = label(node, "kubernetes.io/os").is_none_or(|os| os == "linux");
    let labels = runtime
        .spec
        .node_selector
        .iter()
        .all(|(key, value)| label(node, key) == Some(value));
    linux && labels && (has_runtime || agent_may_run(runtime, node))
}

/// The runtime that is older than this one and shares something with it on the node.
pub fn conflict(view: &View, node: &Node) -> Option<Conflict> {
    let runtime = &view.runtime;
    view.runtimes
        .iter()
        .filter(|other| other.uid() != runtime.uid() && is_older(other, runtime))
        .filter(|other| is_selected(other, node, false))
        .find_map(|other| {
            shared(other, runtime).map(|over| Conflict {
                with: other.name_any(),
                over,
            })
        })
}

fn is_older(a: &WasmRuntime, b: &WasmRuntime) -> bool {
    let age = |runtime: &WasmRuntime| (runtime.creation_timestamp(), runtime.uid());
    age(a) < age(b)
}

/// What two runtimes cannot both have on a node. Paths on the host are not among it: they contain the runtime's name.
fn shared(a: &WasmRuntime, b: &WasmRuntime) -> Option<String> {
    if a.spec.handler == b.spec.handler {
        return Some(format!("handler {}", a.spec.handler));
    }
    b.spec
        .runtime_classes
        .iter()
        .find(|class| a.spec.runtime_classes.contains(class))
        .map(|class| format!("RuntimeClass {class}"))
}

fn agent_may_run(runtime: &WasmRuntime, node: &Node) -> bool {
    let taints = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.as_deref())
        .unwrap_or(&[]);
    taints
        .iter()
        .filter(|taint| taint.effect != "PreferNoSchedule")
        .all(|taint| {
            // What every pod of a DaemonSet tolerates, and what ours does for new nodes.
            taint.key.starts_with("node.kubernetes.io/")
                || runtime.spec.startup_taint.as_ref() == Some(&taint.key)
                || runtime
                    .spec
                    .tolerations
                    .iter()
                    .any(|toleration| tolerates(toleration, taint))
        })
}

/// Kubernetes' own rule: an empty key with Exists matches all, an empty effect matches every effect.
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let key = toleration.key.as_deref().unwrap_or_default();
    let exists = toleration.operator.as_deref() == Some("Exists");
    let effect = toleration.effect.as_deref().unwrap_or_default();
    (effect.is_empty() || effect == taint.effect)
        && (key == taint.key || (key.is_empty() && exists))
        && (exists || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default())
}
