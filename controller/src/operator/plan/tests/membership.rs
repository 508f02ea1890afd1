//! Which nodes get the runtime, and an agent.

use serde_json::json;

use super::*;

#[test]
fn every_linux_node_gets_the_runtime_when_the_selector_is_empty() {
    let mut world = World::with_workers(3);
    world
        .nodes
        .get_mut("worker-02")
        .unwrap()
        .labels_mut()
        .insert("kubernetes.io/os".to_owned(), "windows".to_owned());
    world.settle();
    assert_eq!(world.ready("wasi"), ["worker-00", "worker-01"]);
    assert_eq!(world.condition("wasi", "Available").0, "AllNodesReady");
    assert_eq!(world.condition("wasi", "Progressing").0, "RolloutComplete");
    assert_eq!(world.condition("wasi", "Degraded").0, "AsExpected");
}

#[test]
fn a_cluster_at_rest_is_not_written_to() {
    let mut world = World::with_workers(3);
    world.settle();
    world.pass(120);
    assert_eq!(world.reconcile("wasi"), Vec::<&str>::new());
}

/// From now on the runtime is for nodes with a label, which `node` gets.
fn select_by_label(world: &mut World, node: &str) {
    let label = ("wasm".to_owned(), "yes".to_owned());
    world.edit("wasi", |spec| spec.node_selector = [label.clone()].into());
    let labels = world.nodes.get_mut(node).unwrap().labels_mut();
    labels.insert(label.0, label.1);
}

#[test]
fn only_nodes_with_the_selectors_labels_get_the_runtime() {
    let mut world = World::with_workers(2);
    select_by_label(&mut world, "worker-01");
    world.settle();
    assert_eq!(world.ready("wasi"), ["worker-01"]);
    assert_eq!(world.wasm_nodes.len(), 1);
}

#[test]
fn a_node_with_a_taint_that_agents_do_not_tolerate_gets_none() {
    let mut world = World::with_workers(2);
    world.taint("worker-00", "gpu");
    world.settle();
    assert_eq!(world.ready("wasi"), ["worker-01"]);
    world.edit("wasi", |spec| {
        spec.tolerations = serde_json::from_value(json!([{"key": "gpu", "operator": "Exists"}])).unwrap();
    });
    world.settle();
    assert_eq!(world.ready("wasi"), ["worker-00", "worker-01"]);
}

#[test]
fn a_taint_that_comes_later_takes_no_runtime_away() {
    let mut world = World::with_workers(1);
    world.settle();
    world.taint("worker-00", "maintenance");
    world.settle();
    assert_eq!(world.ready("wasi"), ["worker-00"]);
}

#[test]
fn a_node_that_joins_gets_the_runtime_and_its_agent_by_label() {
    let mut world = World::with_workers(1);
    world.settle();
    world.add_node("worker-09");
    world.settle();
    assert_eq!(world.ready("wasi"), ["worker-00", "worker-09"]);
    assert_eq!(world.nodes["worker-09"].labels()["agent.kubewasi.dev/wasi"], "wanted");
}

#[test]
fn a_node_that_is_no_longer_selected_is_cleaned_by_its_agent_and_then_loses_it() {
    let mut world = World::with_workers(2);
    world.settle();
    select_by_label(&mut world, "worker-01");
    world.settle();
    assert_eq!(world.ready("wasi"), ["worker-01"]);
    assert_eq!(world.wasm_nodes.keys().collect::<Vec<_>>(), ["wasi.worker-01"]);
    assert!(
        !world.nodes["worker-00"]
            .labels()
            .contains_key("agent.kubewasi.dev/wasi")
    );
}

#[test]
fn a_node_that_is_no_longer_selected_keeps_the_runtime_until_its_pods_have_ended() {
    let mut world = World::with_workers(1);
    world.settle();
    world.add_pod("web", "worker-00");
    world.edit("wasi", |spec| {
        spec.node_selector = [("wasm".to_owned(), "yes".to_owned())].into()
    });
    world.settle();
    assert!(world.ready("wasi").is_empty());
    assert_eq!(world.permits(), Vec::<&str>::new());
    let (reason, message) = world.condition("wasi", "Progressing");
    assert_eq!(reason, "RollingOut");
    assert!(
        message.contains("waiting for 1 wasm pods to end: default/web"),
        "{message}"
    );
    world.pods.clear();
    world.settle();
    assert!(world.wasm_nodes.is_empty());
}

#[test]
fn a_node_whose_agent_never_ran_is_let_go_at_once() {
    let mut world = World::with_workers(1);
    world.reconcile("wasi");
    world.reconcile("wasi");
    assert_eq!(world.wasm_nodes.len(), 1);
    world.edit("wasi", |spec| {
        spec.node_selector = [("wasm".to_owned(), "yes".to_owned())].into()
    });
    world.reconcile("wasi");
    assert!(world.wasm_nodes.is_empty());
}

#[test]
fn a_wasm_node_of_a_node_that_is_gone_goes_too() {
    let mut world = World::with_workers(2);
    world.settle();
    world.nodes.remove("worker-00");
    world.settle();
    assert_eq!(world.wasm_nodes.keys().collect::<Vec<_>>(), ["wasi.worker-01"]);
}

