//! What a plan is made of: listed objects, the clock, and what the controller itself remembers.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::ResourceExt;

use super::settings::Settings;
use crate::api::wasm_node::{Wish, WishedState};
use crate::api::wasm_runtime::WasmRuntime;
use crate::api::{WasmNode, labels};

/// Everything that a plan for one runtime may look at.
pub struct View {
    /// The time of the decision.
    pub now: Timestamp,
    /// Since when every watch has been current: silence before it was nobody's fault but ours.
    pub since: Timestamp,
    /// The runtime that is planned for.
    pub runtime: Arc<WasmRuntime>,
    /// All runtimes, this one too.
    pub runtimes: Vec<Arc<WasmRuntime>>,
    /// All nodes by name.
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// This runtime's WasmNodes by the name of their node.
    pub wasm_nodes: BTreeMap<String, Arc<WasmNode>>,
    /// When the controller last saw a node's agent report something new, by the name of the node.
    pub heard: BTreeMap<String, Timestamp>,
    /// The names of its WasmNodes that are there and cannot be read, with the reason: their nodes are left as they are.
    pub unreadable: BTreeMap<String, String>,
    /// This runtime's DaemonSet.
    pub agents: Option<Arc<DaemonSet>>,
    /// All RuntimeClasses by name.
    pub classes: BTreeMap<String, Arc<RuntimeClass>>,
    /// Pods on a node, not ended, whose RuntimeClass leads to the runtime's handler; listed only while
    /// [`View::is_draining`].
    pub pods: Vec<WasmPod>,
    /// Why the DaemonSet may not make pods, in the API server's words.
    pub forbidden: Option<String>,
    /// When labels were last taken away from nodes, the oldest within the last minute.
    pub taken: Vec<Timestamp>,
    /// What the controller was started with.
    pub settings: Arc<Settings>,
}

/// A pod that runs on a runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WasmPod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub node: String,
    pub class: String,
}

impl View {
    /// The runtime's name.
    pub fn name(&self) -> String {
        self.runtime.name_any()
    }

    /// Whether the runtime is to go.
    pub fn is_deleting(&self) -> bool {
        self.runtime.metadata.deletion_timestamp.is_some()
    }

    /// Whether any node has a WasmNode of the runtime.
    pub fn has_wasm_nodes(&self) -> bool {
        !self.wasm_nodes.is_empty() || !self.unreadable.is_empty()
    }

    /// Whether there is a node of this name, and the kubelet says that it is ready.
    pub fn is_ready(&self, node: &str) -> bool {
        self.nodes.get(node).is_some_and(|node| is_node_ready(node))
    }

    /// Whether pods stand between some node and what it should be: only then need they be listed.
    pub fn is_draining(&self) -> bool {
        self.is_deleting()
            || self
                .wasm_nodes
                .values()
                .any(|wasm_node| wasm_node.spec.wish.state == WishedState::Removed)
    }

    /// What a node with the runtime should be.
    pub fn wish(&self, state: WishedState) -> Wish {
        let spec = &self.runtime.spec;
        Wish {
            state,
            handler: spec.handler.clone(),
            shim_image: spec.shim.image.clone(),
            options: spec.shim.options.clone(),
            containerd_restart: spec.containerd_restart,
            image_pull: spec.installation.image_pull,
        }
    }

    /// Names of the RuntimeClasses that lead to the runtime's handler, whoever owns them.
    pub fn class_names(&self) -> impl Iterator<Item = &str> {
        self.classes
            .iter()
            .filter(|(_, class)| class.handler == self.runtime.spec.handler)
            .map(|(name, _)| name.as_str())
    }

    /// The pods of one node.
    pub fn pods_on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a WasmPod> {
        self.pods.iter().filter(move |pod| pod.node == node)
    }
}

/// A label of a node.
pub fn label<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    node.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// Whether pods of the runtime can be scheduled to the node.
pub fn is_labelled(node: &Node, runtime: &str) -> bool {
    label(node, &labels::ready(runtime)) == Some(labels::READY)
}

/// Whether the kubelet says that the node is ready.
pub fn is_node_ready(node: &Node) -> bool {
    node.status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .and_then(|conditions| conditions.iter().find(|condition| condition.type_ == "Ready"))
        .is_some_and(|ready| ready.status == "True")
}

/// Whether the node runs the control plane.
pub fn is_control_plane(node: &Node) -> bool {
    label(node, "node-role.kubernetes.io/control-plane").is_some()
}
