//! What a restart of containerd would end is known before, and then it is not restarted.

use std::fs;
use std::time::Duration;

use kubewasi_controller::api::wasm_node::Step;
use kubewasi_controller::node::host::{Containerd, Host, HostError};
use kubewasi_controller::node::restart::refuse;
use kubewasi_controller::node::work::StepError;
use serde_json::json;

use crate::containerd::{Node, Version, permitted};
use crate::on_every_containerd;
use crate::steps::{plan, step};

on_every_containerd! {
    async fn a_container_that_a_restart_would_end_is_named_and_refuses_it(node) {
        let (kept, moved) = (node.start_native("kept"), node.start_native("moved"));
        assert_eq!(refusal(node).await, None);

        // As systemd does with sandboxes, where cgroups are those of version 1.
        leave_devices_cgroup(moved.pid);
        let ending = node.start_native("ending");
        leave_devices_cgroup(ending.pid);
        let meanwhile = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            node.end_native(&ending);
        };
        let (refused, ()) = tokio::join!(refusal(node), meanwhile);
        let refused = refused.unwrap_or_default();
        assert!(!refused.contains(&ending.id), "it was ending: {refused}");
        let is_lost = node.version != Version::V1_6;
        let refused = refusal(node).await.unwrap_or_default();
        assert_eq!(refused.contains(&format!("would end them: default/{};", moved.id)), is_lost, "{refused}");

        // What is refused would do harm, and what is not does none.
        node.restart().await.unwrap();
        node.health().await;
        let left = node.tasks();
        assert!(left.contains(&kept.id), "{left}");
        assert_eq!(left.contains(&moved.id), !is_lost, "{left}");
        node.end_native(&kept);
        node.end_native(&moved);
    }
}

/// A unit that was changed since the installation: nothing that asks for a restart has looked at it since.
#[tokio::test]
async fn a_unit_whose_restart_would_end_pods_is_not_restarted_to_uninstall_either() {
    Node::with(Version::V2_4, async |node: &Node| {
        node.install().await;
        let installed = node.config_text();
        let mut containerd = node.running().await;
        containerd.unit.kill_mode = "control-group".into();
        let planned = plan(node, &containerd, json!({"state": "Removed"})).await;
        assert!(planned.has(Step::RestartContainerd));
        assert!(
            refusal_of(&containerd)
                .await
                .unwrap_or_default()
                .contains("KillMode=control-group")
        );

        // A permit that came before the unit was changed.
        let journal = permitted(node, planned);
        let refused = step(node, &containerd, Step::RestartContainerd, &journal)
            .await
            .unwrap_err();
        assert!(matches!(refused, StepError::Refused(_)), "{refused}");
        assert!(!node.layout.order().exists());
        assert_eq!(node.config_text(), installed);
    })
    .await;
}

#[tokio::test]
async fn a_restart_that_is_somebody_elses_is_asked_for_and_the_plan_goes_on_after_it() {
    Node::with(Version::V2_4, async |node: &Node| {
        // The configuration is written, and containerd does not know of it.
        let order = node.install_order().await;
        fs::write(node.config(), order.change.unwrap().edits[0].new.as_ref().unwrap()).unwrap();
        let containerd = node.running().await;
        let planned = plan(node, &containerd, json!({"containerdRestart": "Never"})).await;
        assert!(!planned.has(Step::RestartContainerd) && planned.has(Step::Prove));
        let journal = permitted(node, planned);
        let waits = step(node, &containerd, Step::Prove, &journal).await.unwrap_err();
        assert_eq!(
            (waits.waits(), waits.asks().map(|asked| asked.reason)),
            (true, Some("AwaitsRestart")),
            "{waits}"
        );

        node.restart().await.unwrap();
        node.health().await;
        step(node, &containerd, Step::Prove, &journal).await.unwrap();
    })
    .await;
}

async fn refusal(node: &Node) -> Option<String> {
    refusal_of(&node.running().await).await
}

async fn refusal_of(containerd: &Containerd) -> Option<String> {
    match refuse(&Host::itself(), containerd).await {
        Ok(()) => None,
        Err(HostError::Refused(refusal)) => {
            assert_eq!(refusal.reason, "RestartEndsPods");
            Some(refusal.message)
        }
        Err(error) => panic!("{error}"),
    }
}

/// Moves a process to the root of the cgroups by which runc finds it.
fn leave_devices_cgroup(pid: i32) {
    fs::write("/sys/fs/cgroup/devices/cgroup.procs", pid.to_string()).unwrap();
}
