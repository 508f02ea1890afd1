//! User namespaces (`hostUsers: false`): who a guest is inside, and that it is nobody on the host.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::command::run;
use crate::container::{Run, root_folder, spec};
use crate::containerd::{Node, Version};
use crate::cri;
use crate::guests::Probe;
use crate::image_builder::Image;
use crate::pod;
use crate::sandbox::status;
use crate::server;

/// The first host id of the namespaces here, and how many.
const OUTSIDE: u32 = 300_000;
const SIZE: u32 = 65_536;

fn mapping() -> Value {
    json!([{"containerID": 0, "hostID": OUTSIDE, "size": SIZE}])
}

/// Gives a spec a user namespace of its own.
fn own_users(spec: &mut Value) {
    spec["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "user"}));
    spec["linux"]["uidMappings"] = mapping();
    spec["linux"]["gidMappings"] = mapping();
}

fn namespace(pid: impl std::fmt::Display, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

/// What `/proc/<pid>/uid_map` or `gid_map` says.
fn ids(pid: u32, file: &str) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    text.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

/// The user namespace that owns a namespace of `pid` (ioctl_ns(2)).
fn owner(pid: u32, kind: &str) -> PathBuf {
    let (pid, columns) = (pid.to_string(), ["--noheadings", "--raw", "--output", "ONS"]);
    let listed = run(Command::new("lsns")
        .args(columns)
        .args(["--task", &pid, "--type", kind]))
    .ok()
    .stdout;
    PathBuf::from(format!("user:[{}]", listed.trim()))
}

/// A folder that belongs to `id`, for a volume.
fn folder_of(node: &Node, name: &str, id: u32) -> PathBuf {
    let folder = node.folder.join(name);
    fs::create_dir_all(&folder).unwrap();
    chown(&folder, Some(id), Some(id)).unwrap();
    folder
}

fn owners(path: &Path) -> (u32, u32) {
    let metadata = fs::metadata(path).unwrap();
    (metadata.uid(), metadata.gid())
}

fn add_mount(spec: &mut Value, mount: Value) {
    spec["mounts"].as_array_mut().unwrap().push(mount);
}

on_newest_containerd! {
    fn root_in_a_user_namespace_is_nobody_on_the_host(node) {
        let root = root_folder(node, &[("probe.wasm", &Probe::P1.bytes())]);
        let mut spec = spec(node, &root, &["/probe.wasm", "idle"]);
        own_users(&mut spec);
        let (id, pid) = Run::of_spec(node, &spec).without_options().detach();
        assert_eq!(status(pid, "Uid"), format!("{OUTSIDE} {OUTSIDE} {OUTSIDE} {OUTSIDE}"));
        assert_eq!(status(pid, "Gid"), format!("{OUTSIDE} {OUTSIDE} {OUTSIDE} {OUTSIDE}"));
        for file in ["uid_map", "gid_map"] {
            assert_eq!(ids(pid, file), [0, OUTSIDE, SIZE]);
        }
        let here = namespace("self", "user");
        assert_ne!(namespace(pid, "user"), here);
        let launchers = server::pids_of(node, "launch").into_iter().filter(|launcher| *launcher != pid as i32);
        for launcher in launchers {
            assert_eq!(namespace(launcher, "user"), here, "the launcher never enters one");
        }
        for kind in ["net", "ipc", "uts"] {
            assert_eq!(owner(pid, kind), namespace(pid, "user"), "{kind}");
        }
        for kind in ["mnt", "pid"] {
            assert_eq!(owner(pid, kind), here, "{kind}: a guest has no rights over its mounts and processes");
        }
        node.remove(&id);
    }

    fn files_of_an_id_mapped_volume_belong_to_whom_the_container_says(node) {
        let (mapped, plain) = (folder_of(node, "mapped", 7), folder_of(node, "plain", OUTSIDE + 7));
        let root = root_folder(node, &[("probe.wasm", &Probe::P1.bytes())]);
        let write = |path: &str| {
            let mut spec = spec(node, &root, &["/probe.wasm", "write", path, "x"]);
            own_users(&mut spec);
            spec["process"]["user"] = json!({"uid": 7, "gid": 7});
            spec["process"]["capabilities"] = json!({});
            add_mount(&mut spec, json!({"destination": "/mapped", "type": "bind", "source": mapped, "options": ["rbind", "rw"],
                                        "uidMappings": mapping(), "gidMappings": mapping()}));
            add_mount(&mut spec, json!({"destination": "/option", "type": "bind", "source": mapped, "options": ["rbind", "idmap"]}));
            add_mount(&mut spec, json!({"destination": "/plain", "type": "bind", "source": plain, "options": ["rbind", "rw"]}));
            Run::of_spec(node, &spec).without_options().finish()
        };
        for path in ["/mapped/new", "/option/other", "/plain/new"] {
            write(path).ok();
        }
        assert_eq!(owners(&mapped.join("new")), (7, 7));
        assert_eq!(owners(&mapped.join("other")), (7, 7));
        assert_eq!(owners(&plain.join("new")), (OUTSIDE + 7, OUTSIDE + 7));
        // What is the host's root's is nobody's here.
        write("/new").expect_code(1).expect_error(&["probe write"]);
    }

    fn a_root_that_is_not_the_hosts_has_no_rights_over_the_hosts_files(node) {
        let secret = folder_of(node, "secret", 0);
        fs::write(secret.join("file"), "secret").unwrap();
        fs::set_permissions(secret.join("file"), fs::Permissions::from_mode(0o600)).unwrap();
        let root = root_folder(node, &[("probe.wasm", &Probe::P1.bytes())]);
        let read = |users: bool| {
            let mut spec = spec(node, &root, &["/probe.wasm", "read", "/secret/file"]);
            if users {
                own_users(&mut spec);
            }
            add_mount(&mut spec, json!({"destination": "/secret", "type": "bind", "source": secret, "options": ["rbind"]}));
            Run::of_spec(node, &spec).without_options().finish()
        };
        assert_eq!(read(false).ok().stdout, "secret");
        read(true).expect_code(1).expect_error(&["probe read: Permission denied"]);
    }

    fn what_is_made_in_a_container_with_users_of_its_own_is_its_roots(node) {
        let root = root_folder(node, &[("probe.wasm", &Probe::P1.bytes())]);
        let source = folder_of(node, "source", OUTSIDE);
        let mut spec = spec(node, &root, &["/probe.wasm", "grow", "/scratch"]);
        own_users(&mut spec);
        add_mount(&mut spec, json!({"destination": "/scratch", "type": "tmpfs", "options": ["mode=755"]}));
        add_mount(&mut spec, json!({"destination": "/made/deep/volume", "type": "bind", "source": source, "options": ["rbind"]}));
        let (id, pid) = Run::of_spec(node, &spec).without_options().detach();
        let inside = PathBuf::from(format!("/proc/{pid}/root"));
        for folder in ["scratch", "made", "made/deep", "made/deep/volume"] {
            assert_eq!(owners(&inside.join(folder)), (OUTSIDE, OUTSIDE), "{folder}");
        }
        node.remove(&id);
    }

    fn a_user_namespace_that_does_not_fit_is_refused_by_its_field(node) {
        let root = root_folder(node, &[("probe.wasm", &Probe::P1.bytes())]);
        let refuse = |edit: &dyn Fn(&mut Value), words: &[&str]| {
            let mut spec = spec(node, &root, &["/probe.wasm", "say", "x"]);
            own_users(&mut spec);
            edit(&mut spec);
            Run::of_spec(node, &spec).without_options().fail().expect_refusal(words);
        };
        refuse(&|spec| spec["linux"]["gidMappings"] = json!([]), &["linux.gidMappings"]);
        refuse(&|spec| spec["process"]["user"]["uid"] = json!(70_000), &["process.user.uid 70000"]);
        refuse(&|spec| spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|one| one["type"] != "user"),
               &["linux.uidMappings", "user namespace"]);
        refuse(&|spec| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.iter_mut().find(|one| one["type"] == "user").unwrap()["path"] = json!("/proc/self/ns/net");
        }, &["user namespace"]);
    }
}

