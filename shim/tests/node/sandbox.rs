//! The second wall: what the OCI spec asks is what the guest's process has, seen from outside through /proc.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::command::run;
use crate::container::{Run, root_folder, spec};
use crate::containerd::Node;
use crate::guests::Probe;
use crate::image_builder::Image;
use crate::machine;

fn probe() -> Image {
    Image::with_files("sandbox", &[("/probe.wasm", &Probe::P1.bytes())])
}

/// A line of /proc/<pid>/status, without its name.
pub fn status(pid: u32, name: &str) -> String {
    let all = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = all.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {all}"))
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

fn namespace(pid: &str, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}"))
        .unwrap()
        .display()
        .to_string()
}

/// The processes with a file descriptor for the socket `name`.
fn holders(name: &str) -> Vec<u32> {
    let pids = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let holds = |pid: &u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut targets = files.filter_map(|file| fs::read_link(file.path()).ok());
        targets.any(|target| target.to_string_lossy() == name)
    };
    pids.filter(holds).collect()
}

/// Starts an idle guest of the spec that `edit` makes.
pub fn idle(node: &Node, edit: impl FnOnce(&mut serde_json::Value)) -> (String, u32) {
    let root = root_folder(node, &[("probe.wasm", &Probe::P1.bytes())]);
    let mut spec = spec(node, &root, &["/probe.wasm", "idle"]);
    edit(&mut spec);
    Run::of_spec(node, &spec).detach()
}

/// Every writable byte of a process.
fn writable_memory(pid: u32) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut all = Vec::new();
    let mut range = None;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if let Some((start, end)) = first.split_once('-') {
            let bounds = u64::from_str_radix(start, 16)
                .ok()
                .zip(u64::from_str_radix(end, 16).ok());
            range = bounds.filter(|_| second.starts_with("rw"));
        } else if let ("Rss:", Some((start, end))) = (first, range)
            && second != "0"
        {
            // Reservations of gigabytes are mostly holes: what cannot be read at once is read page by page.
            let mut page = [0; 4096];
            let resident = second.parse::<u64>().unwrap() * 1024;
            if end - start <= 1 << 26 {
                let mut bytes = vec![0; (end - start) as usize];
                if memory.read_exact_at(&mut bytes, start).is_ok() {
                    all.extend(bytes);
                }
            } else {
                let mut at = start;
                while at < start + (resident * 4).min(end - start) && memory.read_exact_at(&mut page, at).is_ok() {
                    all.extend(page);
                    at += 4096;
                }
            }
        }
    }
    all
}

