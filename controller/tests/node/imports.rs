//! Files that import each other, and themselves: containerd skips what it has loaded, and so do we.

use std::fs;
use std::os::unix::fs::symlink;

use crate::containerd::{Node, Version};
use crate::lifecycle::{Ended, expect_bytes, install, uninstall};
use crate::on_every_containerd;

/// How a root file imports itself; `$` is the node's directory.
const SPELLINGS: [(&str, &str); 5] = [
    ("by its path, with conf.d", r#"["$/config.toml", "$/conf.d/*.toml"]"#),
    ("by a relative path", r#"["./config.toml"]"#),
    ("by a symlinked directory", r#"["$/link/config.toml"]"#),
    ("by a pattern over its own directory", r#"["$/*.toml"]"#),
    ("by a file that imports it again", r#"["$/mutual.toml"]"#),
];

on_every_containerd! {
    async fn a_root_that_imports_itself_is_installed_and_comes_back(node) {
        let plain = node.config_text();
        fs::create_dir(node.folder.join("conf.d")).unwrap();
        symlink(".", node.folder.join("link")).unwrap();
        let directory = node.folder.display().to_string();
        for (name, imports) in SPELLINGS {
            if name.contains("mutual") || name.contains("again") {
                let back = format!("imports = [\"{directory}/config.toml\"]\n[debug]\nformat = \"text\"\n");
                fs::write(node.folder.join("mutual.toml"), back).unwrap();
            }
            let text = format!("imports = {}\n{plain}", imports.replace('$', &directory));
            fs::write(node.config(), &text).unwrap();
            node.restart().await.unwrap();
            assert_eq!(node.handlers().await, ["runc"], "{name}");
            assert_eq!(install(node).await, Ended::Done, "{name}");
            assert_eq!(node.handlers().await, ["runc", "wasi"], "{name}");
            assert_eq!(uninstall(node).await, Ended::Done, "{name}");
            assert_eq!(node.handlers().await, ["runc"], "{name}");
            expect_bytes(&[(node.config(), text.into_bytes())], name);
            assert_eq!(fs::read_dir(node.folder.join("conf.d")).unwrap().count(), 0, "{name}");
            let _ = fs::remove_file(node.folder.join("mutual.toml"));
        }
    }
}

/// What `containerd config dump > config.toml` leaves behind on 1.x lists itself.
#[tokio::test]
async fn a_root_that_is_a_dump_is_installed_and_comes_back() {
    for version in [Version::V1_6, Version::V1_7, Version::V2_4] {
        Node::with(version, async |node: &Node| {
            let dump = node.dump();
            fs::write(node.config(), &dump).unwrap();
            node.restart().await.unwrap();
            assert_eq!(install(node).await, Ended::Done);
            assert_eq!(node.handlers().await, ["runc", "wasi"]);
            assert_eq!(uninstall(node).await, Ended::Done);
            expect_bytes(&[(node.config(), dump.into_bytes())], "a dump");
        })
        .await;
    }
}

/// A file that is imported by an imported one is loaded like any other.
#[tokio::test]
async fn a_file_imported_by_an_import_is_followed() {
    Node::with(Version::V2_4, async |node: &Node| {
        let more = node.folder.join("more");
        fs::create_dir(&more).unwrap();
        fs::write(node.folder.join("a.toml"), "imports = [\"more/*.toml\"]\n").unwrap();
        fs::write(more.join("b.toml"), "[debug]\nformat = \"text\"\n").unwrap();
        let text = format!("imports = [\"a.toml\"]\n{}", node.config_text());
        fs::write(node.config(), &text).unwrap();
        node.restart().await.unwrap();
        assert_eq!(install(node).await, Ended::Done);
        assert_eq!(uninstall(node).await, Ended::Done);
        expect_bytes(&[(node.config(), text.into_bytes())], "nested imports");
    })
    .await;
}
