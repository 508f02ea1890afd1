//! A change that breaks containerd is taken back, and one that would break it is not made.

use std::cell::Cell;
use std::fs;

use kubewasi_controller::node::transaction::{self, Progress};

use crate::containerd::{Node, Version};
use crate::on_every_containerd;

on_every_containerd! {
    async fn a_restart_that_fails_is_rolled_back(node) {
        let before = node.config_text();
        let order = node.install_order().await;
        let first = Cell::new(true);
        let restart = async || match first.replace(false) {
            true => Err("the job failed".to_owned()),
            false => node.restart().await,
        };
        let ended = transaction::run(&order, &node.layout.progress(), restart).await.unwrap();
        let Progress::RolledBack { reason, unhealthy: None } = ended else {
            panic!("{ended:?}");
        };
        assert_eq!(reason, "containerd did not restart: the job failed");
        assert_eq!(node.config_text(), before);
    }

    async fn a_file_that_somebody_changed_since_the_plan_is_left_alone(node) {
        let order = node.install_order().await;
        let theirs = format!("{}# theirs\n", node.config_text());
        fs::write(node.config(), &theirs).unwrap();
        let Progress::Refused(reason) = node.transact(&order).await else { panic!("not refused") };
        assert!(reason.contains("somebody else changes it"), "{reason}");
        assert_eq!(node.config_text(), theirs);
    }

    async fn a_candidate_that_changes_more_than_the_handler_is_not_written(node) {
        let before = node.config_text();
        let mut order = node.install_order().await;
        let edit = &mut order.change.as_mut().unwrap().edits[0];
        edit.new = edit.new.as_ref().map(|new| new.replace("level = \"info\"", "level = \"warn\""));
        let Progress::Refused(reason) = node.transact(&order).await else { panic!("not refused") };
        assert!(reason.contains("changes more than the handler: debug.level"), "{reason}");
        assert_eq!(node.config_text(), before);
    }

    async fn a_configuration_that_containerd_dumps_but_does_not_load_is_rolled_back(node) {
        let before = node.config_text();
        let mut order = node.install_order().await;
        let edit = &mut order.change.as_mut().unwrap().edits[0];
        // `config dump` does not look for the file; containerd starts without its CRI plugin.
        let runtime_type = "runtime_type = \"io.containerd.wasi.v1\"\n";
        let broken = format!("{runtime_type}base_runtime_spec = \"/nowhere.json\"\n");
        edit.new = edit.new.as_ref().map(|new| new.replace(runtime_type, &broken));
        order.patience = 20;
        let ended = node.transact(&order).await;
        let Progress::RolledBack { reason, unhealthy: None } = ended else {
            panic!("{ended:?}");
        };
        assert!(reason.contains("was not healthy within 20 seconds"), "{reason}");
        assert_eq!(node.config_text(), before);
        assert_eq!(node.handlers().await, ["runc"]);
    }
}

/// What the copied default is for: containerd would start without CRI, and its own dump shows why.
#[tokio::test]
async fn containerd_1_without_the_copied_default_is_refused_before_anything_is_written() {
    for version in [Version::V1_6, Version::V1_7] {
        Node::with(version, async |node: &Node| {
            let mut order = node.install_order().await;
            let edit = &mut order.change.as_mut().unwrap().edits[0];
            let alone = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.wasi]\nruntime_type = \"io.containerd.wasi.v1\"\n";
            edit.new = Some(format!("{}{alone}", node.config_text()));
            let Progress::Refused(reason) = node.transact(&order).await else { panic!("not refused") };
            assert!(reason.contains("runtimes.runc"), "{reason}");
        })
        .await;
    }
}
