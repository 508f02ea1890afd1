//! What others make of a file after the installation: every byte that is not ours stays.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use rustix::fs::{XattrFlags, getxattr, setxattr};

use crate::containerd::{Node, Version};
use crate::lifecycle::{Ended, expect_bytes, install, uninstall};
use crate::on_every_containerd;

/// A change of bytes.
type Change = fn(&str) -> String;

/// How a file is written, and how somebody changes it after the installation.
const FORMS: [(&str, Change, Change); 6] = [
    (
        "line ends of Windows",
        |text| text.replace('\n', "\r\n"),
        |text| format!("{text}# theirs\r\n"),
    ),
    (
        "quotes of all kinds in headers",
        |text| text.to_owned() + &quoted(text),
        |text| text.replace("# A node's own file.", "# A node's own file, edited."),
    ),
    (
        "no line end at the end, and an edit above",
        |text| text.trim_end().to_owned(),
        |text| text.replace("# A node's own file.", "# A node's own file, edited."),
    ),
    (
        "no line end at the end, and a line below",
        |text| text.trim_end().to_owned(),
        |text| format!("{text}\n# theirs\n"),
    ),
    (
        "tabs, and a table below ours",
        |text| text.replace("\n  ", "\n\t\t"),
        |text| format!("{text}\n[timeouts]\n\t\"io.containerd.timeout.task.state\" = '3s' # theirs\n"),
    ),
    (
        "comments between tables",
        |text| text.replace("\n[", "\n\n# a comment\n\n["),
        |text| format!("# first\n{text}"),
    ),
];

/// A header in the way of EKS's own file.
fn quoted(text: &str) -> String {
    match text.contains("version = 2") {
        true => "[plugins.\"io.containerd.grpc.v1.cri\".\"containerd\".'runtimes'.\"runc\"]\n\
            runtime_type = \"io.containerd.runc.v2\"\n"
            .to_owned(),
        false => "[plugins.\"io.containerd.cri.v1.runtime\".\"containerd\".'runtimes'.\"runc\"]\n\
            runtime_type = \"io.containerd.runc.v2\"\n"
            .to_owned(),
    }
}

on_every_containerd! {
    async fn a_file_that_was_edited_since_keeps_every_byte_that_is_not_ours(node) {
        let plain = node.config_text();
        for (name, form, edit) in FORMS {
            // The last file's handlers are gone.
            let text = form(&plain);
            fs::write(node.config(), &text).unwrap();
            node.restart().await.unwrap();
            assert_eq!(install(node).await, Ended::Done, "{name}");
            let installed = node.config_text();
            fs::write(node.config(), edit(&installed)).unwrap();
            assert_eq!(uninstall(node).await, Ended::Done, "{name}");
            let theirs = match name {
                "no line end at the end, and a line below" => format!("{text}\n\n# theirs\n"),
                _ => edit(&text),
            };
            expect_bytes(&[(node.config(), theirs.into_bytes())], name);
            assert_eq!(node.handlers().await, ["runc"], "{name}");
        }
    }

    async fn a_file_keeps_its_owner_group_mode_and_extended_attributes(node) {
        let file = node.config();
        chown(&file, Some(0), Some(1000)).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        setxattr(&file, "trusted.note", b"theirs", XattrFlags::empty()).unwrap();
        let expect = |when: &str| {
            let found = fs::metadata(&file).unwrap();
            assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (0, 1000, 0o640), "{when}");
            let mut note = [0; 16];
            let length = getxattr(&file, "trusted.note", &mut note[..]).unwrap();
            assert_eq!(&note[..length], b"theirs", "{when}");
        };
        assert_eq!(install(node).await, Ended::Done);
        expect("installed");
        assert_eq!(uninstall(node).await, Ended::Done);
        expect("uninstalled");
    }
}

/// containerd 2.x does not start with one.
#[tokio::test]
async fn a_byte_order_mark_stays() {
    for version in [Version::V1_6, Version::V1_7] {
        Node::with(version, async |node: &Node| {
            let text = format!("\u{feff}{}", node.config_text());
            fs::write(node.config(), &text).unwrap();
            node.restart().await.unwrap();
            assert_eq!(install(node).await, Ended::Done);
            let edited = format!("{}# theirs\n", node.config_text());
            fs::write(node.config(), edited).unwrap();
            assert_eq!(uninstall(node).await, Ended::Done);
            expect_bytes(
                &[(node.config(), format!("{text}# theirs\n").into_bytes())],
                "a byte order mark",
            );
        })
        .await;
    }
}

#[tokio::test]
async fn a_line_that_somebody_adds_to_our_own_file_is_kept_or_named_and_the_shim_is_still_upgraded() {
    Node::with(Version::V2_4, async |node: &Node| {
        let folder = node.folder.join("conf.d");
        fs::create_dir(&folder).unwrap();
        fs::write(
            node.config(),
            format!("imports = [\"conf.d/*.toml\"]\n{}", node.config_text()),
        )
        .unwrap();
        node.restart().await.unwrap();
        assert_eq!(install(node).await, Ended::Done);
        let ours = folder.join("90-kubewasi-default.toml");
        let written = fs::read_to_string(&ours).unwrap();

        // A table of their own stays when ours goes.
        let table = "[debug]\nformat = \"text\"\n";
        fs::write(&ours, format!("{written}{table}")).unwrap();
        assert_eq!(install(node).await, Ended::Done, "there is nothing to do");
        assert_eq!(uninstall(node).await, Ended::Done);
        let left = fs::read_to_string(&ours).unwrap();
        assert!(left.ends_with(table) && !left.contains("kubewasi"), "{left}");
        assert_eq!(node.handlers().await, ["runc"]);

        // A key in our table has no place without it.
        fs::remove_file(&ours).unwrap();
        assert_eq!(install(node).await, Ended::Done);
        let line = "privileged_without_host_devices = true";
        fs::write(&ours, format!("{}{line}\n", fs::read_to_string(&ours).unwrap())).unwrap();
        node.restart().await.unwrap();
        assert_eq!(install(node).await, Ended::Done, "there is nothing to do");
        let ended = uninstall(node).await;
        let said = ended.refused("ConfigEdited");
        assert!(
            said.contains(&ours.display().to_string()) && said.contains(line),
            "{said}"
        );
    })
    .await;
}
