//! What belongs to somebody else: RuntimeClasses, handlers, and the right to make pods.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::json;

use super::*;
use crate::operator::plan::told_of;
use crate::operator::write::Refusal;

#[test]
fn a_runtime_class_has_handler_overhead_and_scheduling_of_the_runtime() {
    let mut world = World::with_workers(1);
    world.edit("wasi", |spec| spec.overhead.cpu = Some("5m".to_owned()));
    world.settle();
    let class = serde_json::to_value(&world.classes["wasi"]).unwrap();
    assert_eq!(class["handler"], "wasi");
    assert_eq!(class["overhead"]["podFixed"], json!({"cpu": "5m", "memory": "2Mi"}));
    assert_eq!(
        class["scheduling"]["nodeSelector"],
        json!({"runtime.kubewasi.dev/wasi": "ready"})
    );
}

#[test]
fn a_runtime_class_that_was_deleted_by_hand_is_made_again() {
    let mut world = World::with_workers(1);
    world.settle();
    world.classes.clear();
    assert_eq!(world.reconcile("wasi"), ["CreateRuntimeClass"]);
}

#[test]
fn a_runtime_class_that_was_edited_by_hand_is_put_right() {
    let mut world = World::with_workers(1);
    world.settle();
    world.classes.get_mut("wasi").unwrap().overhead = None;
    assert_eq!(world.reconcile("wasi"), ["ApplyRuntimeClass"]);
    assert_eq!(world.reconcile("wasi"), Vec::<&str>::new());
}

#[test]
fn an_amount_that_the_api_server_writes_in_another_way_is_left_alone() {
    let mut world = World::with_workers(1);
    world.edit("wasi", |spec| spec.overhead.memory = "2048Ki".to_owned());
    world.settle();
    let overhead = world.classes.get_mut("wasi").unwrap().overhead.as_mut().unwrap();
    overhead.pod_fixed = Some([("memory".to_owned(), Quantity("2Mi".to_owned()))].into());
    assert_eq!(world.reconcile("wasi"), Vec::<&str>::new());
}

#[test]
fn somebody_elses_runtime_class_is_left_alone_and_named() {
    let mut world = World::with_workers(1);
    let foreign = RuntimeClass {
        metadata: world.meta("wasi"),
        handler: "other".to_owned(),
        ..RuntimeClass::default()
    };
    world.classes.insert("wasi".to_owned(), foreign.clone());
    world.settle();
    assert_eq!(world.classes["wasi"], foreign);
    let (reason, message) = world.condition("wasi", "Degraded");
    assert_eq!(reason, "RuntimeClassTaken");
    assert!(
        message.contains("RuntimeClass wasi exists and is not this runtime's"),
        "{message}"
    );
    world.delete("wasi");
    world.settle();
    assert_eq!(world.classes["wasi"], foreign);
    assert!(world.runtimes.is_empty());
}

#[test]
fn two_runtimes_with_their_own_handlers_share_nodes() {
    let mut world = World::with_workers(2);
    world.add_runtime("second", json!({}));
    world.settle();
    assert_eq!(world.ready("wasi").len(), 2);
    assert_eq!(world.ready("second").len(), 2);
    assert_eq!(world.condition("second", "Degraded").0, "AsExpected");
}

#[test]
fn of_two_runtimes_with_one_handler_the_older_has_the_node_and_the_other_says_so() {
    let mut world = World::with_workers(2);
    world.add_runtime("second", json!({"handler": "wasi"}));
    world.settle();
    assert_eq!(world.ready("wasi").len(), 2);
    assert!(world.ready("second").is_empty());
    let (reason, message) = world.condition("second", "Degraded");
    assert_eq!(reason, "RuntimeConflict");
    assert!(
        message.contains("the older WasmRuntime wasi with the same handler wasi"),
        "{message}"
    );
    assert_eq!(world.condition("wasi", "Degraded").0, "AsExpected");
}

#[test]
fn two_runtimes_with_one_handler_on_different_nodes_do_not_conflict() {
    let mut world = World::with_workers(2);
    for name in ["worker-00", "worker-01"] {
        let labels = world.nodes.get_mut(name).unwrap().labels_mut();
        labels.insert("pool".to_owned(), name.to_owned());
    }
    world.edit("wasi", |spec| {
        spec.node_selector = [("pool".to_owned(), "worker-00".to_owned())].into()
    });
    world.add_runtime(
        "second",
        json!({"handler": "wasi", "nodeSelector": {"pool": "worker-01"}}),
    );
    world.settle();
    assert_eq!(world.ready("wasi"), ["worker-00"]);
    assert_eq!(world.ready("second"), ["worker-01"]);
}

#[test]
fn the_younger_runtime_gets_the_node_when_the_older_is_gone() {
    let mut world = World::with_workers(1);
    world.add_runtime("second", json!({"handler": "wasi"}));
    world.settle();
    world.delete("wasi");
    world.settle();
    assert_eq!(world.ready("second"), ["worker-00"]);
}

#[test]
fn agents_that_are_forbidden_are_a_condition_that_names_the_label() {
    let mut world = World::with_workers(1);
    world.forbidden = Some("violates PodSecurity \"baseline\"".to_owned());
    world.reconcile("wasi");
    world.reconcile("wasi");
    let (reason, message) = world.condition("wasi", "Degraded");
    assert_eq!(reason, "AgentsForbidden");
    assert!(
        message.contains("pod-security.kubernetes.io/enforce=privileged"),
        "{message}"
    );
    assert!(message.contains("violates PodSecurity"), "{message}");
}

#[test]
fn agents_whose_apply_was_refused_are_applied_again() {
    let mut world = World::with_workers(1);
    world.settle();
    // Somebody has changed the DaemonSet, and the API server does not take ours.
    world.agents.get_mut("wasi").unwrap().metadata.generation = Some(9);
    assert!(world.view("wasi").agents.is_some());
    let refusal = Refusal {
        kind: "ApplyAgents",
        name: "kubewasi-agent-wasi".to_owned(),
        message: "spec.template.spec.hostPID is not for you".to_owned(),
    };
    let told = told_of(&world.view("wasi"), std::slice::from_ref(&refusal)).unwrap();
    world.write(&told).unwrap();
    let (reason, message) = world.condition("wasi", "Degraded");
    assert_eq!(reason, "WriteRefused");
    assert!(message.contains(&refusal.to_string()), "{message}");
    let again = plan(&world.view("wasi"));
    assert!(again.writes.iter().any(|write| write.kind() == "ApplyAgents"));
}
