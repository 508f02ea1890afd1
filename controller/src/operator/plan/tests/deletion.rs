//! The end of a runtime: no new pods, then no pods, then no shim, then nothing.

use super::*;
use crate::api::wasm_runtime::Drain;

#[test]
fn the_finalizer_is_there_before_anything_else() {
    let mut world = World::with_workers(1);
    assert_eq!(world.reconcile("wasi"), ["AddFinalizer"]);
}

#[test]
fn a_runtime_without_pods_goes_and_leaves_nothing() {
    let mut world = World::with_workers(3);
    world.settle();
    world.delete("wasi");
    world.settle();
    assert!(world.runtimes.is_empty() && world.wasm_nodes.is_empty() && world.classes.is_empty());
    assert!(world.agents.is_empty());
    assert!(world.nodes.values().all(|node| node.labels().is_empty()));
}

#[test]
fn a_runtime_with_pods_waits_for_them_and_names_them() {
    let mut world = World::with_workers(2);
    world.settle();
    world.add_pod("web", "worker-00");
    world.delete("wasi");
    world.settle();
    // The other node is clean; this one has the shim, the class and no label.
    assert_eq!(world.wasm_nodes.keys().collect::<Vec<_>>(), ["wasi.worker-00"]);
    assert!(world.classes.contains_key("wasi"));
    assert!(world.ready("wasi").is_empty());
    let (reason, message) = world.condition("wasi", "Progressing");
    assert_eq!(reason, "Deleting");
    assert_eq!(message, "waiting for 1 wasm pods to end: default/web");
    world.pods.clear();
    world.settle();
    assert!(world.runtimes.is_empty());
}

#[test]
fn a_deletion_that_cannot_go_on_says_what_holds_it() {
    let mut world = World::with_workers(3);
    world.settle();
    world.edit("wasi", |spec| spec.rollout.paused = true);
    world.delete("wasi");
    world.settle();
    let message = |world: &World| {
        let (reason, message) = world.condition("wasi", "Progressing");
        assert_eq!(reason, "Deleting");
        message
    };
    assert_eq!(
        message(&world),
        "the runtime is being taken from 3 nodes; no node is cleaned while spec.rollout.paused is set"
    );
    world.edit("wasi", |spec| spec.rollout.paused = false);

    let status = world.nodes.get_mut("worker-01").unwrap().status.as_mut().unwrap();
    status.conditions.as_mut().unwrap()[0].status = "Unknown".to_owned();
    world.broken = vec!["worker-02".to_owned()];
    world.settle();
    world.pass(601);
    world.reconcile("wasi");
    let told = message(&world);
    for part in [
        "waiting for 1 nodes that are not ready, whose Node may be deleted if they do not come back: worker-01",
        "waiting for the agents of 1 nodes, which do not report: worker-02",
        "1 nodes failed, which is spec.rollout.failureThreshold",
    ] {
        assert!(told.contains(part), "{told}");
    }
    let attention = &world.runtimes["wasi"].status.as_ref().unwrap().attention;
    let needing: Vec<(&str, &str)> = attention
        .iter()
        .map(|needs| (needs.node.as_str(), needs.reason.as_str()))
        .collect();
    assert_eq!(needing, [("worker-01", "Silent"), ("worker-02", "Failed")]);
    world.nodes.remove("worker-01");
    world.broken.clear();
    world.edit("wasi", |_| {});
    world.settle();
    assert!(world.runtimes.is_empty());
}

#[test]
fn a_runtime_class_that_is_deleted_with_its_owner_is_made_again_while_a_pod_needs_it() {
    let mut world = World::with_workers(1);
    world.settle();
    world.add_pod("web", "worker-00");
    world.delete("wasi");
    world.settle();
    // As the garbage collector does when a deletion is in the foreground.
    world.classes.clear();
    world.settle();
    assert!(world.classes.contains_key("wasi"));
}

#[test]
fn sandboxes_that_are_no_pods_of_the_cluster_are_waited_for_too() {
    let mut world = World::with_workers(1);
    world.settle();
    world.set_report("wasi.worker-00", |report| report.sandboxes = Some(1));
    world.delete("wasi");
    world.settle();
    assert_eq!(world.wasm_nodes.len(), 1);
    assert_eq!(world.permits(), Vec::<&str>::new());
    world.set_report("wasi.worker-00", |report| report.sandboxes = Some(0));
    world.settle();
    assert!(world.runtimes.is_empty());
}

