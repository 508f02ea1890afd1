//! A wasm runtime: which nodes should have which shim, and how the cluster stands with that.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{LocalObjectReference, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bounds::MOST_COUNTED;
use super::shim_options::ShimOptions;
use super::toleration::{TAINT_KEY, strict};

/// A wasm runtime on a set of nodes.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "kubewasi.dev",
    version = "v1alpha1",
    kind = "WasmRuntime",
    plural = "wasmruntimes",
    shortname = "wrt",
    category = "kubewasi",
    status = "WasmRuntimeStatus",
    derive = "PartialEq",
    // The name is part of label keys and of the DaemonSet's name, whose pods carry it in a label value.
    validation = ("self.metadata.name.matches('^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$')",
        "metadata.name must be at most 40 lower case letters, digits and dashes"),
    printcolumn(name = "Handler", type_ = "string", json_path = ".spec.handler"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes.selected"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.nodes.ready"),
    printcolumn(name = "Updated", type_ = "integer", json_path = ".status.nodes.updated"),
    printcolumn(name = "Available", type_ = "string", json_path = ".status.conditions[?(@.type=='Available')].status"),
    printcolumn(name = "Progressing", type_ = "string", json_path = ".status.conditions[?(@.type=='Progressing')].reason"),
    printcolumn(name = "Degraded", type_ = "string", json_path = ".status.conditions[?(@.type=='Degraded')].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct WasmRuntimeSpec {
    /// Labels of the nodes that should have the runtime; empty means every Linux node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the agent tolerates: a node with another one gets no runtime.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50), transform = strict)]
    pub tolerations: Vec<Toleration>,
    /// The name of the handler in containerd's configuration.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    #[x_kube(validation = ("self == oldSelf", "handler is immutable: delete the WasmRuntime, or add a second one"))]
    #[x_kube(validation = ("!(self in ['runc', 'crun', 'kata', 'runsc'])", "handler is the name of another runtime"))]
    pub handler: String,
    /// The RuntimeClasses that lead to the handler.
    #[schemars(
        length(min = 1, max = 8),
        inner(
            length(min = 1, max = 253),
            regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$")
        )
    )]
    #[x_kube(validation = ("self == oldSelf", "runtimeClasses is immutable: add a second WasmRuntime"))]
    #[x_kube(validation = ("self.all(a, self.exists_one(b, a == b))", "runtimeClasses must not repeat a name"))]
    pub runtime_classes: Vec<String>,
    /// Where the shim comes from and how it runs.
    pub shim: Shim,
    /// What a pod needs beside its containers.
    #[serde(default)]
    pub overhead: PodOverhead,
    /// Tolerations that the RuntimeClasses add to pods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50), transform = strict)]
    #[x_kube(validation = ("self.all(a, self.exists_one(b, a == b))", "podTolerations must not repeat one"))]
    pub pod_tolerations: Vec<Toleration>,
    /// A taint that new nodes come with, by key, taken away on the first proof; the agent tolerates it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 317), regex(pattern = TAINT_KEY))]
    pub startup_taint: Option<String>,
    /// How a change reaches the nodes.
    #[serde(default)]
    pub rollout: Rollout,
    /// What becomes of running wasm pods when the runtime is taken from their node.
    #[serde(default)]
    pub drain: Drain,
    /// Whether agents may restart containerd.
    #[serde(default)]
    pub containerd_restart: ContainerdRestart,
    /// What agents write into containerd's configuration in addition to the handler.
    #[serde(default, skip_serializing_if = "Installation::is_default")]
    pub installation: Installation,
    /// After how many seconds without a report a node counts as not ready. Agents report every 5 minutes.
    #[serde(default = "default_stale_after")]
    #[schemars(range(min = 400, max = 86400))]
    pub stale_after_seconds: u32,
}

fn default_stale_after() -> u32 {
    600
}

/// Where the shim comes from and how it runs.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shim {
    /// The image with the shim, an init container of the agent.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^\S+$"))]
    pub image: String,
    /// When the image is pulled.
    #[serde(default)]
    pub image_pull_policy: ImagePullPolicy,
    /// Secrets of the agents' namespace to pull the image with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Options of the shim; a change needs no restart of containerd.
    #[serde(default, skip_serializing_if = "ShimOptions::is_empty")]
    pub options: ShimOptions,
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ImagePullPolicy {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

/// What a pod needs beside its containers: accounted by the scheduler and by quotas.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodOverhead {
    /// Memory. The default is what was measured with ten pods on a node: the sandbox, and a share of the server.
    #[serde(default = "default_overhead_memory")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = ("isQuantity(self) && quantity(self).compareTo(quantity('0')) >= 0",
        "memory must be a quantity of 0 or more, like 2Mi"))]
    pub memory: String,
    /// CPU. An idle sandbox uses none, so there is no default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = ("isQuantity(self) && quantity(self).compareTo(quantity('0')) >= 0",
        "cpu must be a quantity of 0 or more, like 5m"))]
    pub cpu: Option<String>,
}

