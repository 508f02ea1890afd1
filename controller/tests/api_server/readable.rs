//! What the API server takes, the controller can read: an object that it could not would be one that it never sees.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use kubewasi_controller::api::{WasmNode, WasmRuntime, crds, labels};
use serde_json::{Value, json};

use crate::agents::{Agents, make_nodes, make_runtime, ready_nodes, wait_for};
use crate::control_plane::ControlPlane;
use crate::controller::Controller;
use crate::crds::{make_wasm_node, runtime, runtimes, served, wasm_nodes};
use crate::lifecycle::events;

/// An API server with the WasmNode `wasi.node-a`.
async fn with_wasm_node() -> (ControlPlane, Api<DynamicObject>) {
    let control_plane = served().await;
    let api = wasm_nodes(&control_plane.client);
    make_wasm_node(&api, "node-a").await;
    (control_plane, api)
}

fn disproof(field: &str, value: Value) -> Value {
    let mut disproof = json!({
        "reason": "SmokeFailed", "message": "no", "times": 1, "since": "2024-01-01T00:00:00Z",
    });
    disproof[field] = value;
    json!({"disproof": disproof})
}

/// As helm does with every installation, never by force.
#[tokio::test]
async fn who_else_applies_the_definitions_is_in_no_conflict_with_the_controller() {
    let control_plane = ControlPlane::start().await;
    let api: Api<CustomResourceDefinition> = Api::all(control_plane.client.clone());
    for crd in crds::all() {
        let apply = async |parameters: PatchParams| api.patch(&crd.name_any(), &parameters, &Patch::Apply(&crd)).await;
        apply(PatchParams::apply("helm")).await.unwrap();
        apply(PatchParams::apply("controller").force()).await.unwrap();
        apply(PatchParams::apply("helm")).await.unwrap();
    }
}

#[tokio::test]
async fn a_report_that_cannot_be_read_is_refused() {
    let (control_plane, api) = with_wasm_node().await;
    let report = async |status: &Value| {
        let patch = Patch::Merge(json!({"status": status}));
        api.patch_status("wasi.node-a", &PatchParams::default(), &patch).await
    };
    let wrong = [
        json!({"sandboxes": 5_000_000_000_u64}),
        json!({"sandboxes": -1}),
        disproof("times", json!(5_000_000_000_u64)),
        disproof("since", json!("2024-01-01T00:00:00+99:99")),
        disproof("message", json!("m".repeat(8193))),
        json!({"observedWish": "w".repeat(254)}),
        json!({"reportedAt": "2024-01-01T00:00:00+99:99"}),
        json!({"reportedAt": "2024-01-01T00:00:00ZT"}),
        json!({"reportedAt": "2023-02-29T00:00:00Z"}),
        json!({"reportedAt": "2024-04-31T00:00:00Z"}),
        json!({"reportedAt": "9999-12-31T23:59:59Z"}),
    ];
    for status in wrong {
        let answer = report(&status).await;
        let Err(kube::Error::Api(refusal)) = answer else {
            panic!("{status} was accepted");
        };
        assert_eq!(refusal.code, 422, "{status}: {}", refusal.message);
    }
    let read: Api<WasmNode> = Api::all(control_plane.client.clone());
    let right = [
        json!({"sandboxes": 2_147_483_647, "reportedAt": "2024-02-29T23:59:59Z"}),
        json!({"reportedAt": "2024-01-01T00:00:00.123456789Z"}),
        json!({"reportedAt": null, "sandboxes": null}),
        disproof("message", json!("ä".repeat(8192))),
        disproof("times", json!(2_147_483_647)),
    ];
    for status in right {
        if let Err(error) = report(&status).await {
            panic!("{status}: {error}");
        }
        read.get("wasi.node-a").await.unwrap();
    }
}

