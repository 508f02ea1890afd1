//! Labels: on proof, off on disproof and silence, and never in a crowd.

use super::*;
use crate::api::wasm_node::{Disproof, DisproofReason};

const READY: &str = "runtime.kubewasi.dev/wasi";

fn disprove(world: &mut World, node: &str, reason: DisproofReason, times: u32) {
    let since = Time(world.now);
    world.set_report(&format!("wasi.{node}"), |report| {
        report.disproof = Some(Disproof {
            reason,
            message: "no such handler".to_owned(),
            times,
            since,
        });
    });
}

/// Reconciles while nobody reports, for this long.
fn silence(world: &mut World, minutes: i64) -> usize {
    let mut taken = 0;
    for _ in 0..minutes * 2 {
        world.pass(30);
        taken += world
            .reconcile("wasi")
            .iter()
            .filter(|kind| **kind == "TakeReady")
            .count();
    }
    taken
}

#[test]
fn a_label_comes_with_the_proof_and_names_the_version() {
    let mut world = World::with_workers(1);
    while world.ready("wasi").is_empty() {
        let proven = world
            .wasm_nodes
            .values()
            .any(|wasm_node| wasm_node.status.as_ref().is_some_and(|status| status.proof.is_some()));
        let kinds = world.reconcile("wasi");
        assert_eq!(kinds.contains(&"SetReady"), proven, "{kinds:?}");
        world.agents_act();
    }
    assert_eq!(world.nodes["worker-00"].labels()["version.kubewasi.dev/wasi"], "0.1.0");
}

#[test]
fn a_label_that_was_taken_away_by_hand_comes_back() {
    let mut world = World::with_workers(1);
    world.settle();
    world
        .nodes
        .get_mut("worker-00")
        .unwrap()
        .labels_mut()
        .insert(READY.to_owned(), "no".to_owned());
    world.settle();
    assert_eq!(world.ready("wasi"), ["worker-00"]);
}

#[test]
fn a_label_that_was_set_by_hand_on_a_node_without_the_runtime_goes() {
    let mut world = World::with_workers(1);
    world.taint("worker-00", "gpu");
    world
        .nodes
        .get_mut("worker-00")
        .unwrap()
        .labels_mut()
        .insert(READY.to_owned(), "ready".to_owned());
    world.settle();
    assert!(world.ready("wasi").is_empty());
}

#[test]
fn a_handler_that_is_gone_takes_the_label_away() {
    let mut world = World::with_workers(2);
    world.settle();
    disprove(&mut world, "worker-01", DisproofReason::HandlerGone, 1);
    world.reconcile("wasi");
    assert_eq!(world.ready("wasi"), ["worker-00"]);
}

#[test]
fn a_failed_smoke_run_takes_the_label_away_only_the_third_time() {
    let mut world = World::with_workers(1);
    world.settle();
    for times in [1, 2] {
        disprove(&mut world, "worker-00", DisproofReason::SmokeFailed, times);
        world.reconcile("wasi");
        assert_eq!(world.ready("wasi"), ["worker-00"]);
    }
    disprove(&mut world, "worker-00", DisproofReason::SmokeFailed, 3);
    world.reconcile("wasi");
    assert!(world.ready("wasi").is_empty());
}

#[test]
fn a_report_that_grows_old_takes_the_label_away() {
    let mut world = World::with_workers(1);
    world.settle();
    assert_eq!(silence(&mut world, 9), 0);
    assert_eq!(silence(&mut world, 2), 1);
    let attention = &world.runtimes["wasi"].status.as_ref().unwrap().attention;
    assert_eq!(attention[0].reason, "Silent");
    world.everyone_reports();
    world.settle();
    assert_eq!(world.ready("wasi"), ["worker-00"]);
}

#[test]
fn what_a_nodes_clock_says_keeps_no_label_and_takes_none() {
    for skew in [-7200, 7200] {
        let mut world = World::with_workers(1);
        world.settle();
        let report = |world: &mut World| {
            let told = Time(world.now + SignedDuration::from_secs(skew));
            world.set_report("wasi.worker-00", |report| report.reported_at = Some(told));
        };
        for _ in 0..6 {
            report(&mut world);
            assert_eq!(silence(&mut world, 5), 0, "{skew}");
        }
        assert_eq!(silence(&mut world, 4), 0, "{skew}");
        assert_eq!(silence(&mut world, 2), 1, "{skew}");
    }
}

#[test]
fn silence_before_the_watches_were_current_is_nobodys() {
    let mut world = World::with_workers(1);
    world.settle();
    // A controller that starts after an hour without one.
    world.pass(3600);
    world.since = world.now;
    assert_eq!(silence(&mut world, 9), 0);
    assert_eq!(silence(&mut world, 2), 1);
}

