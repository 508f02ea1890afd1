//! A runtime on one node: what the controller wishes and permits, and what the agent reports.
//!
//! The agent compares the wish with its host and reports a plan. The controller permits that plan, by its hash, when
//! the rollout has room. The agent then works through the plan, proves the node, and reports the proof. A failure is
//! reported with the attempt of the permit, and the same attempt is never permitted twice.

#![expect(
    clippy::duplicated_attributes,
    reason = "printer columns of one type are no duplicates"
)]

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::bounds::{MOST_COUNTED, MOST_MESSAGE, MOST_WORD, cut, instant};
use super::shim_options::ShimOptions;
use super::wasm_runtime::{ContainerdRestart, ImagePull};

/// A runtime on one node. Made by the controller, reported on by the node's agent.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "kubewasi.dev",
    version = "v1alpha1",
    kind = "WasmNode",
    plural = "wasmnodes",
    shortname = "wnode",
    category = "kubewasi",
    status = "WasmNodeStatus",
    derive = "PartialEq",
    selectable = ".spec.nodeName",
    printcolumn(name = "Runtime", type_ = "string", json_path = ".spec.runtime"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.nodeName"),
    printcolumn(name = "Wish", type_ = "string", json_path = ".spec.wish.state"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Step", type_ = "string", json_path = ".status.step"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.proof.shimVersion"),
    printcolumn(name = "Sandboxes", type_ = "integer", json_path = ".status.sandboxes"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct WasmNodeSpec {
    /// The node.
    #[x_kube(validation = ("self == oldSelf", "nodeName is immutable"))]
    pub node_name: String,
    /// The WasmRuntime.
    #[x_kube(validation = ("self == oldSelf", "runtime is immutable"))]
    pub runtime: String,
    /// What the node should be.
    pub wish: Wish,
    /// The one plan that the agent may carry out now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permit: Option<Permit>,
}

/// What a node should be, with everything that its agent needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Wish {
    /// Whether the runtime should be there.
    pub state: WishedState,
    /// The handler's name in containerd's configuration.
    pub handler: String,
    /// The image that the shim comes from. An agent that was started with another one waits for its DaemonSet.
    pub shim_image: String,
    /// Options of the shim.
    #[serde(default, skip_serializing_if = "ShimOptions::is_empty")]
    pub options: ShimOptions,
    /// Whether the agent may restart containerd.
    pub containerd_restart: ContainerdRestart,
    /// How CRI pulls images; Unchanged where it is missing.
    // The default is left out, so that the hash of a wish without it is that of an older controller's.
    #[serde(default, skip_serializing_if = "ImagePull::is_unchanged")]
    pub image_pull: ImagePull,
}

impl Wish {
    /// The first 16 hex digits of the SHA-256 of the wish as JSON; a report names the wish it speaks of by it.
    pub fn hash(&self) -> String {
        // Field order is the declaration's and maps are sorted, so equal wishes have equal JSON.
        digest(&serde_json::json!(self).to_string())
    }
}

/// The first 16 hex digits of a SHA-256: 64 bits tell apart what one node is ever asked.
pub(crate) fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes())
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Whether the runtime should be on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WishedState {
    Installed,
    Removed,
}

/// Leave to carry out one plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Permit {
    /// The hash of the plan, as the agent reported it.
    pub plan: String,
    /// Which try of the rollout this is; a failure repeats it.
    pub attempt: String,
}

/// The agent's report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WasmNodeStatus {
    /// The hash of the wish that the report speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MOST_WORD))]
    pub observed_wish: Option<String>,
    /// When the agent last reported; renewed with each proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = instant)]
    pub reported_at: Option<Time>,
    /// Where the node stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// What is to be done for the wish, while something is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// The step of the plan that the agent is at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<Step>,
    /// What the agent saw work. It ends with a change of any of its facts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// What the agent saw not work any more, after a proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disproof: Option<Disproof>,
    /// Why the agent leaves this host alone; or, while it works, what its plan waits for that somebody has to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    /// How the last permitted plan failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// How many pod sandboxes of the handler containerd has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = MOST_COUNTED))]
    pub sandboxes: Option<u32>,
}

/// Where a node stands, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// There is a plan and no permit for it.
    Waiting,
    /// A permitted plan is carried out.
    Working,
    /// The wish is fulfilled and proven.
    Ready,
    /// The permitted plan failed.
    Failed,
    /// The agent leaves the host alone.
    Refused,
    /// The wish to remove is fulfilled: nothing of the runtime is left.
    Removed,
}

/// What an agent will do, made of the wish and its host's state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The first 16 hex digits of the SHA-256 of all that the plan would do.
    #[schemars(length(max = MOST_WORD))]
    pub hash: String,
    /// What will be done, in order.
    #[schemars(length(max = 20))]
    pub steps: Vec<Step>,
}

