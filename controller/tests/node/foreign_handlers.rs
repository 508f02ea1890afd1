//! A handler that somebody else has written is known before anything is touched, wherever containerd has it from.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::containerd::{Node, Version};
use crate::lifecycle::{Ended, expect_bytes, install, uninstall};
use crate::on_every_containerd;

const SPIN: &str = "runtime_type = \"io.containerd.spin.v2\"\n";
const V2: &str = "io.containerd.grpc.v1.cri";
const V3: &str = "io.containerd.cri.v1.runtime";

/// The files below a directory, with what they have.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap().flatten();
    entries
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "toml"))
        .map(|entry| (entry.path(), fs::read(entry.path()).unwrap()))
        .collect()
}

#[tokio::test]
async fn a_handler_in_a_file_that_an_import_imports_is_somebody_elses() {
    Node::with(Version::V2_4, async |node: &Node| {
        let more = node.folder.join("more");
        fs::create_dir(&more).unwrap();
        fs::write(node.folder.join("a.toml"), "imports = [\"more/*.toml\"]\n").unwrap();
        let theirs = more.join("theirs.toml");
        fs::write(
            &theirs,
            format!("version = 3\n[plugins.\"{V3}\".containerd.runtimes.wasi]\n{SPIN}"),
        )
        .unwrap();
        fs::write(node.config(), format!("imports = [\"a.toml\"]\n{}", node.config_text())).unwrap();
        taken(node, &theirs).await;
    })
    .await;
}

#[tokio::test]
async fn a_handler_in_a_table_of_another_format_is_somebody_elses() {
    // The root's version, the file with the handler, and the plugin whose table it is.
    for (root, import, plugin) in [(2, None, V3), (2, Some(3), V3), (3, Some(2), V2)] {
        Node::with(Version::V2_4, async |node: &Node| {
            let mut text = node.config_text();
            if root == 2 {
                text = as_version_2(&text);
            }
            let table = format!("[plugins.\"{plugin}\".containerd.runtimes.wasi]\n{SPIN}");
            let theirs = match import {
                None => {
                    text += &table;
                    node.config()
                }
                Some(version) => {
                    let folder = node.folder.join("conf.d");
                    fs::create_dir(&folder).unwrap();
                    text = format!("imports = [\"conf.d/*.toml\"]\n{text}");
                    fs::write(folder.join("spin.toml"), format!("version = {version}\n{table}")).unwrap();
                    folder.join("spin.toml")
                }
            };
            fs::write(node.config(), text).unwrap();
            taken(node, &theirs).await;
        })
        .await;
    }
}

/// Expects the installation to be refused with the file that has the handler, and nothing to be touched.
async fn taken(node: &Node, theirs: &Path) {
    node.restart().await.unwrap();
    assert_eq!(node.handlers().await, ["runc", "wasi"]);
    let before = files(&node.folder);
    let ended = install(node).await;
    let said = ended.refused("HandlerTaken");
    assert!(said.contains(&theirs.display().to_string()), "{said}");
    assert_eq!(files(&node.folder), before);
    let left = fs::read_dir(theirs.parent().unwrap()).unwrap();
    assert!(
        !left
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().contains("kubewasi"))
    );
}

/// The node's own file in format version 2, which containerd 2.x migrates.
pub fn as_version_2(text: &str) -> String {
    text.replace("version = 3", "version = 2")
        .replace(V3, V2)
        .replace("bin_dirs = [", "bin_dir = ")
        .replace("\"]\n  conf_dir", "\"\n  conf_dir")
}

on_every_containerd! {
    async fn another_handler_whose_name_begins_with_ours_and_a_dot_stays_theirs(node) {
        let (_, plugin) = node.version.format();
        let runc = "runtime_type = \"io.containerd.runc.v2\"\n";
        let mut text = node.config_text();
        if node.version != Version::V2_4 {
            text += &format!("[plugins.\"{plugin}\".containerd.runtimes.runc]\n{runc}");
        }
        text += &format!("[plugins.\"{plugin}\".containerd.runtimes.\"wasi.x\"]\n{runc}");
        fs::write(node.config(), &text).unwrap();
        node.restart().await.unwrap();
        assert_eq!(install(node).await, Ended::Done);
        assert_eq!(node.handlers().await, ["runc", "wasi", "wasi.x"]);
        assert_eq!(uninstall(node).await, Ended::Done);
        assert_eq!(node.handlers().await, ["runc", "wasi.x"]);
        expect_bytes(&[(node.config(), text.into_bytes())], "wasi.x");
    }

    async fn a_table_that_somebody_wrote_by_hand_stays_whatever_it_says(node) {
        let (_, plugin) = node.version.format();
        let text = format!(
            "{}[plugins.\"{plugin}\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\
             [plugins.\"{plugin}\".containerd.runtimes.wasi]\nruntime_type = \"io.containerd.wasi.v1\"\nruntime_path = {:?}\n\
             pod_annotations = [\"kubewasi.dev/*\"]\ncontainer_annotations = [\"kubewasi.dev/*\"]\n",
            node.config_text(),
            node.layout.stable().display().to_string()
        );
        fs::write(node.config(), &text).unwrap();
        node.restart().await.unwrap();
        let ended = install(node).await;
        let said = ended.refused("HandlerTaken");
        assert!(said.contains(&node.config().display().to_string()), "{said}");
        let ended = uninstall(node).await;
        let said = ended.refused("HandlerTaken");
        assert!(said.contains(&node.config().display().to_string()), "{said}");
        expect_bytes(&[(node.config(), text.into_bytes())], "by hand");
        assert_eq!(node.handlers().await, ["runc", "wasi"]);
    }
}

/// AKS writes the tables of format 3 into a root of format 2, and has no directory for other files.
#[tokio::test]
async fn our_table_goes_where_a_version_2_root_of_containerd_2_has_its_runtimes() {
    Node::with(Version::V2_4, async |node: &Node| {
        let text = format!(
            "{}[plugins.\"{V3}\".containerd]\ndefault_runtime_name = \"runc\"\n\
             [plugins.\"{V3}\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\
             [plugins.\"{V3}\".containerd.runtimes.runc.options]\nBinaryName = \"/usr/bin/runc\"\n",
            as_version_2(&node.config_text())
        );
        fs::write(node.config(), &text).unwrap();
        node.restart().await.unwrap();
        assert_eq!(install(node).await, Ended::Done);
        assert_eq!(node.handlers().await, ["runc", "wasi"]);
        assert_eq!(uninstall(node).await, Ended::Done);
        expect_bytes(
            &[(node.config(), text.into_bytes())],
            "version 2 with tables of version 3",
        );
    })
    .await;
}
