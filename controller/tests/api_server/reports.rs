//! The node agent's own part at the API server: what its token may do, and what it tells of a host that it refuses.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use kubewasi_controller::api::wasm_node::{Phase, Step};
use kubewasi_controller::api::{WasmNode, WasmNodeStatus, WasmRuntime};
use kubewasi_controller::node::agent::{Agent, Identity};
use kubewasi_controller::node::health::Health;
use kubewasi_controller::node::host::{Containerd, Host};
use kubewasi_controller::node::journal::{Journal, Lock};
use kubewasi_controller::node::layout::Layout;
use kubewasi_controller::node::systemd::Unit;
use kubewasi_testbed::binary;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::agents::{make_nodes, make_runtime, ready_nodes, wait_for};
use crate::control_plane::ControlPlane;
use crate::controller::Controller;
use crate::crds::{define, make_wasm_node, wasm_nodes};
use crate::package::{agent_token, token};

const NODES: [&str; 2] = ["node-a", "node-b"];

#[tokio::test]
async fn an_agents_token_reports_on_its_own_node_and_does_nothing_else() {
    let control_plane = ControlPlane::start().await;
    make_nodes(&control_plane.client, &NODES).await;
    make_wasm_nodes(&control_plane.client).await;
    let agent = control_plane
        .client_of(&agent_token(&control_plane.client, "node-a").await)
        .await;
    let wasm_nodes: Api<WasmNode> = Api::all(agent.clone());
    let report = Patch::Merge(json!({"status": {"phase": "Waiting"}}));
    let merge = PatchParams::default();

    assert_eq!(wasm_nodes.list(&ListParams::default()).await.unwrap().items.len(), 2);
    let own = wasm_nodes.patch_status("wasi.node-a", &merge, &report).await.unwrap();
    assert_eq!(own.status.unwrap().phase, Some(Phase::Waiting));

    let others = wasm_nodes.patch_status("wasi.node-b", &merge, &report).await;
    expect_forbidden(others, "the agent of node node-a reports on its own node only");
    let permit = Patch::Merge(json!({"spec": {"permit": {"plan": "plan", "attempt": "attempt"}}}));
    expect_forbidden(
        wasm_nodes.patch("wasi.node-a", &merge, &permit).await,
        "cannot patch resource \"wasmnodes\"",
    );
    expect_forbidden(
        wasm_nodes.delete("wasi.node-a", &DeleteParams::default()).await,
        "cannot delete resource \"wasmnodes\"",
    );
    let nodes: Api<Node> = Api::all(agent);
    let label = Patch::Merge(json!({"metadata": {"labels": {"runtime.kubewasi.dev/wasi": "ready"}}}));
    for node in NODES {
        expect_forbidden(
            nodes.patch(node, &merge, &label).await,
            "cannot patch resource \"nodes\"",
        );
    }
}

#[tokio::test]
async fn a_token_that_names_no_node_reports_on_none() {
    let control_plane = ControlPlane::start().await;
    make_nodes(&control_plane.client, &NODES).await;
    make_wasm_nodes(&control_plane.client).await;
    let unbound = token(&control_plane.client, "kubewasi-agent", None).await;
    let wasm_nodes: Api<WasmNode> = Api::all(control_plane.client_of(&unbound).await);
    let report = Patch::Merge(json!({"status": {"phase": "Waiting"}}));
    let answer = wasm_nodes
        .patch_status("wasi.node-a", &PatchParams::default(), &report)
        .await;
    expect_forbidden(answer, "the token names no node");
}

#[tokio::test]
async fn a_host_that_its_agent_refuses_is_told_of_and_stays_as_it_is() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    make_nodes(client, &NODES).await;
    let _controller = Controller::start(&control_plane, "one").await;
    make_runtime(client, json!({})).await;

    let roots = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let crio = ["run/systemd/system", "run/dbus/system_bus_socket", "run/crio/crio.sock"];
    for path in crio {
        fs::create_dir_all(roots[1].path().join(path)).unwrap();
    }
    let before = roots.each_ref().map(|root| files(root.path()));
    let mut agents = Vec::new();
    for (node, root) in NODES.iter().zip(&roots) {
        agents.push(Running::start(&control_plane, node, root.path()).await);
    }

    let runtimes: Api<WasmRuntime> = Api::all(client.clone());
    wait_for("the condition", async || {
        let status = runtimes.get("wasi").await.unwrap().status.unwrap_or_default();
        let refused: Vec<(&str, &str)> = status
            .attention
            .iter()
            .map(|node| (node.node.as_str(), node.reason.as_str()))
            .collect();
        refused == [("node-a", "NoSystemd"), ("node-b", "NotContainerd")]
            && status
                .conditions
                .iter()
                .any(|condition| condition.type_ == "Degraded" && condition.reason == "NodesRefused")
    })
    .await;
    assert!(ready_nodes(client).await.is_empty());

    // Others follow them, as after a restart of their pods, and have nothing new to say.
    let wasm_nodes: Api<WasmNode> = Api::all(client.clone());
    let reported = versions(&wasm_nodes).await;
    agents.clear();
    for (node, root) in NODES.iter().zip(&roots) {
        agents.push(Running::start(&control_plane, node, root.path()).await);
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(versions(&wasm_nodes).await, reported);

    runtimes.delete("wasi", &DeleteParams::default()).await.unwrap();
    wait_for("the end of the runtime", async || {
        runtimes.get_opt("wasi").await.unwrap().is_none()
    })
    .await;
    assert!(wasm_nodes.list(&ListParams::default()).await.unwrap().items.is_empty());
    assert_eq!(roots.each_ref().map(|root| files(root.path())), before);
}

