//! What a node's proof says, and what follows when there is none.

use super::*;
use crate::api::wasm_node::{Disproof, DisproofReason};

/// The first node's agent is through with its plan, and its module does not run.
fn finish_without_proof(world: &mut World) {
    while world.permits().is_empty() {
        world.reconcile("wasi");
        world.agents_act();
    }
    assert_eq!(world.permits(), ["worker-00"]);
    let disproof = Disproof {
        reason: DisproofReason::SmokeFailed,
        message: "the module does not run".to_owned(),
        times: 1,
        since: Time(world.now),
    };
    world.set_report("wasi.worker-00", |report| {
        report.phase = Some(Phase::Ready);
        (report.plan, report.step) = (None, None);
        report.disproof = Some(disproof);
    });
}

fn prove(world: &mut World) {
    let proof = world.proof(&world.wasm_nodes["wasi.worker-00"].spec.wish.hash());
    world.set_report("wasi.worker-00", |report| {
        report.proof = Some(proof);
        report.disproof = None;
    });
}

#[test]
fn the_next_node_is_not_tried_before_the_last_one_is_proven() {
    let mut world = World::with_workers(3);
    finish_without_proof(&mut world);
    world.reconcile("wasi");
    world.settle();
    assert_eq!(world.permits(), ["worker-00"]);
    assert_eq!(world.condition("wasi", "Progressing").0, "RollingOut");
    assert_eq!(world.runtimes["wasi"].status.as_ref().unwrap().nodes.updated, 0);
    prove(&mut world);
    world.settle();
    assert_eq!(world.ready("wasi").len(), 3);
    assert_eq!(world.permits(), Vec::<&str>::new());
    assert_eq!(world.condition("wasi", "Progressing").0, "RolloutComplete");
}

#[test]
fn the_proof_of_an_older_wish_does_not_end_an_upgrade() {
    let mut world = World::with_workers(2);
    world.settle();
    world.edit("wasi", |spec| spec.shim.image = "registry/shim:2".to_owned());
    finish_without_proof(&mut world);
    world.settle();
    assert_eq!(world.permits(), ["worker-00"]);
    // What it once proved still counts for its label.
    assert_eq!(world.ready("wasi"), ["worker-00", "worker-01"]);
    assert_eq!(world.runtimes["wasi"].status.as_ref().unwrap().nodes.updated, 0);
    prove(&mut world);
    world.settle();
    assert_eq!(world.runtimes["wasi"].status.as_ref().unwrap().nodes.updated, 2);
}

#[test]
fn a_wish_that_never_gets_its_proof_gives_its_place_back_when_the_spec_changes() {
    let mut world = World::with_workers(2);
    finish_without_proof(&mut world);
    world.settle();
    world.edit("wasi", |spec| spec.shim.image = "registry/shim:2".to_owned());
    world.settle();
    assert_eq!(world.permits(), Vec::<&str>::new());
    assert_eq!(world.condition("wasi", "Progressing").0, "RolloutComplete");
}

/// The agent of the first node finds nothing of the runtime, and waits with a plan.
fn find_nothing(world: &mut World, steps: Vec<Step>) {
    world.set_report("wasi.worker-00", |report| {
        report.phase = Some(Phase::Waiting);
        report.plan = Some(AgentPlan {
            hash: "anew".to_owned(),
            steps,
        });
        report.proof = None;
    });
}

#[test]
fn a_node_with_a_new_disk_loses_its_label_until_the_runtime_is_there_again() {
    for change in [Step::WriteConfig, Step::RestartContainerd] {
        let mut world = World::with_workers(2);
        world.settle();
        find_nothing(&mut world, vec![Step::StageShim, change, Step::Prove]);
        world.reconcile("wasi");
        assert_eq!(world.ready("wasi"), ["worker-01"]);
        // It is a node like any that waits for its turn then.
        world.reconcile("wasi");
        assert_eq!(world.condition("wasi", "Degraded").0, "AsExpected");
        world.settle();
        assert_eq!(world.ready("wasi"), ["worker-00", "worker-01"]);
    }
}

#[test]
fn a_node_that_lacks_only_the_new_shim_keeps_its_label() {
    let mut world = World::with_workers(1);
    world.settle();
    find_nothing(&mut world, vec![Step::StageShim, Step::SwitchShim, Step::Prove]);
    world.reconcile("wasi");
    assert_eq!(world.ready("wasi"), ["worker-00"]);
}

#[test]
fn a_node_that_comes_under_the_name_of_another_is_another() {
    let mut world = World::with_workers(2);
    world.settle();
    world.nodes.remove("worker-00");
    world.add_node("worker-00");
    let kinds = world.reconcile("wasi");
    assert!(
        kinds.contains(&"DeleteWasmNode") && !kinds.contains(&"SetReady"),
        "{kinds:?}"
    );
    assert_eq!(world.runtimes["wasi"].status.as_ref().unwrap().nodes.updated, 1);
    world.settle();
    assert_eq!(world.ready("wasi"), ["worker-00", "worker-01"]);
    let owners = world.wasm_nodes["wasi.worker-00"].owner_references();
    assert_eq!(Some(&owners[0].uid), world.nodes["worker-00"].metadata.uid.as_ref());
}

#[test]
fn a_label_that_a_node_has_of_another_of_its_name_goes() {
    let mut world = World::with_workers(1);
    world.settle();
    world.nodes.remove("worker-00");
    world.add_node("worker-00");
    let ready = (names::ready("wasi"), names::READY.to_owned());
    world.nodes.get_mut("worker-00").unwrap().labels_mut().extend([ready]);
    let kinds = world.reconcile("wasi");
    assert!(kinds.contains(&"TakeReady"), "{kinds:?}");
}
