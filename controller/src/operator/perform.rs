//! One write, one request.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::{DeleteParams, EvictParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use super::write::{LabelChange, Refusal, Seen, Write};
use crate::api::{WasmNode, WasmRuntime};

/// The name under which the controller owns fields.
pub const FIELD_MANAGER: &str = "kubewasi-controller";

/// Why a write did not happen.
#[derive(Debug, thiserror::Error)]
pub enum PerformError {
    /// The object is another one by now: what follows is decided anew.
    #[error("{0} met an object that has changed meanwhile")]
    Outdated(&'static str),
    /// An eviction that a PodDisruptionBudget does not allow now.
    #[error("{0} has to wait for a PodDisruptionBudget")]
    Budget(&'static str),
    /// The API server does not want this write, whatever becomes of the others: an invalid field, an admission policy, a
    /// quota, a missing right.
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("{kind} of {name}: {source}")]
    Failed {
        kind: &'static str,
        name: String,
        source: kube::Error,
    },
    #[error("{kind}: a patch that is none: {source}")]
    Patch {
        kind: &'static str,
        source: serde_json::Error,
    },
}

/// Performs a write, in the namespace of the agents where it has one.
///
/// What is to go and is gone is no error.
pub async fn perform(client: &Client, namespace: &str, write: &Write) -> Result<(), PerformError> {
    let runtimes = || Api::<WasmRuntime>::all(client.clone());
    let wasm_nodes = || Api::<WasmNode>::all(client.clone());
    let nodes = || Api::<Node>::all(client.clone());
    let classes = || Api::<RuntimeClass>::all(client.clone());
    let agents = || Api::<DaemonSet>::namespaced(client.clone(), namespace);
    let kind = write.kind();
    let json_patch = |seen: &Seen, path: &str, value: Value| {
        // With another version in the patch than in the store, the API server answers with a conflict.
        serde_json::from_value(json!([
            {"op": "replace", "path": "/metadata/resourceVersion", "value": seen.version},
            {"op": "add", "path": path, "value": value},
        ]))
        .map(Patch::<()>::Json)
        .map_err(|source| PerformError::Patch { kind, source })
    };
    let merge = PatchParams::default();
    let apply = PatchParams::apply(FIELD_MANAGER).force();
    let post = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };

