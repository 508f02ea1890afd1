//! What an administrator reads of a configuration that is refused: pasted into a shell, it lets the installation go on.

use std::fs;
use std::path::Path;
use std::process::Command;

use kubewasi_controller::node::configuration::Configuration;
use kubewasi_controller::node::host::HostError;

use crate::containerd::{Node, Version};
use crate::lifecycle::{Ended, expect_bytes, install, uninstall};
use crate::on_every_containerd;

/// Runs what a message has in backticks, as an administrator would who has the node's containerd in PATH.
pub fn paste(node: &Node, message: &str) {
    let mut commands = message.split('`').skip(1).step_by(2).peekable();
    assert!(commands.peek().is_some(), "there is nothing to paste in: {message}");
    for command in commands {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", command])
            .env("PATH", format!("{}:/usr/bin:/bin", node.binaries().display()));
        let output = shell.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {said}");
    }
}

/// The configuration that this containerd would have with `config`.
async fn with_root(node: &Node, config: &Path) -> Result<Configuration, HostError> {
    node.configuration_of(config, &node.health().await)
}

on_every_containerd! {
    async fn a_root_without_a_version_and_without_tables_is_given_one(node) {
        for text in ["# a comment alone\n", "", "disabled_plugins = []\n", "oom_score = -999"] {
            let root = node.folder.join("bare.toml");
            fs::write(&root, text).unwrap();
            let change = with_root(node, &root).await.unwrap().install(&node.handler).await.unwrap().unwrap();
            fs::write(&root, change.edits[0].new.as_ref().unwrap()).unwrap();
            assert!(fs::read_to_string(&root).unwrap().contains("version = 2"), "{text:?}");
            let installed = with_root(node, &root).await.unwrap();
            assert_eq!(installed.install(&node.handler).await.unwrap(), None, "{text:?}");
            let back = installed.uninstall(&node.handler, &[]).await.unwrap().unwrap();
            assert_eq!(back.edits[0].new.as_deref(), Some(text));
        }
    }

    async fn a_root_of_format_1_is_installed_and_comes_back(node) {
        let directory = node.folder.display();
        let text = format!(
            "# format 1\nroot = \"{directory}/root\"\nstate = \"{directory}/state\"\n\
             disabled_plugins = [\"nri\", \"io.containerd.nri.v1.nri\"]\n[grpc]\naddress = \"{directory}/containerd.sock\"\n\
             [plugins.opt]\npath = \"{directory}/opt\"\n[plugins.cri]\nrestrict_oom_score_adj = true\ndisable_apparmor = true\n\
             [plugins.cri.cni]\nbin_dir = \"{directory}/cni\"\nconf_dir = \"{directory}/cni\"\n"
        );
        fs::write(node.config(), &text).unwrap();
        node.restart().await.unwrap();
        assert_eq!(install(node).await, Ended::Done);
        assert_eq!(node.handlers().await, ["runc", "wasi"]);
        assert_eq!(uninstall(node).await, Ended::Done);
        expect_bytes(&[(node.config(), text.into_bytes())], "format 1");
    }

    async fn runtimes_in_an_inline_table_are_refused_with_a_command_that_rewrites_them(node) {
        let (_, plugin) = node.version.format();
        let inline = format!(
            "{}[plugins.\"{plugin}\".containerd]\nruntimes = {{ runc = {{ runtime_type = \"io.containerd.runc.v2\" }} }}\n",
            node.config_text()
        );
        fs::write(node.config(), &inline).unwrap();
        node.restart().await.unwrap();
        let refused = install(node).await;
        paste(node, refused.refused("ConfigForm"));
        assert_eq!(install(node).await, Ended::Done);
        assert_eq!(node.handlers().await, ["runc", "wasi"]);
    }

    async fn the_command_that_rewrites_a_root_of_format_1_keeps_the_plugins_that_it_disables(node) {
        let root = node.folder.join("format-1.toml");
        let text = "disabled_plugins = [\"nri\", 'aufs']\n[plugins.cri.containerd]\n\
                    runtimes = { runc = { runtime_type = \"io.containerd.runc.v2\" } }\n";
        fs::write(&root, text).unwrap();
        let refused = with_root(node, &root).await.unwrap().install(&node.handler).await.unwrap_err().to_string();
        paste(node, &refused);
        let rewritten = fs::read_to_string(&root).unwrap();
        for plugin in ["nri", "io.containerd.snapshotter.v1.aufs"] {
            assert!(rewritten.contains(plugin), "{plugin} is not in {rewritten}");
        }
        with_root(node, &root).await.unwrap().install(&node.handler).await.unwrap().unwrap();
    }

    async fn runtimes_in_dotted_keys_are_no_reason_to_refuse(node) {
        let (_, plugin) = node.version.format();
        let text = format!(
            "{}[plugins.\"{plugin}\".containerd]\nruntimes.runc.runtime_type = \"io.containerd.runc.v2\"\n",
            node.config_text()
        );
        fs::write(node.config(), &text).unwrap();
        node.restart().await.unwrap();
        assert_eq!(install(node).await, Ended::Done);
        assert_eq!(uninstall(node).await, Ended::Done);
        expect_bytes(&[(node.config(), text.into_bytes())], "dotted keys");
    }

    async fn an_import_that_is_missing_and_a_cri_that_is_disabled_are_named_with_what_helps(node) {
        let plain = node.config_text();
        let missing = node.folder.join("gone/more.toml");
        fs::write(node.config(), format!("imports = [{:?}]\n{plain}", missing.display().to_string())).unwrap();
        let refused = install(node).await;
        let said = refused.refused("ConfigImports");
        assert!(said.contains(&missing.display().to_string()), "{said}");
        paste(node, said);

        let text = node.config_text();
        let plugin = "io.containerd.grpc.v1.cri";
        fs::write(node.config(), text.replace("disabled_plugins = [", &format!("disabled_plugins = [\"{plugin}\", "))).unwrap();
        let refused = install(node).await;
        let said = refused.refused("CriDisabled");
        assert!(said.contains(plugin) && said.contains(&node.config().display().to_string()), "{said}");
        paste(node, said);
        assert_eq!(install(node).await, Ended::Done);
        assert_eq!(node.handlers().await, ["runc", "wasi"]);
    }

    async fn a_containerd_without_a_configuration_is_refused_with_the_command_that_writes_one(node) {
        let root = node.folder.join("etc/containerd/config.toml");
        let Err(HostError::Refused(refusal)) = with_root(node, &root).await else { panic!("not refused") };
        assert_eq!(refusal.reason, "NoConfig");
        paste(node, &refusal.message);
        with_root(node, &root).await.unwrap().install(&node.handler).await.unwrap().unwrap();
    }

    async fn docker_s_configuration_is_refused_with_the_plugin_that_it_disables(node) {
        let root = node.folder.join("docker.toml");
        fs::write(&root, "disabled_plugins = [\"cri\"]\n").unwrap();
        let refused = with_root(node, &root).await.unwrap().install(&node.handler).await.unwrap_err().to_string();
        assert!(refused.contains("cri\" in") && refused.contains(&root.display().to_string()), "{refused}");
        paste(node, &refused);
        with_root(node, &root).await.unwrap().install(&node.handler).await.unwrap().unwrap();
    }
}

