//! What the API server refuses, with the field and the reason.

use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use kubewasi_controller::api::{WasmRuntime, crds, labels};
use serde_json::{Value, json};

use crate::agents::wait_for;
use crate::control_plane::ControlPlane;

pub fn runtimes(client: &Client) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("kubewasi.dev", "v1alpha1", "WasmRuntime");
    Api::all_with(client.clone(), &ApiResource::from_gvk(&kind))
}

pub fn runtime(name: &str, edit: impl FnOnce(&mut Value)) -> DynamicObject {
    let mut object = json!({
        "apiVersion": "kubewasi.dev/v1alpha1",
        "kind": "WasmRuntime",
        "metadata": {"name": name},
        "spec": {"handler": "wasi", "runtimeClasses": ["wasi"], "shim": {"image": "registry/shim:1"}},
    });
    edit(&mut object);
    serde_json::from_value(object).unwrap()
}

/// A WasmNode of the runtime `wasi`, as the controller makes it.
fn wasm_node(node: &str) -> Value {
    json!({
        "apiVersion": "kubewasi.dev/v1alpha1",
        "kind": "WasmNode",
        "metadata": {"name": format!("wasi.{node}"), "labels": {labels::RUNTIME: "wasi"}},
        "spec": {
            "nodeName": node,
            "runtime": "wasi",
            "wish": {
                "state": "Installed",
                "handler": "wasi",
                "shimImage": "registry/shim:1",
                "containerdRestart": "Rolling",
            },
        },
    })
}

/// Makes the definitions.
pub async fn define(client: &Client) {
    let api = Api::all(client.clone());
    for crd in crds::all() {
        api.create(&PostParams::default(), &crd).await.unwrap();
    }
}

/// Makes the WasmNode of a node, as soon as the API server serves the kind.
pub async fn make_wasm_node(api: &Api<DynamicObject>, node: &str) {
    let wasm_node: DynamicObject = serde_json::from_value(wasm_node(node)).unwrap();
    wait_for("the definition of WasmNodes", async || {
        api.create(&PostParams::default(), &wasm_node).await.is_ok()
    })
    .await;
}

/// WasmNodes, of which some cannot be read as such.
pub fn wasm_nodes(client: &Client) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("kubewasi.dev", "v1alpha1", "WasmNode");
    Api::all_with(client.clone(), &ApiResource::from_gvk(&kind))
}

/// An API server that serves the definitions.
pub async fn served() -> ControlPlane {
    let control_plane = ControlPlane::start().await;
    define(&control_plane.client).await;
    let runtimes: Api<WasmRuntime> = Api::all(control_plane.client.clone());
    wait_for("the definitions", async || {
        runtimes.list(&Default::default()).await.is_ok()
    })
    .await;
    control_plane
}

