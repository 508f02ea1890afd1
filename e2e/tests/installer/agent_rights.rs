//! What somebody may do who has an agent's token.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use kube::config::AuthInfo;
use kube::discovery::ApiResource;
use kube::{Client, Config, ResourceExt};
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::{release, runtime};
use serde_json::json;

#[tokio::test]
async fn an_agent_reports_on_its_own_node_and_writes_nothing_else() -> Result<()> {
    Namespace::with("rights", async |namespace| {
        let cluster = &namespace.cluster;
        release::ready(cluster, json!({})).await?;
        let agents: Api<Pod> = Api::namespaced(cluster.client.clone(), release::NAME);
        let selector = format!("kubewasi.dev/runtime={}", release::RUNTIME);
        let agents = agents.list(&ListParams::default().labels(&selector)).await?.items;
        let agent = agents.first().context("there is no agent")?;
        let own = agent
            .spec
            .as_ref()
            .and_then(|spec| spec.node_name.clone())
            .context("the agent has no node")?;
        let client = as_agent(namespace, &agent.name_any()).await?;

        let kind = GroupVersionKind::gvk("kubewasi.dev", "v1alpha1", "WasmNode");
        let wasm_nodes: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&kind));
        let nodes = runtime::nodes(cluster, release::RUNTIME).await?;
        assert!(
            nodes.len() > 1,
            "a cluster of one node shows nothing: {:?}",
            nodes.keys()
        );
        for (node, wasm_node) in &nodes {
            let name = wasm_node["metadata"]["name"].as_str().unwrap_or_default();
            // What the status says already: nothing is changed where it is allowed.
            let same = json!({"status": {"phase": wasm_node["status"]["phase"]}});
            let parameters = PatchParams::default();
            let patched = wasm_nodes.patch_status(name, &parameters, &Patch::Merge(&same)).await;
            if *node == own {
                patched.with_context(|| format!("the agent of {own} reports on it"))?;
            } else {
                let error = patched.unwrap_err().to_string();
                assert!(
                    error.contains(&format!("the agent of node {own} reports on its own node only")),
                    "{error}"
                );
            }
            let permit = json!({"spec": {"permit": {"plan": "0", "attempt": "0"}}});
            let error = wasm_nodes
                .patch(name, &parameters, &Patch::Merge(&permit))
                .await
                .unwrap_err();
            assert!(error.to_string().contains("forbidden"), "{error}");
            let labels = json!({"metadata": {"labels": {"runtime.kubewasi.dev/wasi": "ready"}}});
            let patch = Patch::Merge(&labels);
            let error = Api::<Node>::all(client.clone())
                .patch(node, &parameters, &patch)
                .await
                .unwrap_err();
            assert!(error.to_string().contains("forbidden"), "{error}");
        }
        Ok(())
    })
    .await
}

/// A client with a token as the agent's pod has one: the API server puts the pod's node into it.
async fn as_agent(namespace: &Namespace, pod: &str) -> Result<Client> {
    let arguments = ["--namespace", release::NAME, "create", "token", "kubewasi-agent"];
    let bound = ["--bound-object-kind", "Pod", "--bound-object-name", pod];
    let token = namespace
        .cluster
        .output_of_kubectl(&[&arguments[..], &bound].concat())
        .await?;
    let mut config = Config::infer().await?;
    config.auth_info = AuthInfo {
        token: Some(token.trim().to_owned().into()),
        ..AuthInfo::default()
    };
    Ok(Client::try_from(config)?)
}
