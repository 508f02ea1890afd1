//! Permits: who may change a node, how many at once, and when nobody may.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::*;

fn upgrade(world: &mut World) {
    world.edit("wasi", |spec| spec.shim.image = "registry/shim:2".to_owned());
}

#[test]
fn the_first_install_lets_out_one_node_at_a_time() {
    let mut world = World::with_workers(5);
    world.settle();
    assert_eq!(world.ready("wasi").len(), 5);
    assert_eq!(world.most_permits, 1);
    assert_eq!(world.permits(), Vec::<&str>::new());
}

#[test]
fn as_many_nodes_are_out_as_the_spec_allows() {
    let mut world = World::with_workers(10);
    world.edit("wasi", |spec| {
        spec.rollout.max_unavailable = IntOrString::String("30%".to_owned())
    });
    world.settle();
    assert_eq!(world.ready("wasi").len(), 10);
    assert_eq!(world.most_permits, 3);
}

#[test]
fn a_small_percentage_still_lets_out_one_node() {
    let mut world = World::with_workers(3);
    world.edit("wasi", |spec| {
        spec.rollout.max_unavailable = IntOrString::String("1%".to_owned())
    });
    world.settle();
    assert_eq!(world.ready("wasi").len(), 3);
    assert_eq!(world.most_permits, 1);
}

#[test]
fn an_upgrade_takes_no_label_away() {
    let mut world = World::with_workers(3);
    world.settle();
    upgrade(&mut world);
    for _ in 0..100 {
        let kinds = world.reconcile("wasi");
        assert!(!kinds.contains(&"TakeReady"), "{kinds:?}");
        world.agents_act();
        assert_eq!(world.ready("wasi").len(), 3);
    }
    assert_eq!(world.runtimes["wasi"].status.as_ref().unwrap().nodes.updated, 3);
}

#[test]
fn a_changed_spec_is_not_said_to_be_on_nodes_that_have_not_heard_of_it() {
    let mut world = World::with_workers(2);
    world.settle();
    upgrade(&mut world);
    world.reconcile("wasi");
    assert_eq!(world.condition("wasi", "Progressing").0, "RollingOut");
    assert_eq!(world.runtimes["wasi"].status.as_ref().unwrap().nodes.updated, 0);
}

#[test]
fn a_node_that_comes_is_waited_for_from_the_start() {
    let mut world = World::with_workers(1);
    world.settle();
    world.add_node("worker-late");
    world.reconcile("wasi");
    assert_eq!(world.condition("wasi", "Progressing").0, "RollingOut");
}

#[test]
fn a_permit_is_for_the_plan_that_the_agent_reported() {
    let mut world = World::with_workers(1);
    while world.permits().is_empty() {
        world.reconcile("wasi");
        world.agents_act();
    }
    let wasm_node = &world.wasm_nodes["wasi.worker-00"];
    let plan = wasm_node.status.as_ref().unwrap().plan.as_ref().unwrap();
    assert_eq!(wasm_node.spec.permit.as_ref().unwrap().plan, plan.hash);
}

#[test]
fn an_agent_with_another_plan_gets_a_permit_for_that_one() {
    let mut world = World::with_workers(1);
    while world.permits().is_empty() {
        world.reconcile("wasi");
        world.agents_act();
    }
    world.set_report("wasi.worker-00", |report| {
        report.phase = Some(Phase::Waiting);
        report.plan.as_mut().unwrap().hash = "another".to_owned();
    });
    world.reconcile("wasi");
    assert_eq!(
        world.wasm_nodes["wasi.worker-00"].spec.permit.as_ref().unwrap().plan,
        "another"
    );
}

#[test]
fn a_name_stands_in_the_status_before_its_permit_does() {
    let mut world = World::with_workers(4);
    for _ in 0..100 {
        world.reconcile("wasi");
        world.agents_act();
        let permitted = world.runtimes["wasi"].status.clone().unwrap_or_default().permitted;
        for node in world.permits() {
            assert!(
                permitted.iter().any(|name| name == node),
                "{node} is not in {permitted:?}"
            );
        }
    }
    assert_eq!(world.ready("wasi").len(), 4);
}

#[test]
fn two_controllers_with_the_same_view_let_out_no_more_than_one() {
    let mut world = World::with_workers(4);
    for _ in 0..200 {
        let (one, other) = (plan(&world.view("wasi")), plan(&world.view("wasi")));
        for write in one.writes.iter().chain(&other.writes) {
            // The slower one is refused, and looks again.
            let _ = world.write(write);
        }
        world.agents_act();
    }
    assert_eq!(world.ready("wasi").len(), 4);
    assert_eq!(world.most_permits, 1);
}