#[tokio::test]
async fn a_wrong_runtime_is_refused_with_field_and_reason() {
    let control_plane = served().await;
    let api = runtimes(&control_plane.client);
    // Where, what, and two parts of the answer: the field and the reason.
    let cases: &[(&str, Value, &str, &str)] = &[
        ("/spec/handler", json!("Wasi"), "spec.handler", "should match"),
        (
            "/spec/handler",
            json!(""),
            "spec.handler",
            "should be at least 1 chars long",
        ),
        (
            "/spec/handler",
            json!("runc"),
            "spec.handler",
            "the name of another runtime",
        ),
        ("/spec/handler", json!(null), "spec.handler", "Required value"),
        (
            "/spec/runtimeClasses",
            json!([]),
            "spec.runtimeClasses",
            "should have at least 1 items",
        ),
        (
            "/spec/runtimeClasses",
            json!(["a", "a"]),
            "spec.runtimeClasses",
            "must not repeat a name",
        ),
        (
            "/spec/runtimeClasses",
            json!(["A"]),
            "spec.runtimeClasses[0]",
            "should match",
        ),
        (
            "/spec/shim/image",
            json!("two words"),
            "spec.shim.image",
            "should match",
        ),
        (
            "/spec/shim/image",
            json!(""),
            "spec.shim.image",
            "should be at least 1 chars long",
        ),
        (
            "/spec/shim/imagePullPolicy",
            json!("Sometimes"),
            "spec.shim.imagePullPolicy",
            "supported values",
        ),
        (
            "/spec/shim/options",
            json!({"scope": "cluster"}),
            "spec.shim.options.scope",
            "supported values",
        ),
        (
            "/spec/shim/options",
            json!({"cache_dir": "cache"}),
            "spec.shim.options.cache_dir",
            "should match '^/'",
        ),
        (
            "/spec/shim/options",
            json!({"cache_size": "2GB"}),
            "spec.shim.options.cache_size",
            "should match",
        ),
        (
            "/spec/shim/options",
            json!({"cache_size": "1Mi"}),
            "spec.shim.options.cache_size",
            "must be 64Mi to 1024Gi",
        ),
        (
            "/spec/shim/options",
            json!({"idle_timeout": -1}),
            "spec.shim.options.idle_timeout",
            "greater than or equal to 0",
        ),
        (
            "/spec/shim/options",
            json!({"idle_timeout": 90000}),
            "spec.shim.options.idle_timeout",
            "less than or equal to 86400",
        ),
        (
            "/spec/shim/options",
            json!({"idle_timeout": "5"}),
            "spec.shim.options.idle_timeout",
            "must be of type integer",
        ),
        (
            "/spec/shim/options",
            json!({"runc_no_pivot_root": 1}),
            "spec.shim.options.runc_no_pivot_root",
            "boolean",
        ),
        (
            "/spec/overhead",
            json!({"memory": "much"}),
            "spec.overhead.memory",
            "must be a quantity",
        ),
        (
            "/spec/overhead",
            json!({"cpu": "much"}),
            "spec.overhead.cpu",
            "must be a quantity",
        ),
        (
            "/spec/runtimeClasses",
            json!(["a..b"]),
            "spec.runtimeClasses[0]",
            "should match",
        ),
        (
            "/spec/overhead",
            json!({"memory": "-1Mi"}),
            "spec.overhead.memory",
            "must be a quantity of 0 or more",
        ),
        (
            "/spec/overhead",
            json!({"cpu": "-1"}),
            "spec.overhead.cpu",
            "must be a quantity of 0 or more",
        ),
        ("/spec/startupTaint", json!("a b"), "spec.startupTaint", "should match"),
        (
            "/spec/podTolerations",
            json!([{"key": "a", "operator": "Exists"}, {"key": "a", "operator": "Exists"}]),
            "spec.podTolerations",
            "must not repeat one",
        ),
        (
            "/spec/rollout",
            json!({"maxUnavailable": 0}),
            "spec.rollout.maxUnavailable",
            "must be at least 1",
        ),
        (
            "/spec/rollout",
            json!({"maxUnavailable": "0%"}),
            "spec.rollout.maxUnavailable",
            "must be at least 1",
        ),
        (
            "/spec/rollout",
            json!({"maxUnavailable": "200%"}),
            "spec.rollout.maxUnavailable",
            "1% to 100%",
        ),
        (
            "/spec/rollout",
            json!({"maxUnavailable": 3_000_000_000_u64}),
            "spec.rollout.maxUnavailable",
            "must be at least 1",
        ),
        (
            "/spec/rollout",
            json!({"failureThreshold": 0}),
            "spec.rollout.failureThreshold",
            "greater than or equal to 1",
        ),
        ("/spec/drain", json!("Kill"), "spec.drain", "supported values"),
        (
            "/spec/containerdRestart",
            json!("Always"),
            "spec.containerdRestart",
            "supported values",
        ),
        (
            "/spec/installation",
            json!({"imagePull": "Always"}),
            "spec.installation.imagePull",
            "supported values",
        ),
        (
            "/spec/staleAfterSeconds",
            json!(10),
            "spec.staleAfterSeconds",
            "greater than or equal to 400",
        ),
        (
            "/metadata/name",
            json!("a.b"),
            "metadata.name",
            "lower case letters, digits and dashes",
        ),
        ("/metadata/name", json!("n".repeat(41)), "metadata.name", "at most 40"),
    ];
    for (path, value, field, reason) in cases {
        let wrong = runtime("wrong", |object| {
            let (parent, key) = path.rsplit_once('/').unwrap();
            object.pointer_mut(parent).unwrap()[key] = value.clone();
        });
        let answer = api.create(&PostParams::default(), &wrong).await;
        let Err(kube::Error::Api(status)) = answer else {
            panic!("{path} = {value} was accepted: {answer:?}");
        };
        assert_eq!(status.code, 422, "{path} = {value}: {}", status.message);
        assert!(status.message.contains(field), "{path} = {value}: {}", status.message);
        assert!(status.message.contains(reason), "{path} = {value}: {}", status.message);
    }
    api.create(&PostParams::default(), &runtime("right", |_| {}))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_wrong_toleration_is_refused_with_field_and_reason() {
    let control_plane = served().await;
    let api = runtimes(&control_plane.client);
    let cases: &[(Value, &str, &str)] = &[
        (json!({"key": "a b", "operator": "Exists"}), "[0].key", "should match"),
        (json!({"key": "-", "operator": "Exists"}), "[0].key", "should match"),
        (json!({"key": "", "operator": "Exists"}), "[0].key", "at least 1 chars"),
        (
            json!({"key": "a", "operator": "Like"}),
            "[0].operator",
            "supported values",
        ),
        (
            json!({"key": "a", "operator": "Exists", "effect": "NoEntry"}),
            "[0].effect",
            "supported values",
        ),
        (json!({"key": "a", "value": "b c"}), "[0].value", "should match"),
        (json!({"value": "b"}), "[0]", "needs operator Exists"),
        (json!({}), "[0]", "needs operator Exists"),
        (
            json!({"key": "a", "operator": "Exists", "value": "b"}),
            "[0]",
            "is for every value",
        ),
        (
            json!({"key": "a", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 5}),
            "[0]",
            "need effect NoExecute",
        ),
    ];
    for list in ["tolerations", "podTolerations"] {
        for (toleration, field, reason) in cases {
            let wrong = runtime("wrong", |object| object["spec"][list] = json!([toleration]));
            let answer = api.create(&PostParams::default(), &wrong).await;
            let Err(kube::Error::Api(status)) = answer else {
                panic!("{list} with {toleration} was accepted: {answer:?}");
            };
            let message = status.message;
            assert_eq!(status.code, 422, "{list} with {toleration}: {message}");
            assert!(
                message.contains(&format!("spec.{list}{field}")),
                "{list} with {toleration}: {message}"
            );
            assert!(message.contains(reason), "{list} with {toleration}: {message}");
        }
    }
    let right = runtime("right", |object| {
        let tolerations = json!([
            {"operator": "Exists"},
            {"key": "a"},
            {"key": "example.com/a", "operator": "Equal", "value": "b", "effect": "PreferNoSchedule"},
            {"key": "a_b.c", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5},
        ]);
        object["spec"]["tolerations"] = tolerations.clone();
        object["spec"]["podTolerations"] = tolerations;
        object["spec"]["startupTaint"] = json!("example.com/starting");
        object["spec"]["runtimeClasses"] = json!(["wasi.example.com"]);
        object["spec"]["overhead"] = json!({"memory": "0", "cpu": "0.5m"});
    });
    api.create(&PostParams::default(), &right).await.unwrap();
}

#[tokio::test]
async fn a_wasm_node_stays_with_its_node_and_its_runtime() {
    let control_plane = served().await;
    let api = wasm_nodes(&control_plane.client);
    make_wasm_node(&api, "node-a").await;
    for field in ["nodeName", "runtime"] {
        let patch = Patch::Merge(json!({"spec": {field: "other"}}));
        let answer = api.patch("wasi.node-a", &PatchParams::default(), &patch).await;
        let Err(kube::Error::Api(status)) = answer else {
            panic!("spec.{field} was changed: {answer:?}");
        };
        assert_eq!(status.code, 422, "{}", status.message);
        assert!(status.message.contains(&format!("spec.{field}")), "{}", status.message);
        assert!(status.message.contains("immutable"), "{}", status.message);
    }
}

#[tokio::test]
async fn an_unknown_option_is_refused_when_fields_are_validated_strictly() {
    let control_plane = served().await;
    let api = runtimes(&control_plane.client);
    let wrong = runtime("wrong", |object| {
        object["spec"]["shim"]["options"] = json!({"idle_timout": 5})
    });
    // As kubectl asks by default.
    let strict = PatchParams {
        field_manager: Some("test".to_owned()),
        field_validation: Some(kube::api::ValidationDirective::Strict),
        ..PatchParams::default()
    };
    let answer = api
        .patch("wrong", &strict.force(), &Patch::Apply(&wrong))
        .await
        .unwrap_err();
    assert!(answer.to_string().contains("spec.shim.options.idle_timout"), "{answer}");
}

#[tokio::test]
async fn handler_and_classes_cannot_be_changed() {
    let control_plane = served().await;
    let api = runtimes(&control_plane.client);
    api.create(&PostParams::default(), &runtime("wasi", |_| {}))
        .await
        .unwrap();
    for (patch, reason) in [
        (json!({"spec": {"handler": "other"}}), "handler is immutable"),
        (
            json!({"spec": {"runtimeClasses": ["other"]}}),
            "runtimeClasses is immutable",
        ),
    ] {
        let answer = api
            .patch("wasi", &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap_err();
        assert!(answer.to_string().contains(reason), "{answer}");
    }
}

#[tokio::test]
async fn defaults_are_those_of_the_types() {
    let control_plane = served().await;
    runtimes(&control_plane.client)
        .create(&PostParams::default(), &runtime("wasi", |_| {}))
        .await
        .unwrap();
    let api: Api<WasmRuntime> = Api::all(control_plane.client.clone());
    let stored = api.get("wasi").await.unwrap();
    let written: kubewasi_controller::api::WasmRuntimeSpec = serde_json::from_value(json!({
        "handler": "wasi", "runtimeClasses": ["wasi"], "shim": {"image": "registry/shim:1"},
    }))
    .unwrap();
    assert_eq!(stored.spec, written);
}