    let (name, answer) = match write {
        Write::AddFinalizer { runtime, finalizers } | Write::RemoveFinalizer { runtime, finalizers } => {
            let patch = meta(runtime, json!({"finalizers": finalizers}), json!({}));
            (
                &runtime.name,
                runtimes().patch(&runtime.name, &merge, &patch).await.map(drop),
            )
        }
        Write::UpdateStatus { runtime, status } => {
            let patch = json_patch(runtime, "/status", json!(status))?;
            (
                &runtime.name,
                runtimes().patch_status(&runtime.name, &merge, &patch).await.map(drop),
            )
        }
        Write::ApplyAgents(daemon_set) => {
            let name = &daemon_set.name_any();
            let answer = agents().patch(name, &apply, &Patch::Apply(daemon_set)).await;
            return outcome(write, name, answer.map(drop));
        }
        Write::DeleteAgents(seen) => (&seen.name, agents().delete(&seen.name, &exactly(seen)).await.map(drop)),
        Write::CreateRuntimeClass(class) => {
            return outcome(write, &class.name_any(), classes().create(&post, class).await.map(drop));
        }
        Write::ApplyRuntimeClass(class) => {
            let name = &class.name_any();
            let answer = classes().patch(name, &apply, &Patch::Apply(class)).await;
            return outcome(write, name, answer.map(drop));
        }
        Write::DeleteRuntimeClass(seen) => (&seen.name, classes().delete(&seen.name, &exactly(seen)).await.map(drop)),
        Write::CreateWasmNode(wasm_node) => {
            let answer = wasm_nodes().create(&post, wasm_node).await;
            return outcome(write, &wasm_node.name_any(), answer.map(drop));
        }
        Write::ChangeWish { wasm_node, wish } => {
            let patch = json_patch(wasm_node, "/spec/wish", json!(wish))?;
            (
                &wasm_node.name,
                wasm_nodes().patch(&wasm_node.name, &merge, &patch).await.map(drop),
            )
        }
        Write::GrantPermit { wasm_node, permit } => {
            let patch = meta(wasm_node, json!({}), json!({"spec": {"permit": permit}}));
            (
                &wasm_node.name,
                wasm_nodes().patch(&wasm_node.name, &merge, &patch).await.map(drop),
            )
        }
        Write::WithdrawPermit { wasm_node } => {
            let patch = meta(wasm_node, json!({}), json!({"spec": {"permit": null}}));
            (
                &wasm_node.name,
                wasm_nodes().patch(&wasm_node.name, &merge, &patch).await.map(drop),
            )
        }
        Write::DeleteWasmNode(seen) => (
            &seen.name,
            wasm_nodes().delete(&seen.name, &exactly(seen)).await.map(drop),
        ),
        Write::RequestAgent { node, labels }
        | Write::ReleaseAgent { node, labels }
        | Write::SetReady { node, labels }
        | Write::TakeReady { node, labels, .. } => {
            let patch = labelled(node, labels);
            (&node.name, nodes().patch(&node.name, &merge, &patch).await.map(drop))
        }
        Write::RemoveStartupTaint { node, taints } => {
            let patch = meta(node, json!({}), json!({"spec": {"taints": taints}}));
            (&node.name, nodes().patch(&node.name, &merge, &patch).await.map(drop))
        }
        Write::EvictPod(pod) => {
            let exactly = EvictParams {
                delete_options: Some(DeleteParams {
                    preconditions: Some(Preconditions {
                        uid: Some(pod.uid.clone()),
                        resource_version: None,
                    }),
                    ..DeleteParams::default()
                }),
                ..EvictParams::default()
            };
            let pods = Api::<Pod>::namespaced(client.clone(), &pod.namespace);
            (&pod.name, pods.evict(&pod.name, &exactly).await.map(drop))
        }
    };
    outcome(write, name, answer)
}

fn outcome(write: &Write, name: &str, answer: Result<(), kube::Error>) -> Result<(), PerformError> {
    let kind = write.kind();
    match answer {
        Ok(()) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Err(PerformError::Outdated(kind)),
        Err(kube::Error::Api(status)) if status.code == 404 && removes(write) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Err(PerformError::Outdated(kind)),
        Err(kube::Error::Api(status)) if status.code == 429 && matches!(write, Write::EvictPod(_)) => {
            Err(PerformError::Budget(kind))
        }
        Err(kube::Error::Api(status)) if refuses(status.code) => Err(PerformError::Refused(Refusal {
            kind,
            name: name.to_owned(),
            message: status.message.clone(),
        })),
        Err(source) => Err(PerformError::Failed {
            kind,
            name: name.to_owned(),
            source,
        }),
    }
}

/// Whether an answer is about the write, and not about us or how the API server is: it knows us, it has time, it works.
/// An admission webhook that cannot be reached is answered with 500.
fn refuses(code: u16) -> bool {
    matches!(code, 400..=500) && !matches!(code, 401 | 408 | 429)
}

fn removes(write: &Write) -> bool {
    matches!(
        write,
        Write::DeleteAgents(_)
            | Write::DeleteRuntimeClass(_)
            | Write::DeleteWasmNode(_)
            | Write::EvictPod(_)
            | Write::RemoveFinalizer { .. }
    )
}

/// A merge patch of exactly the object that was seen.
fn meta(seen: &Seen, metadata: Value, rest: Value) -> Patch<Value> {
    let mut patch = rest;
    patch["metadata"] = metadata;
    patch["metadata"]["uid"] = json!(seen.uid);
    patch["metadata"]["resourceVersion"] = json!(seen.version);
    Patch::Merge(patch)
}

fn labelled(seen: &Seen, labels: &LabelChange) -> Patch<Value> {
    meta(seen, json!({"labels": labels}), json!({}))
}

fn exactly(seen: &Seen) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(seen.uid.clone()),
            resource_version: Some(seen.version.clone()),
        }),
        ..DeleteParams::background()
    }
}
