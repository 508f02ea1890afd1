//! What `kubewasi-node` reports to an administrator before anything is changed: the same that the agent would do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kubewasi_controller::api::wasm_node::{Step, Wish};
use kubewasi_controller::node::check::{describe_plan, examine};
use kubewasi_controller::node::host::{Containerd, Host};
use kubewasi_controller::node::observe::{ObserveError, permissible};
use kubewasi_controller::node::plan::Planned;
use kubewasi_controller::node::transaction::Progress;
use kubewasi_testbed::binary;
use kubewasi_testbed::systemd_host::SystemdHost;
use serde_json::json;

use crate::containerd::{Node, Version};
use crate::on_every_containerd;

/// What `kubewasi-node check` says on a host, and whether it ends well.
pub fn check_on(host: &SystemdHost) -> (String, bool) {
    said(host.run(program(), &["check"]))
}

/// The same in a pod, whose first process has a parent with this command line.
pub fn check_in_pod(host: &SystemdHost, parent: &str) -> (String, bool) {
    let command = format!("{} check --pod-uid=pod", program().display());
    said(host.run_under(parent, &command))
}

/// The same in a pod with a root of its own, which has nothing in `/run`; no process of the pod has a shim as its ancestor.
pub fn check_in_pod_root(host: &SystemdHost) -> (String, bool) {
    let command = format!(
        "mount -t tmpfs pod /run && exec {} check --pod-uid=pod",
        program().display()
    );
    said(host.run("unshare", &["--mount", "sh", "-c", &command]))
}

/// Waits until nothing of a host is refused.
pub fn wait_for_check(host: &SystemdHost) {
    host.wait_for("a host that is not refused", || check_on(host).1);
}

fn program() -> PathBuf {
    binary::under_test("kubewasi-node", env!("CARGO_BIN_EXE_kubewasi-node"))
}

fn said(output: Output) -> (String, bool) {
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    (said.concat(), output.status.success())
}

/// A folder that is mounted over itself, for reading; it goes with its value.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn mount(folder: &Path) -> ReadOnly {
        let run = |arguments: &[&str]| {
            let status = Command::new("mount").args(arguments).arg(folder).status();
            assert!(status.unwrap().success(), "mount {arguments:?}");
        };
        run(&["--bind", folder.to_str().unwrap()]);
        let mounted = ReadOnly(folder.to_owned());
        run(&["-o", "remount,bind,ro"]);
        mounted
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn wish(state: &str) -> Wish {
    serde_json::from_value(json!({
        "state": state,
        "handler": "wasi",
        "shimImage": "registry/shim:1",
        "containerdRestart": "Rolling",
    }))
    .unwrap()
}

/// What the agent plans, or its reason not to.
async fn planned(node: &Node, containerd: &Containerd, state: &str) -> Result<Planned, &'static str> {
    let staging = node.folder.join("staging");
    match permissible(&Host::itself(), containerd, &node.layout, &staging, &wish(state)).await {
        Ok(planned) => Ok(planned),
        Err(ObserveError::Refused(refusal)) => Err(refusal.reason),
        Err(error) => panic!("{error}"),
    }
}

/// What `kubewasi-node check` says, and the reason of its refusal as the agent has it.
async fn checked(node: &Node, containerd: &Containerd) -> (String, Option<&'static str>) {
    let found = examine(&Host::itself(), containerd, &node.layout, "wasi").await;
    let refused = planned(node, containerd, "Installed").await.err();
    assert_eq!(found.is_good, refused.is_none(), "{}", found.text);
    (found.text, refused)
}

on_every_containerd! {
    async fn a_check_and_a_dry_run_print_what_would_be_changed_and_change_nothing(node) {
        let before = node.config_text();
        let containerd = node.running().await;
        let (text, _) = checked(node, &containerd).await;
        let would_change = format!("would change   {}\n", node.config().display());
        assert!(text.contains(&would_change) && text.ends_with("ok: nothing would be refused\n"), "{text}");

        let plan = planned(node, &containerd, "Installed").await.unwrap();
        assert!(plan.has(Step::WriteConfig) && plan.has(Step::RestartContainerd));
        let text = describe_plan(&plan);
        let stable = node.layout.stable();
        for said in ["WriteConfig, RestartContainerd, Prove", &format!("  + runtime_path = \"{}\"", stable.display())] {
            assert!(text.contains(said), "{said} is not in\n{text}");
        }
        assert!(!text.contains("\n  - "), "{text}");
        assert_eq!(node.config_text(), before);

        let order = node.install_order().await;
        assert_eq!(node.transact(&order).await, Progress::Committed);
        let (text, _) = checked(node, &node.running().await).await;
        assert!(text.contains("configuration  has the handler"), "{text}");
    }

    async fn a_unit_that_ends_pods_is_refused_by_the_check_too(node) {
        let mut containerd = node.running().await;
        containerd.unit.kill_mode = "control-group".into();
        let (text, refused) = checked(node, &containerd).await;
        assert_eq!(refused, Some("RestartEndsPods"));
        assert!(text.contains("refused, RestartEndsPods: containerd.service has KillMode=control-group"), "{text}");
    }
}

#[tokio::test]
async fn a_configuration_that_can_only_be_read_is_refused_by_the_check_too() {
    Node::with(Version::V2_4, async |node: &Node| {
        let folder = node.folder.join("conf.d");
        fs::create_dir(&folder).unwrap();
        let root = format!("imports = [\"{}/*.toml\"]\n{}", folder.display(), node.config_text());
        fs::write(node.config(), root).unwrap();
        let _read_only = ReadOnly::mount(&folder);
        let (text, refused) = checked(node, &node.running().await).await;
        assert_eq!(refused, Some("ReadOnly"));
        let said = format!(
            "verdict        refused, ReadOnly: {} is on a read-only",
            folder.display()
        );
        assert!(text.contains(&said), "{text}");
    })
    .await;
}

#[test]
fn the_program_refuses_a_host_without_systemd_and_fails() {
    // Whatever runs this test may have one.
    let mut check = Command::new("unshare");
    check.args(["--mount", "sh", "-c", "mount -t tmpfs run /run && exec \"$0\" check"]);
    check.arg(program());
    let Output { status, stdout, stderr } = check.output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert_eq!(status.code(), Some(1), "{said}{errors}");
    assert!(
        said.starts_with("verdict        refused, NoSystemd: the host does not run systemd"),
        "{said}{errors}"
    );
}
