//! Exec and attach as the kubelet does them: by CRI, over its streaming server.

use std::time::Duration;

use serde_json::json;

use crate::command::{Running, eventually};
use crate::containerd::Node;
use crate::cri::{Pod, crictl, crictl_command, exit_code, prepare, with_edited_pod};
use crate::exec::image;

/// A pod with a container that can be typed to, `once` or again and again.
fn with_typed(node: &mut Node, once: bool, command: &[&str], check: impl FnOnce(&Node, &str)) {
    prepare(node);
    let image = image();
    node.import_into(&image, "k8s.io").ok();
    let edit = |pod: &mut Pod| {
        pod.container["stdin"] = json!(true);
        pod.container["stdin_once"] = json!(once);
    };
    with_edited_pod(node, &image.name, command, edit, |id, _| check(node, id));
}

/// Attaches, types a line and returns the client once the line has come back.
fn attach(node: &Node, id: &str, line: &str) -> Running {
    let mut client = Running::start(&mut crictl_command(node, &["attach", "-i", id]));
    std::thread::sleep(Duration::from_millis(500));
    client.feed(line.as_bytes());
    client
}

on_every_containerd! {
    fn an_exec_by_cri_has_output_input_and_a_code(node) {
        with_typed(node, false, &["/probe.wasm", "idle"], |node, id| {
            for how in [&["exec", "--sync", id][..], &["exec", id]] {
                let run = |args: &[&str]| crictl(node, &[how, args].concat());
                // `crictl exec --sync` adds lines of its own.
                assert_eq!(run(&["/probe.wasm", "say", "wasm"]).ok().stdout.trim_end(), "wasm", "{how:?}");
                assert_eq!(run(&["/bin/sh", "-c", "echo native"]).ok().stdout.trim_end(), "native", "{how:?}");
                let failed = run(&["/bin/sh", "-c", "exit 7"]);
                assert!(failed.code != Some(0) && failed.stderr.contains('7'), "{failed}");
                run(&["missing"]).expect_refusal(&["cannot be executed", "/probe.wasm"]);
            }
            let mut typed = Running::start(&mut crictl_command(node, &["exec", "-i", id, "/probe.wasm", "cat"]));
            typed.feed(b"typed\n");
            assert_eq!(typed.wait().ok().stdout, "typed\n");
        });
    }

    fn a_container_is_attached_to_again_and_reads_on(node) {
        with_typed(node, false, &["/probe.wasm", "cat"], |node, id| {
            for line in ["one\n", "two\n"] {
                let mut client = attach(node, id, line);
                eventually("the line is in the log", Duration::from_secs(10), || {
                    crictl(node, &["logs", id]).stdout.contains(line).then_some(())
                });
                client.kill();
                assert_eq!(client.wait().stdout, line);
            }
            crictl(node, &["stop", "--timeout", "1", id]).ok();
            assert_eq!(exit_code(node, id), 143);
        });
    }

    fn the_end_of_input_ends_a_container_that_is_typed_to_once(node) {
        with_typed(node, true, &["/probe.wasm", "cat"], |node, id| {
            let client = attach(node, id, "all there is\n");
            assert_eq!(client.wait().stdout, "all there is\n");
            assert_eq!(exit_code(node, id), 0);
        });
    }
}
