//! How CRI pulls images, as `installation.imagePull` of a WasmRuntime has it.

use std::fs;
use std::process::Command;

use serde_json::json;

use crate::containerd::{Node, Version};
use crate::lifecycle::{Ended, install_as, install_unproven, uninstall};
use crate::on_every_containerd;

const TABLE: &str = "[plugins.\"io.containerd.cri.v1.images\"]\n";

async fn pull_locally(node: &Node) -> Ended {
    install_as(node, json!({"imagePull": "Local"})).await
}

/// Whether containerd makes a local pull of its files.
fn pulls_locally(node: &Node) -> bool {
    let dump = Command::new(node.version.folder().join("containerd"))
        .arg("--config")
        .arg(node.config())
        .args(["config", "dump"])
        .output()
        .unwrap();
    assert!(dump.status.success());
    String::from_utf8(dump.stdout)
        .unwrap()
        .contains("use_local_image_pull = true")
}

on_every_containerd! {
    async fn local_pull_comes_with_the_handler_and_goes_with_it(node) {
        let before = node.config_text();
        assert_eq!(pull_locally(node).await, Ended::Done);
        // Before 2.1 CRI pulls so without a key.
        assert_eq!(pulls_locally(node), node.version >= Version::V2_3);
        assert_eq!(uninstall(node).await, Ended::Done);
        assert_eq!(node.config_text(), before);
    }

    async fn local_pull_is_turned_on_and_off_for_a_handler_that_stays(node) {
        assert_eq!(install_unproven(node).await, Ended::Done);
        let without = node.config_text();
        assert_eq!(pull_locally(node).await, Ended::Done);
        assert_eq!(pulls_locally(node), node.version >= Version::V2_3);
        assert_eq!(install_unproven(node).await, Ended::Done);
        assert_eq!(node.config_text(), without);
        assert!(!pulls_locally(node));
    }
}

#[tokio::test]
async fn an_administrators_local_pull_stays() {
    Node::with(Version::V2_4, async |node: &Node| {
        let theirs = format!("{}{TABLE}use_local_image_pull = true # ours\n", node.config_text());
        fs::write(node.config(), &theirs).unwrap();
        assert_eq!(pull_locally(node).await, Ended::Done);
        assert_eq!(node.config_text().matches("use_local_image_pull").count(), 1);
        assert_eq!(install_unproven(node).await, Ended::Done);
        assert!(pulls_locally(node));
        assert_eq!(uninstall(node).await, Ended::Done);
        assert_eq!(node.config_text(), theirs);
    })
    .await;
}

#[tokio::test]
async fn a_local_pull_that_an_administrator_turned_off_is_refused_with_the_command_that_removes_the_line() {
    Node::with(Version::V2_4, async |node: &Node| {
        let theirs = format!("{}{TABLE}use_local_image_pull = false\n", node.config_text());
        fs::write(node.config(), &theirs).unwrap();
        let ended = pull_locally(node).await;
        let message = ended.refused("ImagePullSet");
        assert!(message.contains(&node.config().display().to_string()), "{message}");
        assert_eq!(node.config_text(), theirs);
        let advice = message.split('`').nth(1).unwrap();
        assert!(Command::new("sh").args(["-c", advice]).status().unwrap().success());
        assert_eq!(pull_locally(node).await, Ended::Done);
        assert!(pulls_locally(node));
    })
    .await;
}