#[test]
fn a_wasm_node_that_cannot_be_read_is_told_of_and_its_node_left_as_it_is() {
    let mut world = World::with_workers(2);
    world.settle();
    let hidden = world.wasm_nodes.remove("wasi.worker-00").unwrap();
    let why = "sandboxes: invalid value".to_owned();
    world.unreadable.insert("wasi.worker-00".to_owned(), why);
    world.reconcile("wasi");
    assert_eq!(world.reconcile("wasi"), Vec::<&str>::new());
    assert_eq!(world.ready("wasi"), ["worker-00", "worker-01"]);
    let attention = &world.runtimes["wasi"].status.as_ref().unwrap().attention;
    assert_eq!(
        (attention[0].node.as_str(), attention[0].reason.as_str()),
        ("worker-00", "Unreadable")
    );
    assert!(
        attention[0].message.contains("sandboxes: invalid value"),
        "{attention:?}"
    );
    // It is not gone, so neither is the runtime.
    world.delete("wasi");
    world.settle();
    assert!(world.wasm_nodes.is_empty() && world.classes.contains_key("wasi") && world.agents.contains_key("wasi"));
    world.unreadable.clear();
    world.wasm_nodes.insert("wasi.worker-00".to_owned(), hidden);
    world.settle();
    assert!(world.runtimes.is_empty());
}

#[test]
fn a_wasm_node_that_cannot_be_read_is_told_of_by_its_nodes_whole_name() {
    let mut world = World::with_workers(1);
    let long = "n".repeat(250);
    world.add_node(&long);
    let named = |node: &str| super::super::nodes::wasm_node_name("wasi", node);
    for node in [&long, "gone"] {
        world
            .unreadable
            .insert(named(node), "sandboxes: invalid value".to_owned());
    }
    world.settle();
    let attention = &world.runtimes["wasi"].status.as_ref().unwrap().attention;
    let mut nodes: Vec<&str> = attention.iter().map(|needs| needs.node.as_str()).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, [long.as_str(), "wasi.gone"]);
}

#[test]
fn a_wasm_node_that_cannot_be_read_keeps_its_place_in_the_rollout() {
    let mut world = World::with_workers(2);
    while world.permits().is_empty() {
        world.reconcile("wasi");
        world.agents_act();
    }
    assert_eq!(world.permits(), ["worker-00"]);
    world.wasm_nodes.remove("wasi.worker-00");
    world
        .unreadable
        .insert("wasi.worker-00".to_owned(), "status".to_owned());
    world.settle();
    assert_eq!(world.permits(), Vec::<&str>::new());
    assert_eq!(world.runtimes["wasi"].status.as_ref().unwrap().permitted, ["worker-00"]);
}

#[test]
fn a_daemon_set_that_somebody_changed_is_put_right_once() {
    let mut world = World::with_workers(1);
    world.settle();
    let agents = world.agents.get_mut("wasi").unwrap();
    agents.spec.as_mut().unwrap().template.spec.as_mut().unwrap().host_pid = Some(false);
    agents.metadata.generation = agents.metadata.generation.map(|generation| generation + 1);
    world.settle();
    let spec = world.agents["wasi"].spec.as_ref().unwrap();
    assert_eq!(spec.template.spec.as_ref().unwrap().host_pid, Some(true));
    assert_eq!(world.reconcile("wasi"), Vec::<&str>::new());
}

#[test]
fn the_agents_pod_has_one_capability_one_folder_of_the_host_and_no_privilege() {
    let mut world = World::with_workers(1);
    world.settle();
    let spec = world.agents["wasi"]
        .spec
        .as_ref()
        .unwrap()
        .template
        .spec
        .clone()
        .unwrap();
    let folders: Vec<&str> = spec
        .volumes
        .iter()
        .flatten()
        .filter_map(|volume| volume.host_path.as_ref())
        .map(|host_path| host_path.path.as_str())
        .collect();
    assert_eq!(folders, ["/opt"]);
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let context = container.security_context.as_ref().unwrap();
        let capabilities = context.capabilities.as_ref().unwrap();
        assert_eq!(context.privileged, Some(false), "{}", container.name);
        assert_eq!(context.allow_privilege_escalation, Some(false), "{}", container.name);
        assert_eq!(context.read_only_root_filesystem, Some(true), "{}", container.name);
        assert_eq!(
            capabilities.drop.as_deref(),
            Some(&["ALL".to_owned()][..]),
            "{}",
            container.name
        );
        let added = if container.name == "agent" {
            Some(vec!["SYS_PTRACE".to_owned()])
        } else {
            None
        };
        assert_eq!(capabilities.add, added, "{}", container.name);
    }
    assert_eq!(spec.automount_service_account_token, Some(false));
}

#[test]
fn a_long_node_name_is_shortened_to_a_name_of_its_own() {
    let long = "n".repeat(250);
    let other = format!("{}m", "n".repeat(249));
    let name = super::super::nodes::wasm_node_name("wasi", &long);
    assert_eq!(name.len(), 253);
    assert_ne!(name, super::super::nodes::wasm_node_name("wasi", &other));
    assert_eq!(super::super::nodes::wasm_node_name("wasi", "node"), "wasi.node");
}
