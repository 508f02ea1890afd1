//! What the package brings for its programs: accounts, roles, and the policy, as manifests/install.yaml has them.

use std::path::Path;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, ResourceExt};
use serde::Deserialize;
use serde_json::json;

/// The kinds that say who may do what.
const GRANTS: [&str; 8] = [
    "Namespace",
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];

/// Applies the package but for what runs in pods, and for its WasmRuntime.
pub async fn apply_grants(client: &Client) {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/install.yaml");
    let manifest = std::fs::read_to_string(manifest).unwrap();
    for document in serde_yaml_ng::Deserializer::from_str(&manifest) {
        let Some(object) = Option::<DynamicObject>::deserialize(document).unwrap() else {
            continue;
        };
        let kind = GroupVersionKind::try_from(object.types.as_ref().unwrap()).unwrap();
        if !GRANTS.contains(&kind.kind.as_str()) {
            continue;
        }
        let resource = ApiResource::from_gvk(&kind);
        let api: Api<DynamicObject> = match object.namespace() {
            Some(namespace) => Api::namespaced_with(client.clone(), &namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        let apply = PatchParams::apply("test").force();
        api.patch(&object.name_any(), &apply, &Patch::Apply(&object))
            .await
            .unwrap();
    }
}

/// A token of one of the package's accounts, which names the pod and its node when it is for a pod.
pub async fn token(client: &Client, account: &str, pod: Option<&Pod>) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "kubewasi");
    let request = TokenRequest {
        spec: TokenRequestSpec {
            bound_object_ref: pod.map(|pod| BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
            }),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .unwrap();
    answer.status.unwrap().token
}

/// The token that an agent's pod on this node is given.
pub async fn agent_token(client: &Client, node: &str) -> String {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "kubewasi");
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"generateName": format!("agent-{node}-")},
        "spec": {
            "nodeName": node,
            "serviceAccountName": "kubewasi-agent",
            "containers": [{"name": "agent", "image": "registry/agent:1"}],
        },
    }))
    .unwrap();
    let pod = pods.create(&PostParams::default(), &pod).await.unwrap();
    token(client, "kubewasi-agent", Some(&pod)).await
}
