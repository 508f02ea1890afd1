//! The fields of a pod's security contexts, one by one, as CRI brings them: what the guest's process has of each.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};

use crate::command::run;
use crate::containerd::Node;
use crate::cri::{self, exit_code, with_edited_pod};
use crate::guests::Probe;
use crate::image_builder::Image;
use crate::pod;
use crate::sandbox::status;

/// The kind of a seccomp profile (CRI, `SecurityProfile`).
const RUNTIME_DEFAULT: u32 = 0;
const UNCONFINED: u32 = 1;
const LOCALHOST: u32 = 2;

fn image(node: &mut Node) -> Image {
    cri::prepare(node);
    let files: [(&str, &[u8]); 3] = [
        ("/probe.wasm", &Probe::P1.bytes()),
        ("/secret/file", b"secret"),
        ("/fixed/file", b"fixed"),
    ];
    let image = Image::with_files("security", &files);
    node.import_into(&image, "k8s.io").ok();
    image
}

/// The security context of a container or sandbox.
fn context(part: &mut Value) -> &mut Value {
    &mut part["linux"]["security_context"]
}

/// Runs an idle guest in a pod that `edit` changes, and lets `check` look at its process.
fn look(node: &Node, image: &Image, edit: impl FnOnce(&mut cri::Pod), check: impl FnOnce(u32)) {
    let command = ["/probe.wasm", "idle"];
    with_edited_pod(node, &image.name, &command, edit, |id, _| check(pod::pid(node, id)));
}

/// Runs a guest to its end in a pod that `edit` changes: its exit code, and what it wrote.
fn tell(node: &Node, image: &Image, args: &[&str], edit: impl FnOnce(&mut cri::Pod)) -> (i64, String) {
    let mut told = (0, String::new());
    with_edited_pod(
        node,
        &image.name,
        &[&["/probe.wasm"], args].concat(),
        edit,
        |id, log| {
            told = (exit_code(node, id), fs::read_to_string(log).unwrap());
            // The next pod's log is appended to it.
            fs::remove_file(log).unwrap();
        },
    );
    told
}

fn set(pid: u32, name: &str) -> u64 {
    u64::from_str_radix(&status(pid, name), 16).unwrap()
}

