//! Writes that the API server refuses: the others go on, and the status says what to mend.

use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use kubewasi_controller::api::{WasmNode, WasmRuntime};
use serde_json::json;

use crate::agents::{Agents, make_nodes, make_runtime, ready_nodes, wait_for};
use crate::control_plane::ControlPlane;
use crate::controller::Controller;

const NODES: [&str; 2] = ["node-a", "node-b"];

#[tokio::test]
async fn a_refused_write_is_told_of_and_stops_no_other() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    make_nodes(client, &NODES).await;
    forbid_agents(client).await;
    let controller = Controller::start(&control_plane, "one").await;
    let _agents = Agents::start(client);
    make_runtime(client, json!({})).await;

    let runtimes: Api<WasmRuntime> = Api::all(client.clone());
    let degraded = async || -> Option<Condition> {
        let status = runtimes.get("wasi").await.unwrap().status?;
        status
            .conditions
            .into_iter()
            .find(|condition| condition.type_ == "Degraded")
    };
    wait_for("the condition", async || {
        degraded()
            .await
            .is_some_and(|condition| condition.reason == "WriteRefused")
    })
    .await;
    let condition = degraded().await.unwrap();
    assert_eq!(condition.status, "True");
    for part in [
        "ApplyAgents of kubewasi-agent-wasi",
        "spec.template.spec.hostPID is not for you",
    ] {
        assert!(condition.message.contains(part), "{}", condition.message);
    }
    // The tests' agents are in no DaemonSet.
    wait_for("all nodes ready", async || ready_nodes(client).await == NODES).await;
    let classes: Api<RuntimeClass> = Api::all(client.clone());
    classes.get("wasi").await.unwrap();
    let wasm_nodes: Api<WasmNode> = Api::all(client.clone());
    assert_eq!(
        wasm_nodes.list(&ListParams::default()).await.unwrap().items.len(),
        NODES.len()
    );

    wait_for("no permit", async || {
        runtimes
            .get("wasi")
            .await
            .unwrap()
            .status
            .unwrap_or_default()
            .permitted
            .is_empty()
    })
    .await;
    // It is tried again, and as long as the answer is the same nothing is written.
    let version = async || runtimes.get("wasi").await.unwrap().resource_version();
    let failures = async || {
        let metrics = controller.get("/metrics").await.unwrap_or_default();
        let line = metrics
            .lines()
            .find(|line| line.starts_with("kubewasi_reconcile_failures_total"));
        line.and_then(|line| line.rsplit_once(' '))
            .map_or(0, |(_, count)| count.parse::<u64>().unwrap())
    };
    let mut told = version().await;
    let mut since = failures().await;
    wait_for("three looks that write nothing", async || {
        let now = version().await;
        if now != told {
            (told, since) = (now, failures().await);
        }
        failures().await >= since + 3
    })
    .await;

    allow_agents(client).await;
    let daemon_sets: Api<DaemonSet> = Api::namespaced(client.clone(), "kubewasi");
    wait_for("the agents", async || {
        daemon_sets.get_opt("kubewasi-agent-wasi").await.unwrap().is_some()
    })
    .await;
    wait_for("the condition's end", async || {
        degraded()
            .await
            .is_some_and(|condition| condition.reason == "AsExpected")
    })
    .await;
}

/// As a cluster's owner does who lets nobody see the host's processes.
async fn forbid_agents(client: &Client) {
    let policy: ValidatingAdmissionPolicy = serde_json::from_value(json!({
        "metadata": {"name": "no-host-pid"},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [
                {"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["daemonsets"], "operations": ["CREATE", "UPDATE"]},
            ]},
            "validations": [{
                "expression": "!has(object.spec.template.spec.hostPID) || !object.spec.template.spec.hostPID",
                "message": "spec.template.spec.hostPID is not for you",
            }],
        },
    }))
    .unwrap();
    let binding: ValidatingAdmissionPolicyBinding = serde_json::from_value(json!({
        "metadata": {"name": "no-host-pid"},
        "spec": {"policyName": "no-host-pid", "validationActions": ["Deny"]},
    }))
    .unwrap();
    let post = PostParams::default();
    Api::all(client.clone()).create(&post, &policy).await.unwrap();
    Api::all(client.clone()).create(&post, &binding).await.unwrap();
    // Policies are in force a while after they are made.
    let probe: DaemonSet = serde_json::from_value(json!({
        "metadata": {"name": "probe"},
        "spec": {
            "selector": {"matchLabels": {"app": "probe"}},
            "template": {
                "metadata": {"labels": {"app": "probe"}},
                "spec": {"hostPID": true, "containers": [{"name": "probe", "image": "registry/probe:1"}]},
            },
        },
    }))
    .unwrap();
    let dry_run = PatchParams {
        dry_run: true,
        ..PatchParams::apply("test")
    };
    let daemon_sets: Api<DaemonSet> = Api::namespaced(client.clone(), "kubewasi");
    wait_for("the policy in force", async || {
        daemon_sets
            .patch("probe", &dry_run, &Patch::Apply(&probe))
            .await
            .is_err()
    })
    .await;
}

async fn allow_agents(client: &Client) {
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client.clone());
    bindings.delete("no-host-pid", &DeleteParams::default()).await.unwrap();
}

#[tokio::test]
async fn a_pull_secret_of_agents_and_shim_is_named_once() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    make_nodes(client, &NODES[..1]).await;
    let _controller = Controller::start_with(&control_plane, "one", &[("KUBEWASI_AGENT_PULL_SECRETS", "ours")]).await;
    let secrets = json!([{"name": "ours"}, {"name": "theirs"}]);
    make_runtime(
        client,
        json!({"shim": {"image": "registry/shim:1", "imagePullSecrets": secrets}}),
    )
    .await;
    let daemon_sets: Api<DaemonSet> = Api::namespaced(client.clone(), "kubewasi");
    wait_for("the agents", async || {
        daemon_sets.get_opt("kubewasi-agent-wasi").await.unwrap().is_some()
    })
    .await;
    let agents = daemon_sets.get("kubewasi-agent-wasi").await.unwrap();
    let named = agents.spec.unwrap().template.spec.unwrap().image_pull_secrets.unwrap();
    let names: Vec<&str> = named.iter().map(|secret| secret.name.as_str()).collect();
    assert_eq!(names, ["ours", "theirs"]);
}
