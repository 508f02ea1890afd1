//! What a write tells people, as an event on the runtime and on the node.

use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Resource, ResourceExt};
use tokio::sync::mpsc::UnboundedReceiver;

use super::unreadable::Complaint;
use super::view::View;
use super::write::{Seen, Write};
use crate::api::bounds::cut;
use crate::api::wasm_node::Permit;
use crate::api::{WasmNode, WasmRuntime};

/// Publishes what a performed write has to say.
pub async fn publish(recorder: &Recorder, view: &View, write: &Write) {
    for (event, about) in events(view, write) {
        send(recorder, &event, &about).await;
    }
}

/// Publishes that objects cannot be read, as they are found. One of a WasmRuntime has no condition that would tell it.
pub async fn complain(recorder: Recorder, mut found: UnboundedReceiver<Complaint>) {
    while let Some((about, why)) = found.recv().await {
        let kind = about.kind.as_deref().unwrap_or_default();
        let note = format!("this {kind} is left alone, since it cannot be read: {why}; mend the field, or delete it");
        send(&recorder, &event(EventType::Warning, "Unreadable", note), &about).await;
    }
}

/// An event that gets lost is logged: the state that it tells of stands in a status or in the log too.
async fn send(recorder: &Recorder, event: &Event, about: &ObjectReference) {
    if let Err(error) = recorder.publish(event, about).await {
        tracing::warn!(%error, reason = event.reason, "an event was lost");
    }
}

/// The events of a write, and what each is about.
fn events(view: &View, write: &Write) -> Vec<(Event, ObjectReference)> {
    let name = view.name();
    let runtime = reference(view.runtime.as_ref());
    match write {
        Write::SetReady { node, .. } => on_both(
            view,
            node,
            EventType::Normal,
            "RuntimeReady",
            format!("node {} proved the runtime {name}", node.name),
        ),
        Write::TakeReady { node, why, .. } => on_both(
            view,
            node,
            EventType::Warning,
            "RuntimeNotReady",
            format!("node {} gets no pods of the runtime {name}: {why}", node.name),
        ),
        Write::GrantPermit { wasm_node, permit } => node_of(view, wasm_node)
            .map(|node| {
                on_both(
                    view,
                    &node,
                    EventType::Normal,
                    "PlanPermitted",
                    permitted(&node.name, permit),
                )
            })
            .unwrap_or_default(),
        Write::RemoveStartupTaint { node, .. } => on_both(
            view,
            node,
            EventType::Normal,
            "StartupTaintRemoved",
            format!("node {} proved the runtime {name}, so pods may come", node.name),
        ),
        Write::EvictPod(pod) => vec![(
            event(
                EventType::Normal,
                "PodEvicted",
                format!(
                    "pod {}/{} was asked to leave node {}",
                    pod.namespace, pod.name, pod.node
                ),
            ),
            runtime,
        )],
        Write::UpdateStatus { status, .. } => changed_conditions(view, status)
            .map(|event| (event, runtime.clone()))
            .collect(),
        Write::AddFinalizer { .. }
        | Write::RemoveFinalizer { .. }
        | Write::ApplyAgents(_)
        | Write::DeleteAgents(_)
        | Write::CreateRuntimeClass(_)
        | Write::ApplyRuntimeClass(_)
        | Write::DeleteRuntimeClass(_)
        | Write::CreateWasmNode(_)
        | Write::ChangeWish { .. }
        | Write::WithdrawPermit { .. }
        | Write::DeleteWasmNode(_)
        | Write::RequestAgent { .. }
        | Write::ReleaseAgent { .. } => Vec::new(),
    }
}

fn changed_conditions<'a>(
    view: &'a View,
    status: &'a crate::api::WasmRuntimeStatus,
) -> impl Iterator<Item = Event> + 'a {
    let old = |type_: &str| {
        let conditions = &view.runtime.status.as_ref()?.conditions;
        let condition = conditions.iter().find(|condition| condition.type_ == type_)?;
        Some((condition.status.clone(), condition.reason.clone()))
    };
    status
        .conditions
        .iter()
        .filter(move |new| old(&new.type_) != Some((new.status.clone(), new.reason.clone())))
        .map(|new| {
            let bad = (new.type_ == "Degraded" && new.status == "True") || new.reason == "RolloutHalted";
            let type_ = if bad { EventType::Warning } else { EventType::Normal };
            event(type_, &new.reason, new.message.clone())
        })
}

fn permitted(node: &str, permit: &Permit) -> String {
    format!("node {node} may carry out plan {}", permit.plan)
}

fn on_both(view: &View, node: &Seen, type_: EventType, reason: &str, note: String) -> Vec<(Event, ObjectReference)> {
    let about_node = ObjectReference {
        api_version: Some(Node::api_version(&()).into_owned()),
        kind: Some(Node::kind(&()).into_owned()),
        name: Some(node.name.clone()),
        uid: Some(node.uid.clone()),
        ..ObjectReference::default()
    };
    let on_runtime = Event {
        // Events that differ by their note alone are made one, with the first note: nodes would be lost.
        secondary: Some(about_node.clone()),
        ..event(type_, reason, note.clone())
    };
    vec![
        (on_runtime, reference(view.runtime.as_ref())),
        (event(type_, reason, note), about_node),
    ]
}

fn node_of(view: &View, wasm_node: &Seen) -> Option<Seen> {
    let found: &WasmNode = view
        .wasm_nodes
        .values()
        .find(|candidate| candidate.uid().as_deref() == Some(&wasm_node.uid))?;
    view.nodes
        .get(&found.spec.node_name)
        .map(|node| Seen::of(node.as_ref()))
}

fn reference(runtime: &WasmRuntime) -> ObjectReference {
    runtime.object_ref(&())
}

fn event(type_: EventType, reason: &str, note: String) -> Event {
    Event {
        type_,
        reason: reason.to_owned(),
        // The API server refuses notes of more than a kibibyte.
        note: Some(cut(&note, 1000).to_owned()),
        action: "Reconcile".to_owned(),
        secondary: None,
    }
}
