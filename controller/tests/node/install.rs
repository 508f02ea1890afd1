//! A handler comes and goes, and everything else stays.

use std::fs;

use kubewasi_controller::node::smoke::{self, SmokeError};
use kubewasi_controller::node::transaction::Progress;

use crate::containerd::{Node, Version};
use crate::on_every_containerd;

on_every_containerd! {
    async fn the_handler_is_loaded_beside_runc_and_runs_wasm_and_uninstalling_gives_the_bytes_back(node) {
        let before = node.config_text();
        let order = node.install_order().await;
        assert_eq!(node.transact(&order).await, Progress::Committed);
        assert_eq!(node.handlers().await, ["runc", "wasi"]);
        smoke::run(&node.socket(), &node.layout, &node.health().await, "wasi").await.unwrap();
        assert_eq!(node.configuration().await.install(&node.handler).await.unwrap(), None);
        node.forget();

        let order = node.uninstall_order().await;
        assert_eq!(node.transact(&order).await, Progress::Committed);
        assert_eq!(node.handlers().await, ["runc"]);
        assert_eq!(node.config_text(), before);
        let gone = smoke::run(&node.socket(), &node.layout, &node.health().await, "wasi").await;
        assert!(matches!(gone, Err(SmokeError::NotListed(_))), "{gone:?}");
        let files: Vec<_> = fs::read_dir(&node.folder).unwrap().flatten().map(|entry| entry.file_name()).collect();
        let hidden: Vec<_> = files.iter().filter(|name| name.to_string_lossy().starts_with('.')).collect();
        assert!(hidden.is_empty(), "candidates are left: {hidden:?}");
    }

    async fn a_pods_annotations_and_the_shims_path_are_in_the_running_configuration(node) {
        let order = node.install_order().await;
        assert_eq!(node.transact(&order).await, Progress::Committed);
        let health = node.health().await;
        let entry = &health.handlers["wasi"];
        assert_eq!(entry["runtimePath"].as_str(), node.layout.stable().to_str());
        for kind in ["PodAnnotations", "ContainerAnnotations"] {
            assert_eq!(entry[kind][0], "kubewasi.dev/*", "{entry}");
        }
    }

    async fn a_shim_that_does_not_run_is_no_proof(node) {
        let order = node.install_order().await;
        assert_eq!(node.transact(&order).await, Progress::Committed);
        fs::remove_file(node.layout.stable()).unwrap();
        std::os::unix::fs::symlink("/bin/false", node.layout.stable()).unwrap();
        let failed = smoke::run(&node.socket(), &node.layout, &node.health().await, "wasi").await;
        assert!(matches!(failed, Err(SmokeError::Call { act: "create", .. })), "{failed:?}");
    }
}

#[tokio::test]
async fn containerd_2_reads_our_file_from_a_folder_that_its_root_imports() {
    Node::with(Version::V2_4, async |node: &Node| {
        let folder = node.folder.join("conf.d");
        fs::create_dir(&folder).unwrap();
        let theirs = "version = 3\n[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc]\n\
            runtime_type = \"io.containerd.runc.v2\"\n[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc.options]\n\
            SystemdCgroup = false\n";
        fs::write(folder.join("10-theirs.toml"), theirs).unwrap();
        let root = format!("imports = [\"{}/*.toml\"]\n{}", folder.display(), node.config_text());
        fs::write(node.config(), &root).unwrap();
        node.restart().await.unwrap();
        let order = node.install_order().await;
        assert_eq!(order.change.as_ref().unwrap().edits[0].file, folder.join("90-kubewasi-default.toml"));
        assert_eq!(node.transact(&order).await, Progress::Committed);
        assert_eq!(node.handlers().await, ["runc", "wasi"]);
        assert_eq!(node.config_text(), root);
        smoke::run(&node.socket(), &node.layout, &node.health().await, "wasi").await.unwrap();
        node.forget();
        let order = node.uninstall_order().await;
        assert_eq!(node.transact(&order).await, Progress::Committed);
        assert_eq!(node.handlers().await, ["runc"]);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    })
    .await;
}
