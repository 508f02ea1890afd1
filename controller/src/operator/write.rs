//! Every write of the controller, as a value.
//!
//! A plan is a list of these. Each is idempotent or carries the version of what it was decided on, so that a second
//! controller, or the same one with an old cache, changes nothing that it did not see. The kinds are the fault points
//! of the tests: the controller may be killed after any of them, and the cluster still converges.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::api::node::v1::RuntimeClass;

use super::view::WasmPod;
use crate::api::wasm_node::{Permit, Wish};
use crate::api::{WasmNode, WasmRuntimeStatus};

/// An object as it was when a write was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub name: String,
    pub uid: String,
    /// The write is refused when the object has another version by now.
    pub version: String,
}

/// A write that the API server refused, with its reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} of {name}: {message}")]
pub struct Refusal {
    pub kind: &'static str,
    pub name: String,
    /// The API server's words, which name the field, the policy or the right.
    pub message: String,
}

/// One request that changes something.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Nothing of the runtime is lost without us.
    AddFinalizer { runtime: Seen, finalizers: Vec<String> },
    /// Nothing is left of the runtime.
    RemoveFinalizer { runtime: Seen, finalizers: Vec<String> },
    /// What people read, and which nodes may hold permits.
    UpdateStatus {
        runtime: Seen,
        status: Box<WasmRuntimeStatus>,
    },
    /// The agents' DaemonSet, by server-side apply.
    ApplyAgents(Box<DaemonSet>),
    /// The agents' DaemonSet is no longer needed.
    DeleteAgents(Seen),
    /// A RuntimeClass by POST: an existing one is never taken over.
    CreateRuntimeClass(Box<RuntimeClass>),
    /// A RuntimeClass that names the runtime as its owner, by server-side apply.
    ApplyRuntimeClass(Box<RuntimeClass>),
    /// A RuntimeClass of ours, after its last pod.
    DeleteRuntimeClass(Seen),
    /// A node gets the runtime.
    CreateWasmNode(Box<WasmNode>),
    /// A node should become something else.
    ChangeWish { wasm_node: Seen, wish: Box<Wish> },
    /// An agent may carry out its plan.
    GrantPermit { wasm_node: Seen, permit: Permit },
    /// A plan is done, has failed, or is no longer the agent's.
    WithdrawPermit { wasm_node: Seen },
    /// A node is clean.
    DeleteWasmNode(Seen),
    /// A node is to run the agent.
    RequestAgent { node: Seen, labels: LabelChange },
    /// A node no longer runs the agent.
    ReleaseAgent { node: Seen, labels: LabelChange },
    /// A node proved the runtime.
    SetReady { node: Seen, labels: LabelChange },
    /// A node does not have the runtime any more.
    TakeReady {
        node: Seen,
        labels: LabelChange,
        why: String,
    },
    /// A new node proved the runtime, and pods may come.
    RemoveStartupTaint { node: Seen, taints: Vec<Taint> },
    /// A pod leaves a node, as its disruption budgets allow.
    EvictPod(WasmPod),
}

/// Labels to set, or to take away.
pub type LabelChange = BTreeMap<String, Option<String>>;

/// The name of each kind of write, as fault points and metrics know it.
macro_rules! kinds {
    ($($kind:ident),* $(,)?) => {
        impl Write {
            /// The kinds of all writes.
            pub const KINDS: &[&str] = &[$(stringify!($kind)),*];

            /// The write's kind.
            pub fn kind(&self) -> &'static str {
                match self {
                    $(Write::$kind { .. } => stringify!($kind),)*
                }
            }
        }
    };
}

kinds!(
    AddFinalizer,
    RemoveFinalizer,
    UpdateStatus,
    ApplyAgents,
    DeleteAgents,
    CreateRuntimeClass,
    ApplyRuntimeClass,
    DeleteRuntimeClass,
    CreateWasmNode,
    ChangeWish,
    GrantPermit,
    WithdrawPermit,
    DeleteWasmNode,
    RequestAgent,
    ReleaseAgent,
    SetReady,
    TakeReady,
    RemoveStartupTaint,
    EvictPod,
);

impl Seen {
    /// What was seen of an object; a listed object has a name, a uid and a version.
    pub fn of<K: kube::Resource>(object: &K) -> Seen {
        let meta = object.meta();
        Seen {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            version: meta.resource_version.clone().unwrap_or_default(),
        }
    }
}

impl Write {
    /// The object that the write changes under the version that was seen, if it is such a write.
    pub fn target(&self) -> Option<&Seen> {
        match self {
            Write::AddFinalizer { runtime, .. }
            | Write::RemoveFinalizer { runtime, .. }
            | Write::UpdateStatus { runtime, .. } => Some(runtime),
            Write::DeleteAgents(seen) | Write::DeleteRuntimeClass(seen) | Write::DeleteWasmNode(seen) => Some(seen),
            Write::ChangeWish { wasm_node, .. }
            | Write::GrantPermit { wasm_node, .. }
            | Write::WithdrawPermit { wasm_node } => Some(wasm_node),
            Write::RequestAgent { node, .. }
            | Write::ReleaseAgent { node, .. }
            | Write::SetReady { node, .. }
            | Write::TakeReady { node, .. }
            | Write::RemoveStartupTaint { node, .. } => Some(node),
            Write::ApplyAgents(_)
            | Write::CreateRuntimeClass(_)
            | Write::ApplyRuntimeClass(_)
            | Write::CreateWasmNode(_)
            | Write::EvictPod(_) => None,
        }
    }
}