#[test]
fn a_controller_with_an_old_view_lets_nobody_out_a_second_time() {
    let mut world = World::with_workers(3);
    let mut old = plan(&world.view("wasi"));
    for round in 0..200 {
        let now = plan(&world.view("wasi"));
        for write in now.writes.iter().chain(&old.writes) {
            let _ = world.write(write);
        }
        // The old view is up to some rounds behind.
        if round % 3 == 0 {
            old = plan(&world.view("wasi"));
        }
        world.agents_act();
    }
    assert_eq!(world.ready("wasi").len(), 3);
    assert_eq!(world.most_permits, 1);
}

/// Kinds of which an installation has none.
const NOT_INSTALLING: [&str; 9] = [
    "ApplyRuntimeClass",
    "ChangeWish",
    "DeleteAgents",
    "DeleteRuntimeClass",
    "DeleteWasmNode",
    "EvictPod",
    "ReleaseAgent",
    "RemoveFinalizer",
    "TakeReady",
];

#[test]
fn a_controller_killed_after_any_write_leaves_what_the_next_one_completes() {
    for kind in Write::KINDS {
        let mut world = World::with_workers(3);
        world.edit("wasi", |spec| {
            spec.startup_taint = Some("kubewasi.dev/starting".to_owned())
        });
        world.taint("worker-01", "kubewasi.dev/starting");
        let mut killed = false;
        for _ in 0..200 {
            world.reconcile_killed_once(kind, &mut killed);
            world.agents_act();
        }
        world.settle();
        assert_eq!(killed, !NOT_INSTALLING.contains(kind), "killed after {kind}");
        assert_eq!(world.ready("wasi").len(), 3, "killed after {kind}");
        assert_eq!(world.most_permits, 1, "killed after {kind}");
    }
}

#[test]
fn control_plane_nodes_come_last_and_alone() {
    let mut world = World::with_workers(3);
    for name in ["control-0", "control-1"] {
        world.add_node(name);
        let labels = world.nodes.get_mut(name).unwrap().labels_mut();
        labels.insert("node-role.kubernetes.io/control-plane".to_owned(), String::new());
    }
    world.edit("wasi", |spec| spec.rollout.max_unavailable = IntOrString::Int(3));
    for _ in 0..100 {
        world.reconcile("wasi");
        world.agents_act();
        let permits = world.permits();
        if permits.iter().any(|name| name.starts_with("control")) {
            assert_eq!(permits.len(), 1);
            assert!(
                world
                    .ready("wasi")
                    .iter()
                    .filter(|name| name.starts_with("worker"))
                    .count()
                    == 3
            );
        }
    }
    assert_eq!(world.ready("wasi").len(), 5);
}

#[test]
fn a_paused_rollout_lets_nobody_out_and_what_has_begun_ends() {
    let mut world = World::with_workers(3);
    while world.permits().is_empty() {
        world.reconcile("wasi");
        world.agents_act();
    }
    world.agents_act();
    world.edit("wasi", |spec| spec.rollout.paused = true);
    world.settle();
    assert_eq!(world.ready("wasi"), ["worker-00"]);
    assert_eq!(world.condition("wasi", "Progressing").0, "RolloutPaused");
    world.edit("wasi", |spec| spec.rollout.paused = false);
    world.settle();
    assert_eq!(world.ready("wasi").len(), 3);
}

#[test]
fn a_failure_halts_the_rollout_at_its_threshold_and_says_what_to_do() {
    let mut world = World::with_workers(4);
    world.broken = vec!["worker-01".to_owned()];
    world.settle();
    assert_eq!(world.ready("wasi"), ["worker-00"]);
    let (reason, message) = world.condition("wasi", "Progressing");
    assert_eq!(reason, "RolloutHalted");
    assert!(message.contains("kubewasi.dev/retry"), "{message}");
    let attention = &world.runtimes["wasi"].status.as_ref().unwrap().attention;
    assert_eq!(attention.len(), 1);
    assert_eq!(attention[0].node, "worker-01");
    assert_eq!(
        attention[0].message,
        "RestartContainerd, rolled back: containerd does not come back"
    );
    assert_eq!(world.condition("wasi", "Degraded").0, "NodesFailed");
}

#[test]
fn below_the_threshold_the_rollout_goes_on_without_the_failed_node() {
    let mut world = World::with_workers(4);
    world.edit("wasi", |spec| spec.rollout.failure_threshold = 2);
    world.broken = vec!["worker-01".to_owned()];
    world.settle();
    assert_eq!(world.ready("wasi"), ["worker-00", "worker-02", "worker-03"]);
}

