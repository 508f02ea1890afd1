//! AppArmor: a guest is confined by the profile that its pod names. On machines without AppArmor these tests fail, so they
//! are asked for by name: hack/test-cgroup2 runs them in its virtual machine.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::command::Finished;
use crate::container::{Run, root_folder, spec};
use crate::containerd::Node;
use crate::guests::Probe;

/// A profile that allows all that a guest does, except to write below `/denied`.
struct Profile {
    name: String,
    text: String,
}

impl Profile {
    #[track_caller]
    fn load(node: &Node) -> Profile {
        let name = format!("{}-profile", node.namespace);
        let text = format!(
            "profile {name} flags=(attach_disconnected) {{\n  file,\n  capability,\n  network,\n  signal,\n  unix,\n  \
             deny /denied/** wl,\n}}\n"
        );
        let profile = Profile { name, text };
        profile.parser("--replace");
        profile
    }

    #[track_caller]
    fn parser(&self, act: &str) {
        let mut parser = Command::new("apparmor_parser")
            .args([act, "--skip-cache"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        parser.stdin.take().unwrap().write_all(self.text.as_bytes()).unwrap();
        assert!(parser.wait().unwrap().success(), "apparmor_parser {act}");
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        self.parser("--remove");
    }
}

fn confined<'a>(node: &'a Node, args: &[&str], profile: &str, edit: impl FnOnce(&mut Value)) -> Run<'a> {
    let root = root_folder(
        node,
        &[
            ("probe.wasm", &Probe::P1.bytes()),
            ("denied/old", b"old"),
            ("allowed/old", b"old"),
        ],
    );
    let mut spec = spec(node, &root, &[&["/probe.wasm"], args].concat());
    spec["process"]["apparmorProfile"] = profile.into();
    edit(&mut spec);
    Run::of_spec(node, &spec)
}

on_newest_containerd! {
    #[ignore = "needs a kernel with AppArmor"]
    fn a_guest_is_confined_by_the_profile_of_its_pod(node) {
        let profile = Profile::load(node);
        let (id, pid) = confined(node, &["idle"], &profile.name, |_| ()).detach();
        let label = fs::read_to_string(format!("/proc/{pid}/attr/apparmor/current")).unwrap();
        assert_eq!(label.trim(), format!("{} (enforce)", profile.name));
        node.remove(&id);

        let run = |args: &[&str]| -> Finished { confined(node, args, &profile.name, |_| ()).finish() };
        run(&["write", "/allowed/new", "x"]).ok();
        run(&["write", "/denied/new", "x"]).expect_code(1).expect_error(&["probe write: Permission denied"]);
        assert_eq!(run(&["read", "/denied/old"]).ok().stdout, "old");
    }

    #[ignore = "needs a kernel with AppArmor"]
    fn a_guest_of_another_user_without_capabilities_is_confined_too(node) {
        let profile = Profile::load(node);
        let (id, pid) = confined(node, &["idle"], &profile.name, |spec| {
            spec["process"]["user"] = serde_json::json!({"uid": 1000, "gid": 1000});
            spec["process"]["capabilities"] = serde_json::json!({});
        }).detach();
        let label = fs::read_to_string(format!("/proc/{pid}/attr/apparmor/current")).unwrap();
        assert_eq!(label.trim(), format!("{} (enforce)", profile.name));
        node.remove(&id);
    }

    #[ignore = "needs a kernel with AppArmor"]
    fn a_profile_that_is_not_loaded_is_refused_by_name(node) {
        confined(node, &["say", "x"], "no-such-profile", |_| ()).fail()
            .expect_refusal(&["process.apparmorProfile", "no-such-profile", "not loaded"]);
    }
}
