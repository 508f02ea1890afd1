//! Nodes without a kubelet, and agents that report what the test wants.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::core::DeserializeGuard;
use kube::{Api, Client, ResourceExt};
use kubewasi_controller::api::wasm_node::{Phase, Plan, Proof, Step, WishedState};
use kubewasi_controller::api::{WasmNode, WasmNodeStatus, WasmRuntime};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::control_plane::PATIENCE;
use crate::package;

/// Applies what the package grants, and makes nodes that their kubelet calls ready.
pub async fn make_nodes(client: &Client, names: &[&str]) {
    package::apply_grants(client).await;
    let nodes: Api<Node> = Api::all(client.clone());
    for name in names {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}},
            "spec": {"taints": [{"key": "kubewasi.dev/starting", "effect": "NoSchedule"}]},
        }))
        .unwrap();
        nodes.create(&PostParams::default(), &node).await.unwrap();
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        nodes
            .patch_status(name, &PatchParams::default(), &Patch::Merge(ready))
            .await
            .unwrap();
    }
}

/// Makes the WasmRuntime `wasi`, with these fields beside what is required.
pub async fn make_runtime(client: &Client, fields: serde_json::Value) {
    let mut spec = json!({
        "handler": "wasi",
        "runtimeClasses": ["wasi"],
        "shim": {"image": "registry/shim:1"},
        "startupTaint": "kubewasi.dev/starting",
    });
    for (key, value) in fields.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let runtime = WasmRuntime::new("wasi", serde_json::from_value(spec).unwrap());
    let api: Api<WasmRuntime> = Api::all(client.clone());
    wait_for("the definition of WasmRuntimes", async || {
        api.create(&PostParams::default(), &runtime).await.is_ok()
    })
    .await;
}

/// Agents on all nodes, until the value is dropped.
pub struct Agents(JoinHandle<()>);

impl Agents {
    /// Starts them.
    pub fn start(client: &Client) -> Agents {
        // One that cannot be read is another agent's affair.
        let all: Api<DeserializeGuard<WasmNode>> = Api::all(client.clone());
        let api: Api<WasmNode> = Api::all(client.clone());
        Agents(tokio::spawn(async move {
            loop {
                // Nothing is served before the controller has applied the definitions.
                let listed = all.list(&ListParams::default()).await.map(|list| list.items);
                for wasm_node in listed.unwrap_or_default().into_iter().filter_map(|guard| guard.0.ok()) {
                    let next = report(&wasm_node);
                    if wasm_node.status.as_ref() != Some(&next) {
                        let patch = Patch::Merge(json!({"status": whole(&next)}));
                        // One that is deleted meanwhile is no loss.
                        let _ = api
                            .patch_status(&wasm_node.name_any(), &PatchParams::default(), &patch)
                            .await;
                    }
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }))
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The report with its absent fields named, so that a merge takes them away.
fn whole(status: &WasmNodeStatus) -> serde_json::Value {
    let mut value = json!(status);
    for field in ["plan", "proof", "step"] {
        value
            .as_object_mut()
            .unwrap()
            .entry(field)
            .or_insert(serde_json::Value::Null);
    }
    value
}

fn report(wasm_node: &WasmNode) -> WasmNodeStatus {
    let wish = &wasm_node.spec.wish;
    let hash = wish.hash();
    let mut status = wasm_node.status.clone().unwrap_or_default();
    let settled = status.observed_wish.as_ref() == Some(&hash) && status.plan.is_none();
    if settled && status.phase.is_some() {
        return status;
    }
    let plan = Plan {
        hash: format!("plan-{hash}"),
        steps: vec![Step::StageShim, Step::Prove],
    };
    // Whole seconds, as the API server keeps them.
    let now = Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap());
    status.observed_wish = Some(hash.clone());
    let permitted = wasm_node
        .spec
        .permit
        .as_ref()
        .is_some_and(|permit| permit.plan == plan.hash);
    if !permitted {
        status.phase = Some(Phase::Waiting);
        status.plan = Some(plan);
        return status;
    }
    status.plan = None;
    status.sandboxes = Some(0);
    status.reported_at = Some(now.clone());
    match wish.state {
        WishedState::Removed => {
            status.phase = Some(Phase::Removed);
            status.proof = None;
        }
        WishedState::Installed => {
            status.phase = Some(Phase::Ready);
            status.proof = Some(Proof {
                wish: hash,
                boot_id: "boot".to_owned(),
                containerd_started: now.clone(),
                config_hash: "config".to_owned(),
                shim_digest: "digest".to_owned(),
                shim_version: "0.1.0".to_owned(),
                proven_at: now,
            });
        }
    }
    status
}

/// Names of the nodes that pods of `wasi` can be scheduled to.
pub async fn ready_nodes(client: &Client) -> Vec<String> {
    let nodes: Api<Node> = Api::all(client.clone());
    let ready = ListParams::default().labels("runtime.kubewasi.dev/wasi=ready");
    nodes
        .list(&ready)
        .await
        .unwrap()
        .iter()
        .map(ResourceExt::name_any)
        .collect()
}

/// Waits until something is so, or fails with what it is.
pub async fn wait_for(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waited = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, waited).await.is_ok(),
        "{what}: not within {PATIENCE:?}"
    );
}