/// What CRI says of a pod with users of its own.
fn pod_users(part: &mut Value) {
    let mapping = json!([{"container_id": 0, "host_id": OUTSIDE, "length": SIZE}]);
    part["linux"]["security_context"]["namespace_options"]["userns_options"] =
        json!({"mode": 0, "uids": mapping, "gids": mapping});
}

#[test]
fn a_pod_without_the_hosts_users_has_them_mapped_everywhere() {
    Node::with(Version::V2_4, |node| {
        cri::give_networks(node);
        cri::prepare(node);
        let image = Image::with_files(
            "users",
            &[("/probe.wasm", &Probe::P1.bytes()), ("/data/file", b"from the image")],
        );
        node.import_into(&image, "k8s.io").ok();
        let volume = folder_of(node, "volume", 0);
        for network in [true, false] {
            let edit = |pod: &mut cri::Pod| {
                if network {
                    pod.with_network();
                }
                pod.handler = "wasi-without-options";
                pod_users(&mut pod.sandbox);
                pod_users(&mut pod.container);
                let mapping = json!([{"container_id": 0, "host_id": OUTSIDE, "length": SIZE}]);
                pod.container["mounts"] = json!([{"container_path": "/volume", "host_path": volume,
                                                  "uidMappings": mapping, "gidMappings": mapping}]);
            };
            cri::with_edited_pod(node, &image.name, &["/probe.wasm", "grow", "/volume"], edit, |id, _| {
                let pid = pod::pid(node, id);
                assert_eq!(ids(pid, "uid_map"), [0, OUTSIDE, SIZE]);
                assert_eq!(status(pid, "Uid"), format!("{OUTSIDE} {OUTSIDE} {OUTSIDE} {OUTSIDE}"));
                for (kind, own) in [("ipc", true), ("uts", network), ("net", network)] {
                    assert_eq!(owner(pid, kind) == namespace(pid, "user"), own, "{kind}");
                }
                // The image's files are root's, and this root is the container's.
                let inside = PathBuf::from(format!("/proc/{pid}/root"));
                assert_eq!(owners(&inside.join("data/file")), (OUTSIDE, OUTSIDE));
                fs::write(volume.join("want"), "1").unwrap();
                let held = volume.join("held");
                crate::command::eventually("the guest wrote", std::time::Duration::from_secs(10), || {
                    held.exists().then_some(())
                });
                assert_eq!(owners(&held), (0, 0), "on the host as in the container");
                cri::crictl(
                    node,
                    &["exec", "--sync", id, "/probe.wasm", "write", "/volume/exec", "x"],
                )
                .ok();
                assert_eq!(owners(&volume.join("exec")), (0, 0), "an exec is in the same namespace");
                fs::remove_file(held).unwrap();
            });
        }
    });
}

#[test]
fn a_native_container_shares_users_and_pids_of_a_wasm_pod() {
    Node::with(Version::V2_4, |node| {
        cri::give_networks(node);
        cri::prepare(node);
        let image = Image::with_files("native-users", &[("/probe", &Probe::Native.bytes())]);
        node.import_into(&image, "k8s.io").ok();
        let edit = |pod: &mut cri::Pod| {
            pod.handler = "wasi-without-options";
            pod.with_network();
            for part in [&mut pod.sandbox, &mut pod.container] {
                pod_users(part);
                part["linux"]["security_context"]["namespace_options"]["pid"] = json!(0);
            }
        };
        cri::with_edited_pod(node, &image.name, &["/probe", "idle"], edit, |id, _| {
            let pid = pod::pid(node, id);
            assert_eq!(status(pid, "Uid"), format!("{OUTSIDE} {OUTSIDE} {OUTSIDE} {OUTSIDE}"));
            // The holder has made it as the pod's own, or runc could not mount a procfs in it.
            assert_eq!(owner(pid, "pid"), namespace(pid, "user"));
        });
    });
}