#[test]
fn a_halted_rollout_never_tries_a_failed_node_again_by_itself() {
    let mut world = World::with_workers(2);
    world.broken = vec!["worker-00".to_owned()];
    world.settle();
    world.broken.clear();
    world.pass(300);
    world.settle();
    assert!(world.ready("wasi").is_empty());
}

#[test]
fn a_new_generation_resumes_a_halted_rollout() {
    let mut world = World::with_workers(2);
    world.broken = vec!["worker-00".to_owned()];
    world.settle();
    world.broken.clear();
    upgrade(&mut world);
    world.settle();
    assert_eq!(world.ready("wasi").len(), 2);
}

#[test]
fn the_retry_annotation_resumes_a_halted_rollout() {
    let mut world = World::with_workers(2);
    world.broken = vec!["worker-00".to_owned()];
    world.settle();
    world.broken.clear();
    let runtime = world.runtimes.get_mut("wasi").unwrap();
    runtime
        .annotations_mut()
        .insert("kubewasi.dev/retry".to_owned(), "1".to_owned());
    world.settle();
    assert_eq!(world.ready("wasi").len(), 2);
    assert_eq!(world.condition("wasi", "Degraded").0, "AsExpected");
}

#[test]
fn a_node_that_is_not_ready_is_not_let_out() {
    let mut world = World::with_workers(2);
    let status = world.nodes.get_mut("worker-00").unwrap().status.as_mut().unwrap();
    status.conditions.as_mut().unwrap()[0].status = "Unknown".to_owned();
    world.settle();
    assert_eq!(world.ready("wasi"), ["worker-01"]);
}

#[test]
fn a_refused_host_is_named_with_its_reason_and_holds_nobody_up() {
    let mut world = World::with_workers(2);
    world.reconcile("wasi");
    world.reconcile("wasi");
    let wish = world.wasm_nodes["wasi.worker-00"].spec.wish.hash();
    world.set_report("wasi.worker-00", |report| {
        report.observed_wish = Some(wish);
        report.phase = Some(Phase::Refused);
        report.refusal = Some(crate::api::wasm_node::Refusal {
            reason: "NoSystemd".to_owned(),
            message: "the host runs no systemd".to_owned(),
        });
    });
    world.settle();
    assert_eq!(world.ready("wasi"), ["worker-01"]);
    assert_eq!(world.condition("wasi", "Degraded").0, "NodesRefused");
    let attention = &world.runtimes["wasi"].status.as_ref().unwrap().attention;
    assert_eq!(
        (attention[0].node.as_str(), attention[0].reason.as_str()),
        ("worker-00", "NoSystemd")
    );
}

#[test]
fn a_plan_that_waits_for_a_restart_by_somebody_else_is_named_and_has_not_failed() {
    let mut world = World::with_workers(2);
    while world
        .wasm_nodes
        .values()
        .all(|wasm_node| wasm_node.spec.permit.is_none())
    {
        world.reconcile("wasi");
        world.agents_act();
    }
    let of = |world: &World| {
        world
            .wasm_nodes
            .values()
            .find(|node| node.spec.permit.is_some())
            .cloned()
    };
    let waiting = of(&world).unwrap();
    world.set_report(&waiting.name_any(), |report| {
        report.phase = Some(Phase::Working);
        report.step = Some(Step::Prove);
        report.refusal = Some(crate::api::wasm_node::Refusal {
            reason: "AwaitsRestart".to_owned(),
            message: "containerd has to be restarted".to_owned(),
        });
    });
    world.reconcile("wasi");
    let attention = &world.runtimes["wasi"].status.as_ref().unwrap().attention;
    let named: Vec<(&str, &str)> = attention
        .iter()
        .map(|node| (node.node.as_str(), node.reason.as_str()))
        .collect();
    assert_eq!(named, [(waiting.spec.node_name.as_str(), "AwaitsRestart")]);
    assert_eq!(world.condition("wasi", "Degraded").0, "NodesNeedAttention");
    assert_eq!(world.condition("wasi", "Progressing").0, "RollingOut");

    // Somebody has restarted it.
    world.set_report(&waiting.name_any(), |report| report.refusal = None);
    world.settle();
    assert_eq!(world.ready("wasi").len(), 2);
    assert_eq!(world.condition("wasi", "Degraded").0, "AsExpected");
}

#[test]
fn at_most_ten_nodes_are_listed_for_attention() {
    let mut world = World::with_workers(12);
    world.edit("wasi", |spec| spec.rollout.failure_threshold = 100);
    world.broken = world.nodes.keys().cloned().collect();
    world.settle();
    let status = world.runtimes["wasi"].status.as_ref().unwrap();
    assert_eq!(status.attention.len(), 10);
    assert_eq!(status.nodes.failed, 12);
}