#[tokio::test]
async fn what_a_runtime_says_nothing_of_has_its_default() {
    let control_plane = served().await;
    let silent = runtime("wasi", |object| {
        object["spec"]["rollout"] = json!({"maxUnavailable": null, "failureThreshold": null, "paused": null});
        object["spec"]["overhead"] = json!({"memory": null, "cpu": null});
        object["spec"]["staleAfterSeconds"] = json!(null);
    });
    let api = runtimes(&control_plane.client);
    api.create(&PostParams::default(), &silent).await.unwrap();
    let most = runtime("most", |object| {
        object["spec"]["rollout"] = json!({"maxUnavailable": 2_147_483_647});
    });
    api.create(&PostParams::default(), &most).await.unwrap();
    let read: Api<WasmRuntime> = Api::all(control_plane.client.clone());
    assert_eq!(read.get("wasi").await.unwrap().spec.rollout, Default::default());
    read.get("most").await.unwrap();
}

/// Somebody has a definition that lets a field be as large as it likes, which is left to them.
async fn loosen(client: &Client, plural: &str, field: &str) {
    let path = format!("/spec/versions/0/schema/openAPIV3Schema/properties/{field}/maximum");
    let schema = format!("/metadata/annotations/{}", labels::SCHEMA.replace('/', "~1"));
    let operations = json!([{"op": "remove", "path": path}, {"op": "add", "path": schema, "value": "1000"}]);
    let patch: Patch<()> = Patch::Json(serde_json::from_value(operations).unwrap());
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = format!("{plural}.kubewasi.dev");
    definitions.patch(&name, &PatchParams::default(), &patch).await.unwrap();
}

#[tokio::test]
async fn a_runtime_that_cannot_be_read_is_told_of_by_an_event_and_is_in_nobodys_way() {
    let control_plane = served().await;
    let client = &control_plane.client;
    loosen(client, "wasmruntimes", "spec/properties/staleAfterSeconds").await;
    let wrong = runtime("wrong", |object| {
        object["spec"]["handler"] = json!("other");
        object["spec"]["runtimeClasses"] = json!(["other"]);
        object["spec"]["staleAfterSeconds"] = json!(5_000_000_000_u64);
    });
    let api = runtimes(client);
    wait_for("a WasmRuntime that cannot be read", async || {
        api.create(&PostParams::default(), &wrong).await.is_ok()
    })
    .await;
    make_nodes(client, &["node-a"]).await;
    let _controller = Controller::start(&control_plane, "one").await;
    let _agents = Agents::start(client);
    make_runtime(client, json!({})).await;
    wait_for("the node ready", async || ready_nodes(client).await == ["node-a"]).await;
    let said = "Unreadable/WasmRuntime/wrong/this WasmRuntime is left alone, since it cannot be read: ";
    wait_for("the event", async || {
        let all = events(client).await;
        all.iter()
            .any(|event| event.starts_with(said) && event.contains("5000000000"))
    })
    .await;
}

#[tokio::test]
async fn one_object_that_cannot_be_read_hides_no_other() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    make_nodes(client, &["node-a", "node-b"]).await;
    let controller = Controller::start(&control_plane, "one").await;
    let _agents = Agents::start(client);
    make_runtime(client, json!({})).await;
    wait_for("all nodes ready", async || ready_nodes(client).await.len() == 2).await;

    loosen(client, "wasmnodes", "status/properties/sandboxes").await;
    let wasm_nodes = wasm_nodes(client);
    let wrong = Patch::Merge(json!({"status": {"sandboxes": 5_000_000_000_u64}}));
    wait_for("a WasmNode that cannot be read", async || {
        wasm_nodes
            .patch_status("wasi.node-a", &PatchParams::default(), &wrong)
            .await
            .is_ok()
    })
    .await;

    let runtimes: Api<WasmRuntime> = Api::all(client.clone());
    let told = async || {
        let status = runtimes.get("wasi").await.unwrap().status.unwrap_or_default();
        let mut attention = status.attention.iter();
        attention.any(|needs| needs.node == "node-a" && needs.reason == "Unreadable")
    };
    // Once for a watch that is current, and once for a controller that starts.
    wait_for("the node in attention", async || told().await).await;
    drop(controller);
    let _controller = Controller::start(&control_plane, "one").await;
    make_nodes(client, &["node-c"]).await;
    wait_for("the new node ready", async || {
        ready_nodes(client).await == ["node-a", "node-b", "node-c"]
    })
    .await;
    assert!(told().await);
}