fn namespace(pid: u32, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

fn folder(node: &Node, name: &str) -> PathBuf {
    let folder = node.folder.join(name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Adds a mount to the container.
fn add_mount(pod: &mut cri::Pod, from: &Path, to: &str, more: Value) {
    let mut mount = json!({"host_path": from, "container_path": to});
    mount.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    match pod.container["mounts"].as_array_mut() {
        Some(mounts) => mounts.push(mount),
        None => pod.container["mounts"] = json!([mount]),
    }
}

on_newest_containerd! {
    fn user_group_and_supplemental_groups_are_the_pods(node) {
        let image = image(node);
        let edit = |pod: &mut cri::Pod| {
            let context = context(&mut pod.container);
            context["run_as_user"] = json!({"value": 1000});
            context["run_as_group"] = json!({"value": 2000});
            // fsGroup comes as one of them.
            context["supplemental_groups"] = json!([3000, 4000]);
        };
        look(node, &image, edit, |pid| {
            assert_eq!(status(pid, "Uid"), "1000 1000 1000 1000");
            assert_eq!(status(pid, "Gid"), "2000 2000 2000 2000");
            assert_eq!(status(pid, "Groups"), "2000 3000 4000");
        });
    }

    fn a_volume_of_the_pods_group_is_written_by_a_guest_of_another_user(node) {
        let image = image(node);
        let volume = folder(node, "volume");
        // As the kubelet prepares a volume for fsGroup.
        std::os::unix::fs::chown(&volume, Some(0), Some(3000)).unwrap();
        fs::set_permissions(&volume, std::os::unix::fs::PermissionsExt::from_mode(0o2770)).unwrap();
        let write = |groups: &[u32]| {
            tell(node, &image, &["write", "/volume/new", "x"], |pod| {
                let context = context(&mut pod.container);
                context["run_as_user"] = json!({"value": 1000});
                context["supplemental_groups"] = json!(groups);
                add_mount(pod, &volume, "/volume", json!({}));
            })
        };
        assert_eq!(write(&[]).0, 1);
        assert_eq!(write(&[3000]).0, 0);
        let made = fs::metadata(volume.join("new")).unwrap();
        assert_eq!((made.uid(), made.gid()), (1000, 3000));
    }

    fn capabilities_are_dropped_and_added_as_the_pod_says(node) {
        let image = image(node);
        let has = |capabilities: Value| {
            let mut has = 0;
            look(node, &image, |pod| context(&mut pod.container)["capabilities"] = capabilities, |pid| has = set(pid, "CapEff"));
            has
        };
        // The numbers of capabilities(7); CHOWN is 0, KILL is 5, SYS_TIME is 25, MKNOD is 27.
        assert_eq!(has(json!({"drop_capabilities": ["ALL"], "add_capabilities": ["KILL"]})), 1 << 5);
        let default = has(json!({}));
        assert!(default & 1 == 1 && default & (1 << 25) == 0, "{default:x}");
        assert_eq!(default & (1 << 27), 0, "nobody makes devices");
        assert_eq!(has(json!({"add_capabilities": ["SYS_TIME"]})), default | 1 << 25);
    }

    fn new_privileges_are_never_gained_even_where_the_pod_allows_it(node) {
        let image = image(node);
        for no_new_privileges in [true, false] {
            let edit = |pod: &mut cri::Pod| context(&mut pod.container)["no_new_privs"] = no_new_privileges.into();
            look(node, &image, edit, |pid| assert_eq!(status(pid, "NoNewPrivs"), "1"));
        }
    }

    fn a_privileged_guest_has_all_capabilities_but_to_make_devices_and_sees_none_and_nothing_of_the_kernel(node) {
        let image = image(node);
        let privileged = |pod: &mut cri::Pod| {
            for part in [&mut pod.sandbox, &mut pod.container] {
                context(part)["privileged"] = true.into();
            }
        };
        look(node, &image, privileged, |pid| {
            // What a process of root has here; the machine may withhold some.
            let all = set(std::process::id(), "CapBnd");
            for name in ["CapEff", "CapPrm", "CapBnd"] {
                assert_eq!(set(pid, name), all & !(1 << 27), "{name}");
            }
            assert_eq!(status(pid, "Seccomp_filters"), "2", "ours are always on");
            assert_eq!(status(pid, "NoNewPrivs"), "1");
        });
        for path in ["/proc/self/mem", "/proc/1/mem", "/sys/kernel/notes", "/dev/null", "/dev/mem", "/dev/kmsg"] {
            let (code, log) = tell(node, &image, &["read", path], privileged);
            assert!(code == 1 && log.contains("No such file"), "{path}: {code} {log}");
        }
    }

    fn seccomp_profiles_are_the_runtimes_the_nodes_or_none(node) {
        let image = image(node);
        let local = node.folder.join("profile.json");
        fs::write(&local, json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdirat"], "action": "SCMP_ACT_ERRNO"}, {"names": ["linkat"], "action": "SCMP_ACT_KILL_PROCESS"},
        ]}).to_string()).unwrap();
        let filters = |profile: Value| {
            let mut filters = String::new();
            look(node, &image, |pod| context(&mut pod.container)["seccomp"] = profile, |pid| filters = status(pid, "Seccomp_filters"));
            filters.parse::<u32>().unwrap()
        };
        assert_eq!(filters(json!({"profile_type": UNCONFINED})), 2, "ours are always on");
        assert!(filters(json!({"profile_type": RUNTIME_DEFAULT})) > 2);
        assert_eq!(filters(json!({"profile_type": LOCALHOST, "localhost_ref": local})), 4, "one for each action");
    }

    fn a_read_only_root_filesystem_is_so_and_its_volumes_are_not(node) {
        let image = image(node);
        let volume = folder(node, "volume");
        let write = |path: &str, read_only: bool| {
            tell(node, &image, &["write", path, "x"], |pod| {
                context(&mut pod.container)["readonly_rootfs"] = read_only.into();
                add_mount(pod, &volume, "/volume", json!({}));
            }).0
        };
        assert_eq!(write("/new", false), 0);
        assert_eq!(write("/new", true), 1);
        assert_eq!(write("/volume/new", true), 0);
    }

    fn masked_paths_are_empty_and_read_only_paths_hold(node) {
        let image = image(node);
        let tell = |args: &[&str]| {
            tell(node, &image, args, |pod| {
                context(&mut pod.container)["masked_paths"] = json!(["/secret"]);
                context(&mut pod.container)["readonly_paths"] = json!(["/fixed"]);
            })
        };
        assert_eq!(tell(&["read", "/secret/file"]).0, 1);
        let (code, log) = tell(&["read", "/fixed/file"]);
        assert!(code == 0 && log.contains("fixed"), "{log}");
        assert_eq!(tell(&["write", "/fixed/file", "x"]).0, 1);
        assert_eq!(tell(&["write", "/new", "x"]).0, 0);
    }

    fn sysctls_of_the_pod_are_those_of_its_network(node) {
        cri::give_networks(node);
        let image = image(node);
        let setting = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
        let edit = |pod: &mut cri::Pod| {
            pod.with_network();
            pod.sandbox["linux"]["sysctls"] = json!({"net.ipv4.ip_unprivileged_port_start": "81"});
        };
        look(node, &image, edit, |pid| {
            let inside = Command::new("nsenter").args(["-t", &pid.to_string(), "-n", "cat", setting]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&inside.stdout), "81\n");
        });
        assert_ne!(fs::read_to_string(setting).unwrap(), "81\n");
    }

    fn the_nodes_network_pids_and_ipc_are_the_guests_when_the_pod_asks(node) {
        cri::give_networks(node);
        let image = image(node);
        let kinds = ["net", "ipc", "pid"];
        let here: Vec<PathBuf> = kinds.iter().map(|kind| namespace(std::process::id(), kind)).collect();
        let of = |pod: &mut cri::Pod, mode: u32| {
            for part in [&mut pod.sandbox, &mut pod.container] {
                context(part)["namespace_options"] = json!({"network": mode, "ipc": mode, "pid": mode});
            }
        };
        look(node, &image, |pod| of(pod, 2), |pid| {
            for (kind, here) in kinds.iter().zip(&here) {
                assert_eq!(namespace(pid, kind), *here, "{kind}");
            }
            assert_ne!(namespace(pid, "mnt"), namespace(std::process::id(), "mnt"));
        });
        look(node, &image, |pod| of(pod, 0), |pid| {
            for (kind, here) in kinds.iter().zip(&here) {
                assert_ne!(namespace(pid, kind), *here, "{kind}");
            }
            // shareProcessNamespace: the guest is not the first process.
            assert_ne!(status(pid, "NSpid").split(' ').next_back(), Some("1"));
        });
    }

    fn what_cri_makes_for_a_pod_reaches_the_guest(node) {
        cri::give_networks(node);
        let image = image(node);
        let read = |path: &str| {
            let (code, log) = tell(node, &image, &["read", path], |pod| {
                pod.with_network();
                pod.sandbox["hostname"] = json!("wasm-host");
                pod.sandbox["dns_config"] = json!({"servers": ["192.0.2.53"], "searches": ["svc.test"]});
            });
            assert_eq!(code, 0, "{path}: {log}");
            log
        };
        assert!(read("/etc/hostname").contains("wasm-host"));
        assert!(read("/etc/hosts").contains("localhost"));
        let resolver = read("/etc/resolv.conf");
        assert!(resolver.contains("192.0.2.53") && resolver.contains("svc.test"), "{resolver}");
        assert_eq!(tell(node, &image, &["write", "/dev/shm/new", "x"], |_| ()).0, 0);
    }

    fn the_termination_log_tells_of_a_trap(node) {
        let image = image(node);
        let log = node.folder.join("termination-log");
        fs::write(&log, "").unwrap();
        fs::set_permissions(&log, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        let (code, _) = tell(node, &image, &["trap"], |pod| {
            context(&mut pod.container)["run_as_user"] = json!({"value": 1000});
            add_mount(pod, &log, "/dev/termination-log", json!({}));
        });
        assert_eq!(code, 134);
        assert!(fs::read_to_string(log).unwrap().contains("wasm trap"));
    }

    fn devices_of_the_pod_are_not_there(node) {
        let image = image(node);
        let devices = json!([{"container_path": "/dev/mine", "host_path": "/dev/null", "permissions": "rwm"}]);
        let (code, log) = tell(node, &image, &["ls", "/dev"], |pod| pod.container["devices"] = devices);
        let names: Vec<&str> = log.lines().filter_map(|line| line.rsplit(' ').next()).collect();
        assert_eq!((code, names), (0, vec!["shm"]), "what CRI mounts there alone");
    }

    fn projected_volumes_and_single_files_are_read_and_changed_under_the_guest(node) {
        let image = image(node);
        // As the kubelet lays a config map out.
        let projected = folder(node, "projected");
        fs::create_dir(projected.join("..1")).unwrap();
        fs::write(projected.join("..1/key"), "one").unwrap();
        std::os::unix::fs::symlink("..1", projected.join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/key", projected.join("key")).unwrap();
        let read = |path: &str| {
            tell(node, &image, &["read", path], |pod| {
                add_mount(pod, &projected, "/config", json!({"readonly": true}));
                // A subPath comes as a file.
                add_mount(pod, &projected.join("..1/key"), "/etc/single/key", json!({"readonly": true}));
            })
        };
        for path in ["/config/key", "/etc/single/key"] {
            let (code, log) = read(path);
            assert!(code == 0 && log.contains("one"), "{path}: {log}");
        }
        let (code, _) = tell(node, &image, &["write", "/config/key", "x"], |pod| {
            add_mount(pod, &projected, "/config", json!({"readonly": true}));
        });
        assert_eq!(code, 1);
    }

    fn a_recursive_read_only_volume_is_so_below_and_the_plain_one_is_not(node) {
        let image = image(node);
        let volume = folder(node, "volume");
        let below = folder(node, "volume/below");
        mount("none", &below, "tmpfs", MountFlags::empty(), None).unwrap();
        let write = |more: Value| {
            tell(node, &image, &["write", "/volume/below/new", "x"], |pod| add_mount(pod, &volume, "/volume", more)).0
        };
        let codes = [json!({"readonly": true}), json!({"readonly": true, "recursive_read_only": true})].map(write);
        unmount(&below, UnmountFlags::empty()).unwrap();
        assert_eq!(codes, [0, 1]);
    }

    fn propagation_into_a_wasm_container_is_refused_by_name(node) {
        let image = image(node);
        let volume = folder(node, "volume");
        mount("none", &volume, "tmpfs", MountFlags::empty(), None).unwrap();
        run(Command::new("mount").args(["--make-rshared"]).arg(&volume)).ok();
        for propagation in [1, 2] {
            let mut pod = cri::Pod::new(node, &image.name, &["/probe.wasm", "idle"]);
            add_mount(&mut pod, &volume, "/volume", json!({"propagation": propagation}));
            pod.fail(node, &["mountPropagation"]);
        }
        unmount(&volume, UnmountFlags::DETACH).unwrap();
    }
}
