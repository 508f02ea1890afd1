//! A handler goes from wherever it was written, whatever has become of containerd and its files since.

use std::fs;

use crate::containerd::{Node, Version};
use crate::foreign_handlers::as_version_2;
use crate::lifecycle::{Ended, expect_bytes, install, uninstall};

#[tokio::test]
async fn a_handler_goes_also_after_an_upgrade_of_containerd() {
    for (from, to) in [
        (Version::V1_6, Version::V1_7),
        (Version::V1_6, Version::V2_4),
        (Version::V1_7, Version::V2_4),
    ] {
        Node::with(from, async |node: &Node| {
            let text = node.config_text();
            assert_eq!(install(node).await, Ended::Done);
            node.upgrade(to).await;
            assert_eq!(node.handlers().await, ["runc", "wasi"], "{from:?} to {to:?}");
            assert_eq!(
                install(node).await,
                Ended::Done,
                "{from:?} to {to:?}: there is nothing to do"
            );
            assert_eq!(uninstall(node).await, Ended::Done, "{from:?} to {to:?}");
            assert_eq!(node.handlers().await, ["runc"], "{from:?} to {to:?}");
            expect_bytes(&[(node.config(), text.into_bytes())], "upgraded");
        })
        .await;
    }
}

#[tokio::test]
async fn a_handler_goes_from_every_file_that_it_was_written_into() {
    Node::with(Version::V2_4, async |node: &Node| {
        let folder = node.folder.join("conf.d");
        fs::create_dir(&folder).unwrap();
        let plain = node.config_text();
        fs::write(node.config(), format!("imports = [\"conf.d/*.toml\"]\n{plain}")).unwrap();
        node.restart().await.unwrap();
        assert_eq!(install(node).await, Ended::Done);
        let ours = folder.join("90-kubewasi-default.toml");
        assert!(ours.exists());

        // Somebody takes the import out, so the table goes into the root file.
        fs::write(node.config(), &plain).unwrap();
        assert_eq!(install(node).await, Ended::Done);
        assert!(node.config_text().contains("kubewasi"));
        assert_eq!(uninstall(node).await, Ended::Done);
        assert!(!ours.exists(), "the file that nothing imports is left");
        expect_bytes(&[(node.config(), plain.clone().into_bytes())], "the root");

        // And when the import comes back, no handler does.
        fs::write(node.config(), format!("imports = [\"conf.d/*.toml\"]\n{plain}")).unwrap();
        node.restart().await.unwrap();
        assert_eq!(node.handlers().await, ["runc"]);
    })
    .await;
}

/// The other way: from the root file into a directory that it imports by now.
#[tokio::test]
async fn a_handler_in_the_root_file_goes_also_where_it_imports_a_directory_by_now() {
    Node::with(Version::V2_4, async |node: &Node| {
        let folder = node.folder.join("conf.d");
        let plain = as_version_2(&node.config_text());
        fs::write(node.config(), &plain).unwrap();
        node.restart().await.unwrap();
        assert_eq!(install(node).await, Ended::Done);
        fs::create_dir(&folder).unwrap();
        let import = "imports = [\"conf.d/*.toml\"]\n";
        fs::write(node.config(), format!("{import}{}", node.config_text())).unwrap();
        node.restart().await.unwrap();
        assert_eq!(install(node).await, Ended::Done, "there is nothing to do");
        assert_eq!(uninstall(node).await, Ended::Done);
        expect_bytes(&[(node.config(), format!("{import}{plain}").into_bytes())], "the root");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    })
    .await;
}
