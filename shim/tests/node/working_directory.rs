//! The working directory: made, entered and refused as runc does it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};
use serde_json::{Value, json};

use crate::command::run;
use crate::container::{Run, root_folder, spec};
use crate::containerd::Node;
use crate::exec::{exec, exec_command};
use crate::guests::Probe;

const RUNC: &str = "io.containerd.runc.v2";
const WASI: &str = "io.containerd.wasi.v1";

/// A spec of the user 1000 with both kinds of probes, whose working directory is `cwd`, and its root filesystem.
fn probes(node: &Node, cwd: &str) -> (Value, PathBuf) {
    let files = [("probe.wasm", Probe::P1.bytes()), ("probe", Probe::Native.bytes())];
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    let root = root_folder(node, &files);
    fs::set_permissions(root.join("probe"), PermissionsExt::from_mode(0o755)).unwrap();
    let mut spec = spec(node, &root, &[]);
    spec["process"]["cwd"] = cwd.into();
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    spec["linux"]["cgroupsPath"] = format!("/{}/directory", node.namespace).into();
    (spec, root)
}

/// A run of the spec by runc with the native probe, or by us with the wasm one.
fn says<'a>(node: &'a Node, spec: &Value, runtime: &str) -> Run<'a> {
    let mut spec = spec.clone();
    spec["process"]["args"] = match runtime {
        RUNC => json!(["/probe", "cwd"]),
        _ => json!(["/probe.wasm", "cwd"]),
    };
    Run::of_spec(node, &spec).runtime(runtime)
}

/// Mode and owner of a directory.
fn facts(path: &Path) -> (u32, u32, u32) {
    let metadata = fs::metadata(path).unwrap();
    assert!(metadata.is_dir());
    (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
}

on_newest_containerd! {
    fn one_that_is_missing_is_made_as_runc_makes_it(node) {
        for read_only in [false, true] {
            let mut made = Vec::new();
            for runtime in [RUNC, WASI] {
                let (mut spec, root) = probes(node, "/srv/app/data");
                spec["root"]["readonly"] = read_only.into();
                assert_eq!(says(node, &spec, runtime).finish().ok().stdout, "/srv/app/data\n", "{runtime}");
                made.push(["srv", "srv/app", "srv/app/data"].map(|path| facts(&root.join(path))));
            }
            assert_eq!(made, [[(0o755, 0, 0); 3]; 2], "read-only: {read_only}");
        }
    }

    fn one_that_is_missing_behind_links_is_made_where_they_lead_in_the_container(node) {
        for runtime in [RUNC, WASI] {
            let (spec, root) = probes(node, "/absolute/x/../y");
            fs::create_dir(root.join("real")).unwrap();
            symlink("/real", root.join("absolute")).unwrap();
            fs::create_dir(root.join("real/x")).unwrap();
            says(node, &spec, runtime).finish().ok();
            assert_eq!(facts(&root.join("real/y")), (0o755, 0, 0), "{runtime}");
        }
    }

    fn one_that_is_missing_in_a_volume_is_made_there(node) {
        for runtime in [RUNC, WASI] {
            let (mut spec, root) = probes(node, "/data/app");
            let volume = root.with_extension("volume");
            fs::create_dir(&volume).unwrap();
            let bind = json!({"destination": "/data", "type": "bind", "source": volume, "options": ["rbind", "rw"]});
            spec["mounts"].as_array_mut().unwrap().push(bind);
            assert_eq!(says(node, &spec, runtime).finish().ok().stdout, "/data/app\n", "{runtime}");
            assert_eq!(facts(&volume.join("app")), (0o755, 0, 0), "{runtime}");
            let mounts = spec["mounts"].as_array_mut().unwrap();
            mounts.last_mut().unwrap()["options"] = json!(["rbind", "ro"]);
            spec["process"]["cwd"] = "/data/other".into();
            says(node, &spec, runtime).fail().expect_refusal(&["/data/other", "ead-only file system"].map(|word| {
                if runtime == RUNC || word.starts_with('/') { word } else { "Read-only file system" }
            }));
        }
    }

    fn one_that_is_missing_in_a_read_only_snapshot_is_named(node) {
        let (mut spec, root) = probes(node, "/srv/app");
        spec["mounts"] = json!([]);
        mount_bind(&root, &root).unwrap();
        mount_remount(&root, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
        let refused = says(node, &spec, WASI).fail();
        unmount(&root, UnmountFlags::DETACH).unwrap();
        refused.expect_refusal(&["/srv/app", "process.cwd", "Read-only file system"]);
    }

    fn one_that_is_a_file_or_relative_is_refused(node) {
        let (mut spec, root) = probes(node, "/file");
        fs::write(root.join("file"), "").unwrap();
        symlink("/nowhere", root.join("dangling")).unwrap();
        for (cwd, word) in [("/file", "directory"), ("/file/below", "directory"), ("/dangling", "dangling"),
                            ("app", "absolute"), ("", "process.cwd")] {
            spec["process"]["cwd"] = cwd.into();
            assert_ne!(says(node, &spec, RUNC).fail().code, Some(0), "{cwd:?} by runc");
            says(node, &spec, WASI).fail().expect_refusal(&["process.cwd", cwd, word]);
        }
    }

    fn root_enters_it_for_a_user_who_may_not(node) {
        let (mut spec, root) = probes(node, "/private");
        fs::create_dir(root.join("private")).unwrap();
        fs::set_permissions(root.join("private"), PermissionsExt::from_mode(0o700)).unwrap();
        says(node, &spec, RUNC).finish().ok();
        spec["process"]["args"] = json!(["/probe.wasm", "idle"]);
        let (id, _) = Run::of_spec(node, &spec).detach();
        for program in ["/probe.wasm", "/probe"] {
            exec(node, &id, &[program, "say", "ran"]).ok();
        }
        node.remove(&id);
    }

    fn an_exec_makes_no_directory_and_is_refused_without_one(node) {
        for (runtime, program) in [(RUNC, "/probe"), (WASI, "/probe.wasm")] {
            let (mut spec, root) = probes(node, "/");
            fs::write(root.join("file"), "").unwrap();
            spec["process"]["args"] = json!([program, "idle"]);
            if runtime == RUNC {
                spec["process"]["args"] = json!([program, "sleep", "100000"]);
            }
            let (id, _) = Run::of_spec(node, &spec).runtime(runtime).detach();
            let in_directory = |program, cwd| run(&mut exec_command(node, &id, &["--cwd", cwd], &[program, "say", "ran"]));
            let programs: &[&str] = if runtime == RUNC { &["/probe"] } else { &["/probe.wasm", "/probe"] };
            for program in programs {
                in_directory(program, "/").ok();
                in_directory(program, "/missing/deep").expect_refusal(&["/missing/deep", "o such file or directory"]);
                in_directory(program, "/file").expect_refusal(&["/file", "a directory"]);
                assert_ne!(in_directory(program, "relative").code, Some(0), "{program} by {runtime}");
            }
            assert!(!root.join("missing").exists());
            node.remove(&id);
        }
    }

    fn a_tmpfs_holds_it_too(node) {
        let (mut spec, _) = probes(node, "/scratch/app");
        let tmpfs = json!({"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["mode=0777"]});
        spec["mounts"].as_array_mut().unwrap().push(tmpfs);
        for runtime in [RUNC, WASI] {
            assert_eq!(says(node, &spec, runtime).finish().ok().stdout, "/scratch/app\n", "{runtime}");
        }
    }
}