/// A node's containerd may hang or not run: its WasmNode reports that, and no state that lasts for a moment.
#[tokio::test]
async fn a_host_whose_containerd_cannot_be_asked_is_reported_within_a_minute() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    make_nodes(client, &NODES).await;
    make_wasm_nodes(client).await;
    let wasm_nodes: Api<WasmNode> = Api::all(client.clone());
    let roots = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let sockets = roots
        .each_ref()
        .map(|root| root.path().join("run/containerd/containerd.sock"));
    for (root, socket) in roots.iter().zip(&sockets) {
        for path in ["run/systemd/system", "run/dbus/system_bus_socket", "run/containerd"] {
            fs::create_dir_all(root.path().join(path)).unwrap();
        }
        let _ = fs::remove_file(socket);
    }
    fs::write(&sockets[0], "").unwrap();
    // It takes connections, as a process does that is stopped.
    let hangs = UnixListener::bind(&sockets[1]).unwrap();
    let mut agents = Vec::new();
    for (node, root) in NODES.iter().zip(&roots) {
        agents.push(Running::start(&control_plane, node, root.path()).await);
    }
    let reason = async |node: &str| {
        let status = wasm_nodes.get(node).await.unwrap().status?;
        Some((status.phase?, status.refusal?.reason))
    };
    let refused = |reason: &str| Some((Phase::Refused, reason.to_owned()));
    wait_for("what is no socket", async || {
        reason("wasi.node-a").await == refused("ContainerdDown")
    })
    .await;
    wait_for("what does not answer", async || {
        reason("wasi.node-b").await == refused("ContainerdNotResponding")
    })
    .await;

    // As long as it is the same, it is reported once.
    let reported = versions(&wasm_nodes).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(versions(&wasm_nodes).await, reported);
    drop(hangs);
}

#[tokio::test]
async fn a_proof_of_another_boot_is_not_told_again_with_a_refusal() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    make_nodes(client, &NODES).await;
    make_wasm_nodes(client).await;
    let wasm_nodes: Api<WasmNode> = Api::all(client.clone());
    // As the agent of before the boot has left it, in its name.
    let report = json!({
        "apiVersion": "kubewasi.dev/v1alpha1",
        "kind": "WasmNode",
        "status": {"phase": "Ready", "proof": {
            "wish": "wish",
            "bootId": "another",
            "containerdStarted": "2026-01-01T00:00:00Z",
            "configHash": "config",
            "shimDigest": "",
            "shimVersion": "1",
            "provenAt": "2026-01-01T00:00:00Z",
        }},
    });
    let before = PatchParams::apply("kubewasi-node").force();
    let told = wasm_nodes
        .patch_status("wasi.node-a", &before, &Patch::Apply(report))
        .await
        .unwrap();
    assert!(told.status.unwrap().proof.is_some());

    let root = tempfile::tempdir().unwrap();
    let _agent = Running::start(&control_plane, "node-a", root.path()).await;
    let status = async || wasm_nodes.get("wasi.node-a").await.unwrap().status.unwrap();
    wait_for("the refusal", async || status().await.phase == Some(Phase::Refused)).await;
    assert_eq!(status().await.proof, None);
}

#[tokio::test]
async fn a_dry_run_is_refused_as_the_agent_is_and_reports_nothing() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    make_nodes(client, &NODES).await;
    make_wasm_nodes(client).await;
    let wasm_nodes: Api<WasmNode> = Api::all(client.clone());
    let before = versions(&wasm_nodes).await;
    let token = agent_token(client, "node-a").await;
    let kubeconfig = control_plane.kubeconfig("agent", &token);
    for (node, said) in [
        ("node-a", "the host does not run systemd"),
        ("node-c", "no WasmNode for the runtime \"wasi\" on the node \"node-c\""),
    ] {
        // Its host is the root of its first process, and whatever runs this test may have a systemd.
        let mut run = Command::new("unshare");
        run.args(["--mount", "--pid", "--fork", "--mount-proc", "sh", "-c"]);
        run.args(["mount -t tmpfs run /run && exec \"$0\" \"$@\""]);
        run.arg(binary::under_test("kubewasi-node", env!("CARGO_BIN_EXE_kubewasi-node")));
        run.args([
            "agent",
            "--dry-run",
            "--runtime=wasi",
            "--node",
            node,
            "--pod-uid=agent",
        ]);
        let output = run
            .arg("--shim-image=registry/shim:1")
            .env("KUBECONFIG", &kubeconfig)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(said), "{errors}");
    }
    assert_eq!(versions(&wasm_nodes).await, before);
}