on_every_containerd! {
    fn user_and_groups_are_the_images(node) {
        let image = probe().config("User", "1000:2000".into());
        node.import(&image);
        let (id, pid) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        assert_eq!(status(pid, "Uid"), "1000 1000 1000 1000");
        assert_eq!(status(pid, "Gid"), "2000 2000 2000 2000");
        node.remove(&id);
    }

    fn a_time_namespace_is_made_and_shared_with_execs_and_those_who_join_it(node) {
        let add = |spec: &mut serde_json::Value, namespace: serde_json::Value| {
            let kind = if namespace["path"].is_null() { "made" } else { "joined" };
            spec["linux"]["cgroupsPath"] = format!("/{}/{kind}", node.namespace).into();
            spec["linux"]["namespaces"].as_array_mut().unwrap().push(namespace);
        };
        let (first, pid) = idle(node, |spec| add(spec, json!({"type": "time"})));
        let own = namespace(&pid.to_string(), "time");
        assert_ne!(own, namespace("self", "time"));
        let (second, other) = idle(node, |spec| add(spec, json!({"type": "time", "path": format!("/proc/{pid}/ns/time")})));
        assert_eq!(namespace(&other.to_string(), "time"), own);
        let (exec, execed) = crate::exec::running(node, &first, &["/probe.wasm", "idle"]);
        assert_eq!(namespace(&execed.to_string(), "time"), own);
        node.remove(&second);
        node.remove(&first);
        exec.wait();
    }

    fn additional_groups_are_the_specs(node) {
        let (id, pid) = idle(node, |spec| spec["process"]["user"] = json!({"uid": 1, "gid": 2, "additionalGids": [3, 4]}));
        assert_eq!(status(pid, "Groups"), "3 4");
        node.remove(&id);
    }

    fn capabilities_are_exactly_the_specs(node) {
        let (id, pid) = idle(node, |spec| {
            let set = json!(["CAP_CHOWN", "CAP_NET_BIND_SERVICE"]);
            spec["process"]["capabilities"] = json!({"bounding": set, "effective": set, "permitted": set});
        });
        for name in ["CapBnd", "CapEff", "CapPrm"] {
            assert_eq!(u64::from_str_radix(&status(pid, name), 16).unwrap(), 1 | (1 << 10), "{name}");
        }
        for name in ["CapInh", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&status(pid, name), 16).unwrap(), 0, "{name}");
        }
        node.remove(&id);
    }

    fn new_privileges_are_off_and_a_filter_is_on_whatever_the_spec_says(node) {
        let (id, pid) = idle(node, |spec| {
            spec["linux"]["seccomp"] = serde_json::Value::Null;
        });
        assert_eq!(status(pid, "NoNewPrivs"), "1");
        assert_eq!(status(pid, "Seccomp"), "2");
        let filters: u32 = status(pid, "Seccomp_filters").parse().unwrap();
        node.remove(&id);

        let image = probe();
        node.import(&image);
        let (id, pid) = node.run(&image).flag(&["--seccomp"]).args(&["/probe.wasm", "idle"]).detach();
        let with_profile: u32 = status(pid, "Seccomp_filters").parse().unwrap();
        assert!(with_profile > filters, "the spec's profile comes on top: {with_profile} filters, {filters} without");
        node.remove(&id);
    }

    fn namespaces_are_the_guests_own_as_the_spec_asks(node) {
        let (id, pid) = idle(node, |_| ());
        for kind in ["pid", "mnt", "ipc", "uts", "net"] {
            assert_ne!(namespace(&pid.to_string(), kind), namespace("self", kind), "{kind}");
        }
        node.remove(&id);
        let image = probe();
        node.import(&image);
        let (id, pid) = node.run(&image).flag(&["--net-host"]).args(&["/probe.wasm", "idle"]).detach();
        assert_eq!(namespace(&pid.to_string(), "net"), namespace("self", "net"));
        node.remove(&id);
    }

    fn the_loopback_device_of_a_new_network_namespace_is_up(node) {
        let (id, pid) = idle(node, |_| ());
        let mut show = std::process::Command::new("nsenter");
        show.args(["-t", &pid.to_string(), "-n", "ip", "-o", "address", "show", "up", "dev", "lo"]);
        let said = run(&mut show).ok();
        assert!(said.stdout.contains("127.0.0.1/8"), "{said}");
        node.remove(&id);
    }

    fn the_hostname_is_the_specs(node) {
        let (id, pid) = idle(node, |spec| spec["hostname"] = "guest-of-test".into());
        let said = run(std::process::Command::new("nsenter").args(["-t", &pid.to_string(), "-u", "hostname"])).ok();
        assert_eq!(said.stdout, "guest-of-test\n");
        node.remove(&id);
    }

    fn limits_and_the_oom_score_are_the_specs(node) {
        let (id, pid) = idle(node, |spec| {
            spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 111, "hard": 222}]);
            spec["process"]["oomScoreAdj"] = json!(777);
        });
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        assert_eq!(files.split_whitespace().collect::<Vec<_>>()[3..5], ["111", "222"], "{files}");
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "777");
        node.remove(&id);
    }

    fn the_guest_is_in_its_cgroup_with_its_limit(node) {
        let path = format!("/{}/limited", node.namespace);
        let (id, pid) = idle(node, |spec| {
            spec["linux"]["cgroupsPath"] = path.clone().into();
            spec["linux"]["resources"] = json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 32}});
        });
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(groups.lines().any(|line| line.ends_with(&path)), "{path} is not in:\n{groups}");
        let limit = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].iter().zip(["memory.limit_in_bytes", "memory.max"])
            .find_map(|(root, file)| fs::read_to_string(format!("{root}{path}/{file}")).ok());
        assert_eq!(limit.unwrap().trim(), (64 << 20).to_string());
        node.remove(&id);
    }

    fn the_root_filesystem_is_writable_unless_the_spec_says_read_only(node) {
        let image = probe();
        node.import(&image);
        node.run(&image).args(&["/probe.wasm", "write", "/new", "x"]).finish().ok();
        node.run(&image).flag(&["--read-only"]).args(&["/probe.wasm", "write", "/new", "x"]).finish().expect_code(1)
            .expect_error(&["probe write"]);
    }

    fn mounts_are_seen_and_read_only_ones_hold(node) {
        let image = probe();
        node.import(&image);
        let shared = node.folder.join("shared");
        fs::create_dir(&shared).unwrap();
        fs::write(shared.join("file"), "from outside").unwrap();
        let mount = |options: &str| format!("type=bind,src={},dst=/mnt/shared,options={options}", shared.display());
        let (writable, read_only) = (mount("rbind:rw"), mount("rbind:ro"));
        let run = |mount: &str, args: &[&str]| node.run(&image).flag(&["--mount", mount]).args(args).finish();
        assert_eq!(run(&read_only, &["/probe.wasm", "read", "/mnt/shared/file"]).ok().stdout, "from outside");
        run(&read_only, &["/probe.wasm", "write", "/mnt/shared/new", "x"]).expect_code(1);
        assert!(!shared.join("new").exists());
        run(&writable, &["/probe.wasm", "write", "/mnt/shared/new", "from inside"]).ok();
        assert_eq!(fs::read_to_string(shared.join("new")).unwrap(), "from inside");
    }

    fn a_guest_sees_files_and_never_the_kernel(node) {
        let image = probe();
        node.import(&image);
        for folder in ["/proc", "/sys", "/sys/fs/cgroup"] {
            let list = node.run(&image).args(&["/probe.wasm", "ls", folder]).finish();
            assert_eq!(list.stdout, "", "{folder}: {list}");
        }
        for file in ["/proc/self/mem", "/dev/kmsg", "/dev/mem"] {
            node.run(&image).args(&["/probe.wasm", "read", file]).finish().expect_code(1);
        }
        // The way around: a user's mount that turns out to be the kernel's.
        for source in ["/proc", "/sys"] {
            let mount = format!("type=bind,src={source},dst=/data,options=rbind:ro");
            node.run(&image).flag(&["--mount", &mount]).args(&["/probe.wasm", "ls", "/data"]).finish()
                .expect_refusal(&["/data"]);
        }
    }

    fn what_the_spec_asks_and_is_not_supported_is_refused_by_name(node) {
        let root = root_folder(node, &[("probe.wasm", &Probe::P1.bytes())]);
        let refuse = |edit: &dyn Fn(&mut serde_json::Value), words: &[&str]| {
            let mut spec = spec(node, &root, &["/probe.wasm", "say", "x"]);
            edit(&mut spec);
            Run::of_spec(node, &spec).finish().expect_refusal(words);
        };
        refuse(&|spec| spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_NOTIFY"}), &["seccomp", "SCMP_ACT_NOTIFY"]);
        refuse(&|spec| {
            let mount = json!({"destination": "/n", "type": "nfs", "source": "a:/b", "options": []});
            spec["mounts"].as_array_mut().unwrap().push(mount);
        }, &["/n", "nfs"]);
        refuse(&|spec| {
            let mount = json!({"destination": "/p", "type": "bind", "source": "/tmp", "options": ["rbind", "rshared"]});
            spec["mounts"].as_array_mut().unwrap().push(mount);
        }, &["/p", "rshared"]);
    }

    fn a_guest_holds_no_file_of_the_host_or_of_another_guest(node) {
        let image = probe();
        node.import(&image);
        let first = node.run(&image).args(&["/probe.wasm", "idle"]).detach_with_log();
        let second = node.run(&image).args(&["/probe.wasm", "idle"]).detach_with_log();
        for (_, pid, own) in [&first, &second] {
            for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
                let target = fs::read_link(entry.path()).unwrap();
                let name = target.display().to_string();
                if target.starts_with(node.cache()) {
                    // Its own code, which it maps: to be read, never to be written.
                    let info = fs::read_to_string(entry.path().to_string_lossy().replace("/fd/", "/fdinfo/")).unwrap();
                    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
                    assert_eq!(u32::from_str_radix(flags, 8).unwrap() & 3, 0, "{pid} holds {name} with flags {flags}");
                    continue;
                }
                assert!(!target.starts_with(&node.folder) || target == *own, "{pid} holds {name}");
                if name.starts_with("socket:") {
                    assert_eq!(holders(&name), [*pid], "{pid} holds {name}, which leads to somebody else");
                }
            }
        }
        node.remove(&first.0);
        node.remove(&second.0);
    }

    fn a_guests_memory_holds_nothing_of_another_guest(node) {
        let image = probe();
        node.import(&image);
        let secret = "S3cret-of-the-first-guest-0123456789";
        let (first, pid) = node.run(&image).flag(&["--env", &format!("SECRET={secret}")])
            .args(&["/probe.wasm", "idle"]).detach();
        let holds = |pid: u32| writable_memory(pid).windows(secret.len()).any(|bytes| bytes == secret.as_bytes());
        crate::command::eventually("the first guest holds its own secret", std::time::Duration::from_secs(10),
            || holds(pid).then_some(()));
        let others: Vec<_> = (0..3).map(|_| node.run(&image).args(&["/probe.wasm", "idle"]).detach()).collect();
        for (id, pid) in &others {
            assert!(!holds(*pid), "guest {id} holds the first guest's secret");
        }
        assert!(!holds(crate::server::launcher(node) as u32), "the launcher holds a guest's secret");
        for (id, _) in others.iter().chain([&(first, pid)]) {
            node.remove(id);
        }
    }

    fn a_hundred_guests_draw_no_random_value_twice(node) {
        let mut seen = BTreeSet::new();
        for probe in Probe::WASM {
            let name = format!("random-{}", probe.file().replace(".wasm", ""));
            let image = Image::with_files(&name, &[("/probe.wasm", &probe.bytes())]);
            node.import(&image);
            for _ in 0..34 {
                let said = node.run(&image).args(&["/probe.wasm", "random", "16"]).finish().ok();
                let values: Vec<_> = said.stdout.lines().collect();
                assert_eq!(values.len(), 2, "{said}");
                for value in values {
                    assert!(seen.insert(value.to_owned()), "{probe:?} drew {value}, which was drawn before");
                }
            }
        }
    }

    fn signals_end_a_guest_as_they_would_end_a_process(node) {
        for probe in Probe::WASM {
            let name = format!("signals-{}", probe.file().replace(".wasm", ""));
            let image = Image::with_files(&name, &[("/probe.wasm", &probe.bytes())]);
            node.import(&image);
            for (command, signal, code) in [("idle", "SIGTERM", 143), ("spin", "SIGTERM", 143), ("spin", "SIGINT", 130),
                                            ("idle", "SIGKILL", 137), ("spin", "SIGHUP", 129)] {
                let (id, _) = node.run(&image).args(&["/probe.wasm", command]).detach();
                node.ctr(&["task", "kill", "--signal", signal, &id]).ok();
                node.wait_until(&id, "STOPPED");
                node.ctr(&["task", "kill", "--signal", signal, &id]).expect_refusal(&["already finished"]);
                assert_eq!(node.delete(&id), code, "{probe:?} {command} {signal}");
            }
        }
    }

    fn the_processes_beside_guests_are_one_server_and_one_launcher(node) {
        let image = probe();
        node.import(&image);
        let guests: Vec<_> = (0..3).map(|_| node.run(&image).args(&["/probe.wasm", "idle"]).detach()).collect();
        let all = machine::shim_processes(&node.namespace);
        let described: Vec<_> = all.iter().map(|pid| machine::describe(*pid)).collect();
        assert_eq!(all.len(), guests.len() + 2, "{described:?}");
        assert_eq!(crate::server::pids_of(node, "serve").len(), 1, "{described:?}");
        assert_eq!(crate::server::pids_of(node, "launch").len(), 1 + guests.len(), "guests are forked: {described:?}");
        // Nobody but root reaches the servers' folders.
        let folder = fs::metadata("/run/kubewasi").expect("a server is there");
        assert_eq!(folder.permissions().mode() & 0o077, 0);
        for (id, _) in guests {
            node.remove(&id);
        }
    }
}