/// containerd 2.x does not start with such a file.
#[tokio::test]
async fn a_comment_that_is_not_utf_8_is_refused_with_the_command_that_recodes_it() {
    for version in [Version::V1_6, Version::V1_7] {
        Node::with(version, async |node: &Node| {
            let text = [node.config_text().as_bytes(), b"# \xe9t\xe9\n"].concat();
            fs::write(node.config(), text).unwrap();
            let refused = install(node).await;
            paste(node, refused.refused("ConfigUnreadable"));
            assert!(node.config_text().ends_with("# \u{e9}t\u{e9}\n"));
            assert_eq!(install(node).await, Ended::Done);
        })
        .await;
    }
}

#[tokio::test]
async fn a_line_in_our_table_that_is_not_ours_is_named_with_the_command_that_removes_it() {
    Node::with(Version::V2_4, async |node: &Node| {
        let text = node.config_text();
        assert_eq!(install(node).await, Ended::Done);
        fs::write(node.config(), format!("{}oom_score = -999\n", node.config_text())).unwrap();
        let refused = uninstall(node).await;
        paste(node, refused.refused("ConfigEdited"));
        assert_eq!(uninstall(node).await, Ended::Done);
        expect_bytes(&[(node.config(), text.into_bytes())], "the line that was removed");
    })
    .await;
}
