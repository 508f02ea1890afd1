//! The RuntimeClasses: made, kept right, left to whoever owns them, and gone after their last pod.

use std::collections::BTreeMap;

use k8s_openapi::api::node::v1::{Overhead, RuntimeClass, Scheduling};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};

use super::quantity;
use crate::api::labels;
use crate::operator::view::View;
use crate::operator::write::{Seen, Write};

/// What becomes of the RuntimeClasses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    pub writes: Vec<Write>,
    /// Names that somebody else has.
    pub foreign: Vec<String>,
}

/// Decides about RuntimeClasses.
pub fn decide(view: &View) -> Decision {
    let mut decision = Decision::default();
    for name in &view.runtime.spec.runtime_classes {
        let existing = view.classes.get(name);
        // The kubelet looks the class up at each start of a sandbox, so it stays while a pod may start one again.
        let needed = !view.is_deleting() || view.has_wasm_nodes() || view.pods.iter().any(|pod| pod.class == *name);
        match existing {
            Some(class) if !is_ours(view, class) => decision.foreign.push(name.clone()),
            Some(class) if !needed => decision
                .writes
                .push(Write::DeleteRuntimeClass(Seen::of(class.as_ref()))),
            Some(class) => {
                let wanted = class_of(view, name);
                if !is_right(class, &wanted) {
                    decision.writes.push(Write::ApplyRuntimeClass(Box::new(wanted)));
                }
            }
            None if needed => {
                decision
                    .writes
                    .push(Write::CreateRuntimeClass(Box::new(class_of(view, name))));
            }
            None => {}
        }
    }
    decision
}

/// Ours is what names the runtime as its owner and leads to its handler, which cannot be changed.
fn is_ours(view: &View, class: &RuntimeClass) -> bool {
    let uid = view.runtime.uid();
    class.handler == view.runtime.spec.handler
        && class
            .owner_references()
            .iter()
            .any(|owner| Some(&owner.uid) == uid.as_ref())
}

fn class_of(view: &View, name: &str) -> RuntimeClass {
    let spec = &view.runtime.spec;
    let mut pod_fixed = BTreeMap::from([("memory".to_owned(), Quantity(spec.overhead.memory.clone()))]);
    if let Some(cpu) = &spec.overhead.cpu {
        pod_fixed.insert("cpu".to_owned(), Quantity(cpu.clone()));
    }
    RuntimeClass {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some([(labels::RUNTIME.to_owned(), view.name())].into()),
            owner_references: Some(vec![owner(view)]),
            ..ObjectMeta::default()
        },
        handler: spec.handler.clone(),
        overhead: Some(Overhead {
            pod_fixed: Some(pod_fixed),
        }),
        scheduling: Some(Scheduling {
            node_selector: Some([(labels::ready(&view.name()), labels::READY.to_owned())].into()),
            tolerations: (!spec.pod_tolerations.is_empty()).then(|| spec.pod_tolerations.clone()),
        }),
    }
}

/// The runtime as an owner. It does not block: the finalizer decides when the runtime may go.
pub fn owner(view: &View) -> OwnerReference {
    OwnerReference {
        api_version: crate::api::WasmRuntime::api_version(&()).into_owned(),
        kind: crate::api::WasmRuntime::kind(&()).into_owned(),
        name: view.name(),
        uid: view.runtime.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    }
}

fn is_right(class: &RuntimeClass, wanted: &RuntimeClass) -> bool {
    let overhead = |class: &RuntimeClass| {
        class
            .overhead
            .as_ref()
            .and_then(|overhead| overhead.pod_fixed.clone())
            .unwrap_or_default()
    };
    let (is, should) = (overhead(class), overhead(wanted));
    let same_overhead = is.len() == should.len()
        && should
            .iter()
            .all(|(name, amount)| is.get(name).is_some_and(|is| quantity::equal(is, amount)));
    let label = |class: &RuntimeClass| class.labels().get(labels::RUNTIME).cloned();
    same_overhead && class.scheduling == wanted.scheduling && label(class) == label(wanted)
}