#[tokio::test]
async fn a_plan_that_waits_is_reported_once_however_often_it_is_tried() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    make_nodes(client, &NODES).await;
    make_wasm_nodes(client).await;
    let wasm_nodes: Api<WasmNode> = Api::all(client.clone());
    let node = wasm_nodes.get("wasi.node-a").await.unwrap();
    let root = tempfile::tempdir().unwrap();
    let (mut agent, layout) = agent_of(&control_plane, "node-a", root.path()).await;

    // One step that has nothing to do, and one that another agent is in the way of.
    let journal: Journal = serde_json::from_value(json!({
        "permit": {"plan": "plan", "attempt": "1"},
        "planned": {
            "plan": {"hash": "plan", "steps": ["WriteConfig", "StageShim"]},
            "wish": "wish",
            "handler": "wasi",
            "installs": true,
            "shim": "",
            "options": "",
        },
    }))
    .unwrap();
    let _others = Lock::try_take(&layout).unwrap().unwrap();
    let mut told = Vec::new();
    for _ in 0..3 {
        let status = WasmNodeStatus::default();
        agent.work(&node, status, containerd(), journal.clone()).await.unwrap();
        let seen = wasm_nodes.get("wasi.node-a").await.unwrap();
        let status = seen.status.as_ref().unwrap();
        assert_eq!(
            (status.phase, status.step),
            (Some(Phase::Working), Some(Step::StageShim))
        );
        told.push(seen.resource_version());
    }
    assert_eq!(told[1..], [told[0].clone(), told[0].clone()]);
}

/// A containerd that no step of the test asks.
fn containerd() -> Containerd {
    let (root, config) = (tempfile::tempdir().unwrap(), Path::new("/config.toml"));
    fs::write(root.path().join("config.toml"), "version = 3").unwrap();
    let health: Health = serde_json::from_value(json!({
        "runtime_name": "containerd",
        "release": "v2.4.2",
        "runtime_ready": true,
        "network_ready": true,
        "default_runtime": "runc",
        "handlers": {},
    }))
    .unwrap();
    let configuration = Host::itself().configuration(root.path(), Path::new("/nowhere"), config, &health);
    Containerd {
        pid: 1,
        socket: "/nowhere.sock".into(),
        binary: "/nowhere".into(),
        started: 0,
        unit: Unit {
            name: "containerd.service".into(),
            kill_mode: "process".into(),
            waits_for: None,
        },
        health,
        configuration: configuration.unwrap(),
    }
}

/// The agent of a node with the token of its pod, on a host with this root.
async fn agent_of(control_plane: &ControlPlane, node: &str, root: &Path) -> (Agent, Layout) {
    let token = agent_token(&control_plane.client, node).await;
    let client = control_plane.client_of(&token).await;
    let identity = Identity {
        runtime: "wasi".to_owned(),
        node: node.to_owned(),
        pod_uid: format!("agent-{node}"),
        shim_image: "registry/shim:1".to_owned(),
        staging: root.join("staging"),
    };
    let host = Host {
        root: root.to_owned(),
        ..Host::itself()
    };
    let layout = Layout::new(&root.join("opt/kubewasi"), "wasi");
    (Agent::new(identity, host, layout.clone(), client), layout)
}

/// An agent with the token of its pod, on a host with this root; it ends with the value, in the middle of what it does.
struct Running(JoinHandle<()>);

impl Running {
    async fn start(control_plane: &ControlPlane, node: &str, root: &Path) -> Running {
        let client = control_plane
            .client_of(&agent_token(&control_plane.client, node).await)
            .await;
        let (mut agent, _) = agent_of(control_plane, node, root).await;
        Running(tokio::spawn(async move {
            agent.run(client, std::future::pending()).await;
        }))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The definitions, and a WasmNode for each node, without a controller.
async fn make_wasm_nodes(client: &Client) {
    define(client).await;
    let api = wasm_nodes(client);
    for node in NODES {
        make_wasm_node(&api, node).await;
    }
}

fn expect_forbidden<T>(answer: Result<T, kube::Error>, why: &str) {
    let Err(kube::Error::Api(status)) = answer else {
        panic!("not refused, where this was expected: {why}");
    };
    assert_eq!(status.code, 403, "{status:?}");
    assert!(status.message.contains(why), "{}", status.message);
}

async fn versions(api: &Api<WasmNode>) -> Vec<Option<String>> {
    let list = api.list(&ListParams::default()).await.unwrap();
    list.iter().map(ResourceExt::resource_version).collect()
}

/// Every path below a folder.
fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        }
        found.insert(entry.path());
    }
    found
}
