//! Controllers that die, and two that lead at once.

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kubewasi_controller::api::{WasmNode, WasmRuntime};
use kubewasi_controller::operator::write::Write;
use serde_json::json;

use crate::agents::{Agents, make_nodes, make_runtime, ready_nodes, wait_for};
use crate::control_plane::ControlPlane;
use crate::controller::Controller;

const NODES: [&str; 2] = ["node-a", "node-b"];

/// The kinds that an installation writes, in the plan's order, so that each is still to come when the one before is done;
/// and those that a deletion does.
const INSTALLING: [&str; 10] = [
    "AddFinalizer",
    "CreateRuntimeClass",
    "CreateWasmNode",
    "RequestAgent",
    "ApplyAgents",
    "UpdateStatus",
    "GrantPermit",
    "WithdrawPermit",
    "SetReady",
    "RemoveStartupTaint",
];
const DELETING: [&str; 7] = [
    "TakeReady",
    "ChangeWish",
    "DeleteWasmNode",
    "ReleaseAgent",
    "DeleteRuntimeClass",
    "DeleteAgents",
    "RemoveFinalizer",
];

/// Kinds of which neither is part: a class that somebody changed is put right, and a pod leaves a node that drains. The
/// plan's own tests die after them.
const ELSEWHERE: [&str; 2] = ["ApplyRuntimeClass", "EvictPod"];

#[test]
fn every_kind_of_write_is_one_to_die_after() {
    let mut named = [&INSTALLING[..], &DELETING, &ELSEWHERE].concat();
    named.sort_unstable();
    let mut all = Write::KINDS.to_vec();
    all.sort_unstable();
    assert_eq!(named, all);
}

#[tokio::test]
async fn a_controller_killed_after_each_write_is_followed_by_one_that_completes_it() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    make_nodes(client, &NODES).await;
    let _agents = Agents::start(client);
    let runtimes: Api<WasmRuntime> = Api::all(client.clone());
    // The lease of a controller that was killed runs out first, so each has the same name and goes on at once.
    let mut controller = Controller::start_with_fault(&control_plane, "same", INSTALLING[0]).await;
    make_runtime(client, json!({})).await;
    for (killed_after, next) in INSTALLING.iter().zip(INSTALLING[1..].iter().chain(["none"].iter())) {
        wait_for(&format!("the end after {killed_after}"), async || controller.aborted()).await;
        controller = Controller::start_with_fault(&control_plane, "same", next).await;
    }
    wait_for("all nodes ready", async || ready_nodes(client).await == NODES).await;

    drop(controller);
    let mut controller = Controller::start_with_fault(&control_plane, "same", DELETING[0]).await;
    runtimes.delete("wasi", &DeleteParams::default()).await.unwrap();
    for (killed_after, next) in DELETING.iter().zip(DELETING[1..].iter().chain(["none"].iter())) {
        wait_for(&format!("the end after {killed_after}"), async || controller.aborted()).await;
        controller = Controller::start_with_fault(&control_plane, "same", next).await;
    }
    assert!(runtimes.list(&ListParams::default()).await.unwrap().items.is_empty());
    let wasm_nodes: Api<WasmNode> = Api::all(client.clone());
    assert!(wasm_nodes.list(&ListParams::default()).await.unwrap().items.is_empty());
    assert!(ready_nodes(client).await.is_empty());
}

#[tokio::test]
async fn a_second_controller_takes_over_when_the_first_ends() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    make_nodes(client, &NODES).await;
    let _agents = Agents::start(client);
    let first = Controller::start(&control_plane, "first").await;
    wait_for("the first leads", async || leads(&first).await).await;
    let second = Controller::start(&control_plane, "second").await;
    wait_for("the second is ready", async || {
        second.get("/readyz").await.as_deref() == Some("ok\n")
    })
    .await;
    assert!(!leads(&second).await);
    assert!(first.terminate().success());
    wait_for("the second leads", async || leads(&second).await).await;
    make_runtime(client, json!({})).await;
    wait_for("all nodes ready", async || ready_nodes(client).await == NODES).await;
}

#[tokio::test]
async fn a_lease_that_somebody_deletes_is_made_again_and_another_can_follow() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    make_nodes(client, &NODES).await;
    let mut first = Controller::start(&control_plane, "first").await;
    wait_for("the first leads", async || leads(&first).await).await;
    let second = Controller::start(&control_plane, "second").await;
    wait_for("the second is ready", async || {
        second.get("/readyz").await.as_deref() == Some("ok\n")
    })
    .await;
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kubewasi");
    leases
        .delete("kubewasi-controller", &DeleteParams::default())
        .await
        .unwrap();
    wait_for("a lease that somebody holds", async || {
        let lease = leases.get_opt("kubewasi-controller").await.unwrap();
        lease
            .and_then(|lease| lease.spec)
            .is_some_and(|spec| spec.holder_identity.is_some())
    })
    .await;
    // The first has no claim to the new one: it ends, and its pod would begin anew.
    wait_for("the first ends", async || first.ended().is_some()).await;
    wait_for("the second leads", async || leads(&second).await).await;
}

#[tokio::test]
async fn two_controllers_that_both_lead_let_out_one_node_at_a_time() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    make_nodes(client, &NODES).await;
    // One name: each takes the lease for its own.
    let _controllers = [
        Controller::start(&control_plane, "same").await,
        Controller::start(&control_plane, "same").await,
    ];
    make_runtime(client, json!({})).await;
    let agents = Agents::start(client);
    let wasm_nodes: Api<WasmNode> = Api::all(client.clone());
    let mut most = 0;
    wait_for("all nodes ready", async || {
        let list = wasm_nodes.list(&ListParams::default()).await.unwrap();
        most = most.max(list.iter().filter(|wasm_node| wasm_node.spec.permit.is_some()).count());
        ready_nodes(client).await == NODES
    })
    .await;
    assert_eq!(most, 1);
    drop(agents);
    // And again, for a change.
    let change = json!({"spec": {"shim": {"image": "registry/shim:2"}}});
    let runtimes: Api<WasmRuntime> = Api::all(client.clone());
    runtimes
        .patch("wasi", &PatchParams::default(), &Patch::Merge(change))
        .await
        .unwrap();
    let _agents = Agents::start(client);
    wait_for("the change everywhere", async || {
        let list = wasm_nodes.list(&ListParams::default()).await.unwrap();
        most = most.max(list.iter().filter(|wasm_node| wasm_node.spec.permit.is_some()).count());
        let status = runtimes.get("wasi").await.unwrap().status.unwrap_or_default();
        status.observed_generation == Some(2) && status.nodes.updated == 2
    })
    .await;
    assert_eq!(most, 1);
}

async fn leads(controller: &Controller) -> bool {
    let metrics = controller.get("/metrics").await.unwrap_or_default();
    metrics.lines().any(|line| line == "kubewasi_leading 1")
}
