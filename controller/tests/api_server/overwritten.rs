//! An agent and a configuration management system that want different files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use kube::Api;
use kube::api::{Patch, PatchParams};
use kubewasi_controller::api::WasmNode;
use kubewasi_testbed::binary;
use kubewasi_testbed::image::Image;
use kubewasi_testbed::script::hack;
use kubewasi_testbed::systemd_host::{CONFIG, PAUSE, SOCKET, SystemdHost};
use kubewasi_testbed::version::Version;
use serde_json::json;

use crate::agents::make_nodes;
use crate::control_plane::ControlPlane;
use crate::crds::{define, make_wasm_node, wasm_nodes};
use crate::package::agent_token;

const SHIM: &str = "containerd-shim-wasi-v1";
/// The WasmNode of the only node.
const NAME: &str = "wasi.node-a";

#[tokio::test]
async fn a_file_that_somebody_always_puts_back_has_containerd_restarted_twice_and_is_then_told_of() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    make_nodes(client, &["node-a"]).await;
    define(client).await;
    make_wasm_node(&wasm_nodes(client), "node-a").await;
    let api: Api<WasmNode> = Api::all(client.clone());
    let host = SystemdHost::start(Version::V1_7, "");
    run_pod(&host, "agent-node-a");
    let token = agent_token(client, "node-a").await;
    let mut agent = start_agent(&host, &control_plane.kubeconfig("agent", &token));

    let file = host.path(CONFIG);
    let theirs = format!("# Managed by hand.\n{}", fs::read_to_string(&file).unwrap());
    let (mut containerds, mut given) = (BTreeSet::new(), 0);
    let mut refused = async || {
        fs::write(&file, &theirs).unwrap();
        loop {
            // Whoever grants the permits: each plan that waits gets the same attempt's.
            let node = api.get(NAME).await.unwrap();
            let status = node.status.unwrap_or_default();
            containerds.insert(main_pid(&host));
            if let Some(refusal) = status.refusal.filter(|refusal| refusal.reason == "ConfigOverwritten") {
                return refusal.message;
            }
            let (held, plan) = (node.spec.permit, status.plan);
            let held = held.map(|permit| permit.plan);
            let is_working = status.phase == Some(kubewasi_controller::api::wasm_node::Phase::Working);
            if let Some(plan) = plan.filter(|plan| !is_working && held.as_ref() != Some(&plan.hash)) {
                let permit = json!({"spec": {"permit": {"plan": plan.hash, "attempt": "1"}}});
                api.patch(NAME, &PatchParams::default(), &Patch::Merge(permit))
                    .await
                    .unwrap();
                given += 1;
            }
            // As soon as the agent is through, and not in the middle of its work.
            if !is_working && status.proof.is_some() && fs::read_to_string(&file).unwrap() != theirs {
                fs::write(&file, &theirs).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let message = tokio::time::timeout(Duration::from_secs(240), refused()).await;
    let restarts = containerds.len() - 1;
    let message = message.unwrap_or_else(|_| panic!("not reported after {restarts} restarts by {given} permits"));
    assert_eq!((restarts, given), (2, 2), "{message}");
    for said in [
        CONFIG,
        "begins with \"# Managed by hand.\"",
        "last written at",
        "not restarted for it again before",
    ] {
        assert!(message.contains(said), "{message}");
    }
    drop(host);
    agent.wait().unwrap();
}

/// Runs a pod on the network of its host, with this uid.
fn run_pod(host: &SystemdHost, uid: &str) {
    let folder = host.folder();
    let pause = Image::with_files("pause", &[("pause", &fs::read("/bin/busybox").unwrap())]);
    let pause = pause.entrypoint(&["/pause", "sleep", "100000"]);
    assert_eq!(pause.name, PAUSE);
    pause.write(&folder.join("pause.tar")).unwrap();
    let pod = json!({
        "metadata": {"name": "agent", "namespace": "kubewasi", "uid": uid, "attempt": 0},
        "labels": {"io.kubernetes.pod.uid": uid},
        "linux": {"cgroup_parent": format!("/{}", folder.file_name().unwrap().display()),
                  "security_context": {"namespace_options": {"network": 2}}},
    });
    fs::write(folder.join("pod.json"), pod.to_string()).unwrap();
    let ctr = Version::V1_7.folder().join("ctr");
    let crictl = hack("cri-tools", &["crictl"]).join("crictl");
    let (ctr, crictl, folder) = (ctr.display(), crictl.display(), folder.display());
    host.wait_for("CRI", || {
        host.run(
            "sh",
            &["-c", &format!("{crictl} --runtime-endpoint unix://{SOCKET} info")],
        )
        .status
        .success()
    });
    host.sh(&format!(
        "{ctr} --namespace k8s.io images import {folder}/pause.tar && \
         {crictl} --runtime-endpoint unix://{SOCKET} runp {folder}/pod.json"
    ));
}

/// The agent as a process of the host; it ends with the host.
fn start_agent(host: &SystemdHost, kubeconfig: &Path) -> Child {
    let staging = host.folder().join("staging");
    fs::create_dir(&staging).unwrap();
    fs::copy(shim_under_test(), staging.join(SHIM)).unwrap();
    let node = binary::under_test("kubewasi-node", env!("CARGO_BIN_EXE_kubewasi-node"));
    let mut agent: Command = host.command(node);
    agent.args([
        "agent",
        "--runtime=wasi",
        "--node=node-a",
        "--pod-uid=agent-node-a",
        "--shim-image=registry/shim:1",
    ]);
    agent.arg("--staging").arg(staging).env("KUBECONFIG", kubeconfig);
    // The host's /etc is empty, and a TLS client does not start without any root certificate.
    let roots = host.folder().join("roots.pem");
    fs::copy("/etc/ssl/certs/ca-certificates.crt", &roots).unwrap();
    agent.env("SSL_CERT_FILE", roots);
    agent.spawn().unwrap()
}

fn main_pid(host: &SystemdHost) -> String {
    host.sh("systemctl --user show --value --property MainPID containerd")
        .trim()
        .to_owned()
}

/// The shim under test; cargo builds the workspace's binaries into the parent of the directory of the tests.
fn shim_under_test() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().and_then(Path::parent).unwrap().join(SHIM);
    binary::under_test(SHIM, built.to_str().unwrap())
}