impl Plan {
    /// Whether containerd will be restarted.
    pub fn restarts_containerd(&self) -> bool {
        self.steps.contains(&Step::RestartContainerd)
    }
}

/// A step of a plan: after each the agent may be killed, and the node still comes out right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Step {
    /// The shim is on the host under a name with its digest.
    StageShim,
    /// The options file is beside the shim.
    WriteOptions,
    /// The stable path names the staged shim.
    SwitchShim,
    /// containerd's configuration has the handler.
    WriteConfig,
    /// The helper on the host restarts containerd, and rolls back what does not come up.
    RestartContainerd,
    /// A wasm module runs by the handler.
    Prove,
    /// containerd's configuration no longer has the handler.
    RemoveConfig,
    /// The shim and its folders are gone.
    RemoveShim,
}

/// What was true when a wasm module last ran by the handler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Proof {
    /// The wish that the node fulfils; an older one while an upgrade waits.
    #[schemars(length(max = MOST_WORD))]
    pub wish: String,
    /// The kernel's boot id.
    #[schemars(length(max = MOST_WORD))]
    pub boot_id: String,
    /// When containerd was started.
    #[schemars(transform = instant)]
    pub containerd_started: Time,
    /// The hash of the configuration that containerd runs with.
    #[schemars(length(max = MOST_WORD))]
    pub config_hash: String,
    /// The SHA-256 of the shim, in hex.
    #[schemars(length(max = MOST_WORD))]
    pub shim_digest: String,
    /// The version that the shim says it is; the value of a label.
    #[schemars(length(max = MOST_WORD))]
    pub shim_version: String,
    /// When the module ran.
    #[schemars(transform = instant)]
    pub proven_at: Time,
}

/// What stopped working.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disproof {
    /// What was seen.
    pub reason: DisproofReason,
    /// What exactly, for people.
    #[schemars(length(max = MOST_MESSAGE))]
    pub message: String,
    /// How often in a row.
    #[schemars(range(max = MOST_COUNTED))]
    pub times: u32,
    /// Since when.
    #[schemars(transform = instant)]
    pub since: Time,
}

/// What an agent can see that ends a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DisproofReason {
    /// The module did not run as it should.
    SmokeFailed,
    /// The running containerd does not list the handler.
    HandlerGone,
}

/// Why a host is left alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// A word in CamelCase, like NoSystemd.
    #[schemars(length(max = MOST_WORD))]
    pub reason: String,
    /// What was found, and what an admin can do about it.
    #[schemars(length(max = MOST_MESSAGE))]
    pub message: String,
}

/// How a permitted plan failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// The permit's attempt.
    #[schemars(length(max = MOST_WORD))]
    pub attempt: String,
    /// The permit's plan.
    #[schemars(length(max = MOST_WORD))]
    pub plan: String,
    /// The step that failed.
    pub step: Step,
    /// What happened.
    #[schemars(length(max = MOST_MESSAGE))]
    pub message: String,
    /// Whether the host is again as it was before the plan.
    pub rolled_back: bool,
    /// When.
    #[schemars(transform = instant)]
    pub at: Time,
}

impl WasmNodeStatus {
    /// Cuts what may be longer than the schema allows: a report that is refused would tell nothing at all.
    pub fn fit(&mut self) {
        let texts = [
            self.disproof.as_mut().map(|disproof| &mut disproof.message),
            self.refusal.as_mut().map(|refusal| &mut refusal.message),
            self.failure.as_mut().map(|failure| &mut failure.message),
        ];
        for text in texts.into_iter().flatten() {
            text.truncate(cut(text, MOST_MESSAGE).len());
        }
        if let Some(proof) = &mut self.proof {
            let kept = cut(&proof.shim_version, MOST_WORD).len();
            proof.shim_version.truncate(kept);
        }
    }

    /// The age of the report in seconds, if there is one.
    pub fn age(&self, now: Timestamp) -> Option<i64> {
        self.reported_at.as_ref().map(|at| now.duration_since(at.0).as_secs())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_wish_that_leaves_image_pulls_alone_has_the_hash_of_one_that_says_nothing_of_them() {
        let wish = |image_pull: Option<&str>| {
            let mut wish = json!({
                "state": "Installed", "handler": "wasi", "shimImage": "shim:1", "containerdRestart": "Rolling",
            });
            if let Some(image_pull) = image_pull {
                wish["imagePull"] = json!(image_pull);
            }
            serde_json::from_value::<Wish>(wish).unwrap().hash()
        };
        assert_eq!(wish(Some("Unchanged")), wish(None));
        assert_ne!(wish(Some("Local")), wish(None));
    }
}
