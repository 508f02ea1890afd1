//! What is mounted where: an image's symlinks and a volume's contents do not widen what a guest may reach.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};
use serde_json::{Value, json};

use crate::container::{Run, root_folder, spec};
use crate::containerd::Node;
use crate::guests::Probe;
use crate::image_builder::Image;
use crate::sandbox::idle;

/// A mount of the test's own, gone with it.
struct Mounted(PathBuf);

impl Mounted {
    /// A new file system at `point`, which is made.
    #[track_caller]
    fn new(kind: &str, point: &Path) -> Mounted {
        fs::create_dir_all(point).unwrap();
        mount("none", point, kind, MountFlags::empty(), None).unwrap();
        Mounted(point.into())
    }

    /// `folder` on itself, read-only.
    #[track_caller]
    fn read_only(folder: &Path) -> Mounted {
        mount_bind(folder, folder).unwrap();
        let mounted = Mounted(folder.into());
        mount_remount(folder, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
        mounted
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

/// The flags of the topmost mount at `point`, as a process sees it.
#[track_caller]
fn flags(pid: u32, point: &str) -> Vec<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let line = table.lines().rfind(|line| line.split(' ').nth(4) == Some(point));
    let line = line.unwrap_or_else(|| panic!("nothing is mounted at {point} in:\n{table}"));
    line.split(' ').nth(5).unwrap().split(',').map(str::to_owned).collect()
}

fn has(flags: &[String], flag: &str) -> bool {
    flags.iter().any(|one| one == flag)
}

fn bind(source: &Path, destination: &str, options: &str) -> String {
    format!("type=bind,src={},dst={destination},options={options}", source.display())
}

/// A device that whoever may open it can read: the null device.
fn null_device(path: &Path) {
    mknodat(
        CWD,
        path,
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o666),
        makedev(1, 3),
    )
    .unwrap();
}

fn folder(node: &Node, name: &str) -> PathBuf {
    let folder = node.folder.join(name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

on_newest_containerd! {
    fn a_volume_whose_destination_leads_to_the_root_is_refused_by_name(node) {
        let image = Image::with_files("to-root", &[("/probe.wasm", &Probe::P1.bytes())])
            .symlink("/to-root", "/").symlink("/to-link", "to-root/../to-root");
        node.import(&image);
        let shared = folder(node, "shared");
        for destination in ["/to-root", "/to-link"] {
            let mount = bind(&shared, destination, "rbind:ro");
            node.run(&image).flag(&["--mount", &mount]).args(&["/probe.wasm", "say", "x"]).fail()
                .expect_refusal(&[destination, "leads to the container's root"]);
        }
        // A tmpfs has no source that could be judged.
        let root = root_folder(node, &[("probe.wasm", &Probe::P1.bytes())]);
        std::os::unix::fs::symlink("/", root.join("scratch")).unwrap();
        let mut spec = spec(node, &root, &["/probe.wasm", "say", "x"]);
        add_mount(&mut spec, json!({"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": []}));
        Run::of_spec(node, &spec).fail().expect_refusal(&["/scratch", "leads to the container's root"]);
    }

    fn a_read_only_volume_behind_a_symlink_is_read_only_and_nothing_else_is(node) {
        let image = Image::with_files("to-folder", &[("/probe.wasm", &Probe::P1.bytes()), ("/real/old", b"old")])
            .symlink("/link", "/real");
        node.import(&image);
        let shared = folder(node, "shared");
        fs::write(shared.join("file"), "from outside").unwrap();
        let mount = bind(&shared, "/link", "rbind:ro");
        let run = |args: &[&str]| node.run(&image).flag(&["--mount", &mount]).args(&[&["/probe.wasm"], args].concat());
        // By the folder's own name: WASI follows no absolute symlink.
        assert_eq!(run(&["read", "/real/file"]).finish().ok().stdout, "from outside");
        for path in ["/real/new", "/real/file"] {
            run(&["write", path, "x"]).finish().expect_code(1).expect_error(&["probe write"]);
        }
        assert!(!shared.join("new").exists());
        assert_eq!(fs::read_to_string(shared.join("file")).unwrap(), "from outside");
        run(&["write", "/new", "x"]).finish().ok();

        let (id, pid) = run(&["idle"]).detach();
        assert!(has(&flags(pid, "/real"), "ro") && has(&flags(pid, "/"), "rw"));
        node.remove(&id);
    }

    fn a_volume_that_is_read_only_on_the_host_stays_so(node) {
        let image = Image::with_files("ro-source", &[("/probe.wasm", &Probe::P1.bytes())]);
        node.import(&image);
        let shared = folder(node, "shared");
        let below = folder(node, "shared/below");
        let _mounted = Mounted::read_only(&shared);
        for source in [&shared, &below] {
            for options in ["rbind:rw", "bind:rw"] {
                node.run(&image).flag(&["--mount", &bind(source, "/data", options)])
                    .args(&["/probe.wasm", "write", "/data/new", "x"]).finish().expect_code(1).expect_error(&["probe write"]);
                assert!(!source.join("new").exists());
            }
        }
    }

    fn no_device_can_be_opened_in_a_volume_or_in_a_mount_below_it(node) {
        let image = Image::with_files("nodev", &[("/probe.wasm", &Probe::P1.bytes())]);
        node.import(&image);
        let shared = folder(node, "shared");
        let _mounted = Mounted::new("tmpfs", &shared.join("below"));
        null_device(&shared.join("null"));
        null_device(&shared.join("below/null"));
        let mount = bind(&shared, "/data", "rbind:rw:dev");
        for device in ["/data/null", "/data/below/null"] {
            node.run(&image).flag(&["--mount", &mount]).args(&["/probe.wasm", "read", device]).finish().expect_code(1);
        }
        let (id, pid) = node.run(&image).flag(&["--mount", &mount]).args(&["/probe.wasm", "idle"]).detach();
        for point in ["/data", "/data/below"] {
            assert!(has(&flags(pid, point), "nodev"), "{point}");
        }
        node.remove(&id);
    }

    fn no_device_can_be_opened_in_a_root_filesystem_that_is_a_folder(node) {
        let root = root_folder(node, &[("probe.wasm", &Probe::P1.bytes())]);
        let _mounted = Mounted::new("tmpfs", &root.join("below"));
        null_device(&root.join("null"));
        null_device(&root.join("below/null"));
        for device in ["/null", "/below/null"] {
            Run::of_spec(node, &spec(node, &root, &["/probe.wasm", "read", device])).finish().expect_code(1);
        }
        let (id, pid) = Run::of_spec(node, &spec(node, &root, &["/probe.wasm", "idle"])).detach();
        for point in ["/", "/below"] {
            assert!(has(&flags(pid, point), "nodev"), "{point}");
        }
        node.remove(&id);
    }

    fn a_volume_with_the_kernels_files_below_it_is_refused_by_name(node) {
        let image = Image::with_files("kernel-below", &[("/probe.wasm", &Probe::P1.bytes())]);
        node.import(&image);
        let shared = folder(node, "shared");
        let refuse = |node: &Node, kind: &str| {
            let mount = bind(&shared, "/data", "rbind:ro");
            node.run(&image).flag(&["--mount", &mount]).args(&["/probe.wasm", "ls", "/data"]).fail()
                .expect_refusal(&["/data/below", kind]);
            // Without what is below there is nothing to refuse.
            let alone = bind(&shared, "/data", "bind:ro");
            node.run(&image).flag(&["--mount", &alone]).args(&["/probe.wasm", "ls", "/data"]).finish().ok();
        };
        for kind in ["proc", "sysfs"] {
            let _mounted = Mounted::new(kind, &shared.join("below"));
            refuse(node, kind);
        }
        // containerd passes the state folder on as it is configured.
        node.stop();
        fs::rename(node.folder.join("state"), node.folder.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", node.folder.join("state")).unwrap();
        node.start();
        let _mounted = Mounted::new("proc", &shared.join("below"));
        refuse(node, "proc");
    }

    fn a_device_as_a_volume_is_refused_by_name(node) {
        let image = Image::with_files("device", &[("/probe.wasm", &Probe::P1.bytes())]);
        node.import(&image);
        let device = node.folder.join("device");
        null_device(&device);
        let mount = bind(&device, "/data/null", "bind:rw");
        node.run(&image).flag(&["--mount", &mount]).args(&["/probe.wasm", "read", "/data/null"]).fail()
            .expect_refusal(&["/data/null", "it is a device"]);
    }

    fn masked_paths_are_hidden_and_read_only_paths_hold(node) {
        let files = [("secret/inner", "hidden"), ("secret.txt", "hidden"), ("conf/file", "shown"), ("conf.txt", "shown")];
        let root = root_folder(node, &[("probe.wasm", &Probe::P1.bytes())]);
        for (name, text) in files {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), text).unwrap();
        }
        let run = |uid: u32, args: &[&str]| {
            let mut spec = spec(node, &root, &[&["/probe.wasm"], args].concat());
            if uid != 0 {
                spec["process"]["user"] = json!({"uid": uid, "gid": uid});
                spec["process"]["capabilities"] = json!({});
            }
            spec["linux"]["maskedPaths"] = json!(["/secret", "/secret.txt", "/nowhere", "/conf.txt/nowhere"]);
            spec["linux"]["readonlyPaths"] = json!(["/conf", "/conf.txt", "/nowhere"]);
            Run::of_spec(node, &spec).finish()
        };
        assert_eq!(run(0, &["ls", "/secret"]).ok().stdout, "");
        run(0, &["read", "/secret/inner"]).expect_code(1);
        // root reads nothing, others may not even open it.
        assert_eq!(run(0, &["read", "/secret.txt"]).ok().stdout, "");
        run(1000, &["read", "/secret.txt"]).expect_code(1);
        for path in ["/secret/new", "/secret.txt", "/conf/file", "/conf/new", "/conf.txt"] {
            run(0, &["write", path, "changed"]).expect_code(1).expect_error(&["probe write"]);
        }
        for path in ["/conf/file", "/conf.txt"] {
            assert_eq!(run(0, &["read", path]).ok().stdout, "shown", "{path}");
        }
        run(0, &["write", "/new", "x"]).ok();
        for (name, text) in files {
            assert_eq!(fs::read_to_string(root.join(name)).unwrap(), text, "{name}");
        }
    }

    fn a_read_only_volume_of_the_spec_is_so_in_all_below_only_when_asked(node) {
        let shared = folder(node, "shared");
        let _mounted = Mounted::new("tmpfs", &shared.join("below"));
        for (option, below) in [("ro", "rw"), ("rro", "ro")] {
            let (id, pid) = idle(node, |spec| {
                let options = json!(["rbind", option]);
                add_mount(spec, json!({"destination": "/data", "type": "bind", "source": shared, "options": options}));
            });
            assert!(has(&flags(pid, "/data"), "ro"), "{option}");
            assert!(has(&flags(pid, "/data/below"), below), "{option}");
            node.remove(&id);
        }
    }
}

fn add_mount(spec: &mut Value, mount: Value) {
    spec["mounts"].as_array_mut().unwrap().push(mount);
}
