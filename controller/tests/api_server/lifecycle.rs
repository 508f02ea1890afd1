//! From a WasmRuntime to labels, and back to nothing.

use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use kubewasi_controller::api::{WasmNode, WasmRuntime, labels};
use serde_json::json;

use crate::agents::{Agents, make_nodes, make_runtime, ready_nodes, wait_for};
use crate::control_plane::ControlPlane;
use crate::controller::{Controller, uninstall};

const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];

#[tokio::test]
async fn a_runtime_reaches_every_node_stays_without_a_write_and_goes_without_a_trace() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    make_nodes(client, &NODES).await;
    let controller = Controller::start(&control_plane, "one").await;
    let _agents = Agents::start(client);
    make_runtime(client, json!({})).await;
    wait_for("all nodes ready", async || ready_nodes(client).await == NODES).await;

    let nodes: Api<Node> = Api::all(client.clone());
    wait_for("no startup taint", async || {
        nodes.list(&ListParams::default()).await.unwrap().iter().all(|node| {
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
            taints.is_none_or(|taints| taints.iter().all(|taint| taint.key != "kubewasi.dev/starting"))
        })
    })
    .await;
    let classes: Api<RuntimeClass> = Api::all(client.clone());
    assert_eq!(classes.get("wasi").await.unwrap().handler, "wasi");
    let daemon_sets: Api<DaemonSet> = Api::namespaced(client.clone(), "kubewasi");
    daemon_sets.get("kubewasi-agent-wasi").await.unwrap();
    let runtimes: Api<WasmRuntime> = Api::all(client.clone());
    wait_for("the rollout complete", async || {
        let status = runtimes.get("wasi").await.unwrap().status.unwrap_or_default();
        status.nodes.updated == 3
            && status.permitted.is_empty()
            && status.conditions.iter().any(|c| c.reason == "RolloutComplete")
    })
    .await;
    assert_eq!(controller.get("/readyz").await.as_deref(), Some("ok\n"));

    for node in NODES {
        for about in [
            format!("WasmRuntime/wasi/node {node} "),
            format!("Node/{node}/node {node} "),
        ] {
            let told = format!("RuntimeReady/{about}proved the runtime wasi");
            wait_for(&told, async || events(client).await.contains(&told)).await;
        }
    }

    // More than two looks that nothing asked for; no agent reports meanwhile.
    let before = control_plane.writes().await;
    tokio::time::sleep(Duration::from_secs(65)).await;
    assert_eq!(control_plane.writes().await, before, "a cluster at rest was written to");

    let hook = uninstall(&control_plane, 60).await;
    assert!(hook.status.success(), "{hook:?}");
    assert!(runtimes.list(&ListParams::default()).await.unwrap().items.is_empty());
    let wasm_nodes: Api<WasmNode> = Api::all(client.clone());
    assert!(wasm_nodes.list(&ListParams::default()).await.unwrap().items.is_empty());
    assert!(classes.list(&ListParams::default()).await.unwrap().items.is_empty());
    assert!(daemon_sets.list(&ListParams::default()).await.unwrap().items.is_empty());
    for node in nodes.list(&ListParams::default()).await.unwrap() {
        assert!(
            node.labels().keys().all(|key| !key.contains("kubewasi.dev")),
            "{:?}",
            node.labels()
        );
    }
    assert!(controller.terminate().success());
}

/// Events as reason, what they are about, and what they say.
pub async fn events(client: &Client) -> Vec<String> {
    let api: Api<Event> = Api::all(client.clone());
    let list = api.list(&ListParams::default()).await.unwrap();
    list.into_iter()
        .map(|event| {
            let about = event.regarding.unwrap_or_default();
            let [reason, kind, name, note] =
                [event.reason, about.kind, about.name, event.note].map(Option::unwrap_or_default);
            format!("{reason}/{kind}/{name}/{note}")
        })
        .collect()
}

#[tokio::test]
async fn an_uninstallation_that_a_pod_blocks_says_so_and_can_be_repeated() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    make_nodes(client, &NODES[..1]).await;
    let _controller = Controller::start(&control_plane, "one").await;
    let _agents = Agents::start(client);
    make_runtime(client, json!({})).await;
    wait_for("the node ready", async || ready_nodes(client).await == NODES[..1]).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "web"},
        "spec": {
            "runtimeClassName": "wasi",
            "nodeName": "node-a",
            "containers": [{"name": "web", "image": "web"}],
        },
    }))
    .unwrap();
    pods.create(&PostParams::default(), &pod).await.unwrap();

    let blocked = uninstall(&control_plane, 15).await;
    assert_eq!(blocked.status.code(), Some(1));
    let message = String::from_utf8(blocked.stderr).unwrap();
    assert!(
        message.contains("WasmRuntime wasi: waiting for 1 wasm pods to end: default/web"),
        "{message}"
    );
    let classes: Api<RuntimeClass> = Api::all(client.clone());
    classes.get("wasi").await.unwrap();

    pods.delete("web", &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    let again = uninstall(&control_plane, 60).await;
    assert!(again.status.success(), "{again:?}");
}

#[tokio::test]
async fn a_definition_with_a_newer_schema_is_left_as_it_is() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    make_nodes(client, &[]).await;
    let controller = Controller::start(&control_plane, "one").await;
    wait_for("the controller", async || {
        controller.get("/readyz").await.as_deref() == Some("ok\n")
    })
    .await;
    assert!(controller.terminate().success());

    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let newer = json!({
        "metadata": {"annotations": {labels::SCHEMA: "1000"}},
        "spec": {"names": {"shortNames": ["newer"]}},
    });
    let name = "wasmruntimes.kubewasi.dev";
    api.patch(name, &PatchParams::default(), &Patch::Merge(newer))
        .await
        .unwrap();
    let controller = Controller::start(&control_plane, "two").await;
    wait_for("the controller", async || {
        controller.get("/readyz").await.as_deref() == Some("ok\n")
    })
    .await;
    assert_eq!(api.get(name).await.unwrap().spec.names.short_names.unwrap(), ["newer"]);
}

#[tokio::test]
async fn somebody_elses_runtime_class_is_not_touched() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    make_nodes(client, &NODES[..1]).await;
    let classes: Api<RuntimeClass> = Api::all(client.clone());
    let foreign: RuntimeClass =
        serde_json::from_value(json!({"metadata": {"name": "wasi"}, "handler": "theirs"})).unwrap();
    let foreign = classes.create(&PostParams::default(), &foreign).await.unwrap();
    let _controller = Controller::start(&control_plane, "one").await;
    make_runtime(client, json!({})).await;
    let runtimes: Api<WasmRuntime> = Api::all(client.clone());
    wait_for("the condition", async || {
        let status = runtimes.get("wasi").await.unwrap().status.unwrap_or_default();
        status
            .conditions
            .iter()
            .any(|condition| condition.reason == "RuntimeClassTaken")
    })
    .await;
    assert_eq!(classes.get("wasi").await.unwrap(), foreign);
}