#[test]
fn no_node_is_cleaned_before_its_label_is_gone_and_its_pods_have_ended() {
    let mut world = World::with_workers(1);
    world.settle();
    world.add_pod("web", "worker-00");
    world.delete("wasi");
    for round in 0..60 {
        if round == 30 {
            world.pods.clear();
        }
        world.reconcile("wasi");
        if !world.permits().is_empty() {
            assert!(world.pods.is_empty() && world.ready("wasi").is_empty(), "round {round}");
        }
        world.agents_act();
    }
    assert!(world.runtimes.is_empty());
}

#[test]
fn pods_are_evicted_only_when_the_spec_asks_for_it_and_no_new_one_can_come() {
    let mut world = World::with_workers(1);
    world.edit("wasi", |spec| spec.drain = Drain::Evict);
    world.settle();
    world.add_pod("web", "worker-00");
    world.delete("wasi");
    let first = world.reconcile("wasi");
    assert!(
        first.contains(&"TakeReady") && !first.contains(&"EvictPod"),
        "{first:?}"
    );
    world.settle();
    assert!(world.pods.is_empty());
    assert!(world.runtimes.is_empty());
}

#[test]
fn labels_of_a_deleted_runtime_go_at_once_and_not_a_tenth_a_minute() {
    let mut world = World::with_workers(12);
    world.settle();
    world.delete("wasi");
    world.reconcile("wasi");
    assert!(world.ready("wasi").is_empty());
}

#[test]
fn a_node_that_goes_in_the_middle_does_not_hold_the_deletion() {
    let mut world = World::with_workers(2);
    world.settle();
    world.add_pod("web", "worker-00");
    world.delete("wasi");
    world.settle();
    world.nodes.remove("worker-00");
    world.pods.clear();
    world.settle();
    assert!(world.runtimes.is_empty());
}

#[test]
fn agents_that_never_could_run_do_not_hold_the_deletion() {
    let mut world = World::with_workers(2);
    for _ in 0..5 {
        world.reconcile("wasi");
    }
    assert_eq!(world.wasm_nodes.len(), 2);
    world.delete("wasi");
    for _ in 0..10 {
        world.reconcile("wasi");
    }
    assert!(world.runtimes.is_empty());
}

/// Kinds of which a deletion has none.
const NOT_DELETING: [&str; 9] = [
    "AddFinalizer",
    "ApplyAgents",
    "ApplyRuntimeClass",
    "CreateRuntimeClass",
    "CreateWasmNode",
    "RemoveStartupTaint",
    "RequestAgent",
    "SetReady",
    // A permit goes with its WasmNode.
    "WithdrawPermit",
];

#[test]
fn a_controller_killed_after_any_write_of_a_deletion_leaves_what_the_next_one_completes() {
    for kind in Write::KINDS {
        let mut world = World::with_workers(2);
        world.edit("wasi", |spec| spec.drain = Drain::Evict);
        world.settle();
        world.add_pod("web", "worker-01");
        world.delete("wasi");
        let mut killed = false;
        for _ in 0..100 {
            if !world.runtimes.contains_key("wasi") {
                break;
            }
            world.reconcile_killed_once(kind, &mut killed);
            world.agents_act();
        }
        assert_eq!(killed, !NOT_DELETING.contains(kind), "killed after {kind}");
        assert!(world.runtimes.is_empty(), "killed after {kind}");
        assert!(
            world.nodes.values().all(|node| node.labels().is_empty()),
            "killed after {kind}"
        );
    }
}

#[test]
fn somebody_elses_finalizer_stays_when_ours_goes() {
    let mut world = World::with_workers(1);
    world.runtimes.get_mut("wasi").unwrap().metadata.finalizers = Some(vec!["example.com/theirs".to_owned()]);
    world.settle();
    world.delete("wasi");
    world.settle();
    assert_eq!(world.runtimes["wasi"].finalizers(), ["example.com/theirs"]);
    assert!(world.wasm_nodes.is_empty());
}
