//! What a restart of containerd would end is known before, and then it is not restarted.

use std::fs;

use kubewasi_controller::node::host::{Host, HostError};
use kubewasi_controller::node::restart::refuse;

use crate::containerd::Node;
use crate::on_every_containerd;

on_every_containerd! {
    async fn a_container_that_a_restart_would_end_is_named_and_refuses_it(node) {
        let (kept, moved) = (node.start_native("kept"), node.start_native("moved"));
        assert_eq!(refusal(node).await, None);

        // As systemd does with sandboxes, where cgroups are those of version 1.
        leave_devices_cgroup(moved.pid);
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

async fn refusal(node: &Node) -> Option<String> {
    match refuse(&Host::itself(), &node.running().await).await {
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