impl Default for PodOverhead {
    fn default() -> PodOverhead {
        PodOverhead {
            memory: default_overhead_memory(),
            cpu: None,
        }
    }
}

fn default_overhead_memory() -> String {
    "2Mi".to_owned()
}

/// How a change reaches the nodes.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// How many nodes may be changed at once: a number, or a part of the selected nodes like 10%, rounded down, at least one.
    #[serde(default = "default_max_unavailable")]
    #[schemars(extend("nullable" = false))]
    #[x_kube(validation = ("type(self) == int ? self >= 1 && self <= 2147483647 : self.matches('^[1-9][0-9]?%$|^100%$')",
        "maxUnavailable must be at least 1, or 1% to 100%"))]
    pub max_unavailable: IntOrString,
    /// No node is changed while this is set.
    #[serde(default)]
    pub paused: bool,
    /// How many failed nodes halt the rollout, until the spec changes or the annotation kubewasi.dev/retry does.
    #[serde(default = "default_failure_threshold")]
    #[schemars(range(min = 1, max = 10000))]
    pub failure_threshold: u32,
}

impl Default for Rollout {
    fn default() -> Rollout {
        Rollout {
            max_unavailable: default_max_unavailable(),
            paused: false,
            failure_threshold: default_failure_threshold(),
        }
    }
}

fn default_max_unavailable() -> IntOrString {
    IntOrString::Int(1)
}

fn default_failure_threshold() -> u32 {
    1
}

/// What becomes of running wasm pods when the runtime is taken from their node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Drain {
    /// The runtime stays until they have ended.
    #[default]
    Wait,
    /// They are evicted, as their PodDisruptionBudgets allow.
    Evict,
}

/// Whether agents may restart containerd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ContainerdRestart {
    /// Where a plan needs it; control-plane nodes one at a time and last.
    #[default]
    Rolling,
    /// Never: the agent writes the configuration and waits until someone else restarts containerd.
    Never,
}

/// What agents write into containerd's configuration in addition to the handler.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Installation {
    /// How CRI pulls images on the nodes. Unchanged leaves it to the nodes; Local lets containerd 2.1 and newer unpack
    /// images for wasi/wasm. A change restarts containerd.
    #[serde(default)]
    pub image_pull: ImagePull,
}

impl Installation {
    fn is_default(&self) -> bool {
        *self == Installation::default()
    }
}

/// How CRI pulls images on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ImagePull {
    /// As containerd is configured. From containerd 2.1 on, its default unpacks only images of the node's own platform: a
    /// container of an image for wasi/wasm alone cannot be created.
    #[default]
    Unchanged,
    /// containerd 2.1 and newer get `use_local_image_pull = true`, by which CRI unpacks what it pulls whatever its platform;
    /// older releases do so without the key. It is removed with the runtime, or when this is Unchanged again. Where an
    /// administrator's configuration has the key as false, the node is refused.
    Local,
}

impl ImagePull {
    /// Whether it is the default.
    pub fn is_unchanged(&self) -> bool {
        *self == ImagePull::Unchanged
    }
}

/// How the cluster stands with a runtime.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WasmRuntimeStatus {
    /// The generation of the spec that the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Available, Progressing and Degraded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Nodes by where they stand.
    #[serde(default)]
    pub nodes: NodeCounts,
    /// Nodes that need somebody, ten at the most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub attention: Vec<Attention>,
    /// The nodes that may hold a permit: written before any permit is, under the resource's version, so that two
    /// controllers never let out more than one of them would.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub permitted: Vec<String>,
    /// The generation of the DaemonSet that was last applied; another one means that somebody else changed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agents_generation: Option<i64>,
}

/// Nodes by where they stand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeCounts {
    /// Should have the runtime.
    #[schemars(range(max = MOST_COUNTED))]
    pub selected: u32,
    /// Have the label: pods can be scheduled.
    #[schemars(range(max = MOST_COUNTED))]
    pub ready: u32,
    /// Proved what the spec says now.
    #[schemars(range(max = MOST_COUNTED))]
    pub updated: u32,
    /// Hold a permit.
    #[schemars(range(max = MOST_COUNTED))]
    pub working: u32,
    /// Failed, and are not tried again.
    #[schemars(range(max = MOST_COUNTED))]
    pub failed: u32,
    /// Are left alone by their agent.
    #[schemars(range(max = MOST_COUNTED))]
    pub refused: u32,
}

/// A node that needs somebody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attention {
    pub node: String,
    /// A word in CamelCase.
    pub reason: String,
    pub message: String,
}