/// Says how many of the agents are of the last template and how many run.
fn agents_run(world: &mut World, desired: i32, updated: i32, available: i32) {
    let status = world.agents.get_mut("wasi").unwrap().status.as_mut().unwrap();
    status.desired_number_scheduled = desired;
    status.updated_number_scheduled = Some(updated);
    status.number_available = Some(available);
}

#[test]
fn silence_while_agents_are_replaced_takes_no_label_away() {
    let mut world = World::with_workers(1);
    world.settle();
    agents_run(&mut world, 1, 0, 0);
    assert_eq!(silence(&mut world, 30), 0);
    agents_run(&mut world, 1, 1, 1);
    assert_eq!(silence(&mut world, 1), 1);
}

#[test]
fn agents_that_do_not_start_cost_no_node_its_label_and_are_told_of() {
    for workers in [1, 20] {
        let mut world = World::with_workers(workers);
        world.settle();
        // Every pod is of the new template at once, and none can pull its image.
        let all = i32::try_from(workers).unwrap();
        agents_run(&mut world, all, all, 0);
        assert_eq!(silence(&mut world, 9), 0);
        assert_eq!(world.condition("wasi", "Degraded").0, "AsExpected");
        assert_eq!(silence(&mut world, 30), 0);
        assert_eq!(world.ready("wasi").len(), workers);
        let (reason, message) = world.condition("wasi", "Degraded");
        assert_eq!(reason, "AgentsNotRunning");
        assert!(message.starts_with(&format!("{all} agents do not start")), "{message}");
        let attention = &world.runtimes["wasi"].status.as_ref().unwrap().attention;
        assert!(attention.iter().all(|needs| needs.reason == "Silent"), "{attention:?}");
        assert_eq!(attention.len(), workers.min(10));
    }
}

#[test]
fn one_agent_of_many_that_does_not_start_keeps_no_label() {
    let mut world = World::with_workers(20);
    world.settle();
    agents_run(&mut world, 20, 20, 19);
    for _ in 0..22 {
        world.pass(30);
        world.everyone_reports();
        let told = Time(world.since);
        world.set_report("wasi.worker-07", |report| report.reported_at = Some(told));
        world.reconcile("wasi");
    }
    assert_eq!(world.ready("wasi").len(), 19);
}

#[test]
fn a_dead_node_whose_agent_is_never_replaced_does_not_keep_the_label() {
    let mut world = World::with_workers(1);
    world.settle();
    agents_run(&mut world, 1, 0, 0);
    let status = world.nodes.get_mut("worker-00").unwrap().status.as_mut().unwrap();
    status.conditions.as_mut().unwrap()[0].status = "Unknown".to_owned();
    assert_eq!(silence(&mut world, 11), 1);
}

#[test]
fn at_most_a_tenth_of_the_nodes_lose_their_label_within_a_minute() {
    let mut world = World::with_workers(30);
    world.settle();
    assert_eq!(world.ready("wasi").len(), 30);
    for node in world.nodes.keys().cloned().collect::<Vec<_>>() {
        disprove(&mut world, &node, DisproofReason::HandlerGone, 1);
    }
    for (seconds, left) in [(0, 27), (20, 27), (30, 27), (15, 24), (61, 21)] {
        world.pass(seconds);
        world.reconcile("wasi");
        assert_eq!(world.ready("wasi").len(), left, "after {seconds} more seconds");
    }
}

#[test]
fn the_startup_taint_goes_with_the_first_proof_and_others_stay() {
    let mut world = World::with_workers(1);
    world.edit("wasi", |spec| {
        spec.startup_taint = Some("kubewasi.dev/starting".to_owned());
        spec.tolerations = serde_json::from_value(serde_json::json!([{"operator": "Exists"}])).unwrap();
    });
    world.taint("worker-00", "kubewasi.dev/starting");
    world.taint("worker-00", "gpu");
    world.settle();
    let taints = world.nodes["worker-00"].spec.as_ref().unwrap().taints.clone().unwrap();
    assert_eq!(
        taints.iter().map(|taint| taint.key.as_str()).collect::<Vec<_>>(),
        ["gpu"]
    );
}

#[test]
fn a_failed_first_install_never_gets_a_label() {
    let mut world = World::with_workers(1);
    world.broken = vec!["worker-00".to_owned()];
    for _ in 0..50 {
        let kinds = world.reconcile("wasi");
        assert!(!kinds.contains(&"SetReady"), "{kinds:?}");
        world.agents_act();
    }
}
