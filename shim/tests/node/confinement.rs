//! What a guest's process is kept from, seen from outside: other processes' eyes, the node's settings, system calls.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::Mode;
use rustix::process::umask;
use serde_json::{Value, json};

use crate::command::run;
use crate::container::{Run, root_folder, spec};
use crate::containerd::Node;
use crate::guests::Probe;
use crate::sandbox::{idle, status};

/// The files below `folder`.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] })
        .collect()
}

/// The paths in /proc by which `pid` has files of the node's artifact cache open.
#[track_caller]
fn artifacts(node: &Node, pid: u32) -> Vec<PathBuf> {
    let identity = |path: &PathBuf| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let cached: Vec<_> = files(&node.cache()).iter().filter_map(identity).collect();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let found: Vec<PathBuf> = open
        .map(|entry| entry.unwrap().path())
        .filter(|path| identity(path).is_some_and(|file| cached.contains(&file)))
        .collect();
    assert!(!found.is_empty(), "{pid} has no artifact open");
    found
}

/// A shell line run by a root without capabilities.
fn without_capabilities(line: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--inh-caps=-all", "--bounding-set=-all", "sh", "-c", line]);
    command
}

fn limit(pid: u32, name: &str) -> [String; 2] {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let mut words = line.split_whitespace().map(str::to_owned);
    [words.next().unwrap(), words.next().unwrap()]
}

/// A file of the network namespace of `pid`.
fn network_setting(pid: u32, path: &str) -> String {
    let pid = pid.to_string();
    run(Command::new("nsenter").args(["-t", &pid, "-n", "cat", path]))
        .ok()
        .stdout
}

/// One rule of a seccomp profile.
fn rule(names: &[&str], action: &str) -> Value {
    json!({"names": names, "action": action})
}

on_newest_containerd! {
    fn a_guest_cannot_be_looked_into_by_a_process_of_its_user(node) {
        let (id, pid) = idle(node, |spec| {
            spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
            spec["process"]["capabilities"] = json!({});
        });
        assert_eq!(status(pid, "Uid"), "1000 1000 1000 1000");
        for entry in ["fd", "mem", "environ", "maps"] {
            let owner = fs::metadata(format!("/proc/{pid}/{entry}")).unwrap().uid();
            assert_eq!(owner, 0, "{entry}: a process that can be dumped owns its files in /proc");
        }
        node.remove(&id);
    }

    fn a_guest_of_root_cannot_be_looked_into_by_a_root_without_capabilities(node) {
        let (id, pid) = idle(node, |spec| spec["process"]["capabilities"] = json!({}));
        assert_eq!(status(pid, "CapPrm"), status(pid, "CapInh"), "it has no more capabilities than who looks");
        for path in artifacts(node, pid) {
            for way in ["<", ">>", "<>"] {
                let said = run(&mut without_capabilities(&format!("exec 3{way}{}", path.display())));
                said.expect_refusal(&["Permission denied"]);
            }
        }
        run(&mut without_capabilities(&format!("cat /proc/{pid}/environ"))).expect_refusal(&["Permission denied"]);
        node.remove(&id);
    }

    fn the_code_of_a_guest_cannot_be_opened_for_writing_even_by_all_powerful_root(node) {
        for probe in Probe::WASM {
            let root = root_folder(node, &[("probe.wasm", &probe.bytes())]);
            let (id, pid) = Run::of_spec(node, &spec(node, &root, &["/probe.wasm", "idle"])).detach();
            for path in artifacts(node, pid) {
                fs::File::open(&path).unwrap();
                let refused = fs::File::options().write(true).open(&path).unwrap_err();
                assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem, "{probe:?} {}: {refused}", path.display());
            }
            node.remove(&id);
        }
    }

    fn a_guests_process_has_no_new_privileges_no_device_maker_no_core_and_a_plain_mask(node) {
        // What containerd runs with is not what its guests run with.
        node.stop();
        let before = umask(Mode::from_raw_mode(0o007));
        node.start();
        umask(before);
        let (id, pid) = idle(node, |spec| {
            let set = json!(["CAP_CHOWN", "CAP_MKNOD", "CAP_KILL"]);
            spec["process"]["capabilities"] = json!({"bounding": set, "effective": set, "permitted": set,
                                                     "inheritable": set, "ambient": set});
            spec["process"]["noNewPrivileges"] = json!(false);
            spec["linux"]["seccomp"] = Value::Null;
        });
        for name in ["CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&status(pid, name), 16).unwrap(), 1 | (1 << 5), "{name}");
        }
        assert_eq!(status(pid, "NoNewPrivs"), "1");
        assert_eq!(status(pid, "Seccomp"), "2");
        assert_eq!(status(pid, "Umask"), "0022");
        assert_eq!(limit(pid, "Max core file size"), ["0", "0"]);
        node.remove(&id);
        let (id, pid) = idle(node, |spec| spec["process"]["user"] = json!({"uid": 0, "gid": 0, "umask": 0o027}));
        assert_eq!(status(pid, "Umask"), "0027", "the spec's, when it has one");
        node.remove(&id);
    }

    fn a_sysctl_is_set_in_a_namespace_of_the_guests_own(node) {
        let path = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
        let nodes = fs::read_to_string(path).unwrap();
        assert_ne!(nodes, "81\n");
        let (id, pid) = idle(node, |spec| {
            spec["linux"]["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "81", "net/ipv4/ip_forward": "1"});
        });
        assert_eq!(network_setting(pid, path), "81\n");
        assert_eq!(network_setting(pid, "/proc/sys/net/ipv4/ip_forward"), "1\n");
        assert_eq!(fs::read_to_string(path).unwrap(), nodes);
        node.remove(&id);
    }

    fn a_sysctl_of_the_node_is_refused_by_name(node) {
        let root = root_folder(node, &[("probe.wasm", &Probe::P1.bytes())]);
        let refuse = |key: &str, file: &str, edit: &dyn Fn(&mut Value)| {
            let before = fs::read_to_string(file).unwrap();
            let mut spec = spec(node, &root, &["/probe.wasm", "say", "x"]);
            spec["linux"]["sysctl"] = json!({key: "77"});
            edit(&mut spec);
            Run::of_spec(node, &spec).fail().expect_refusal(&["linux.sysctl", key]);
            assert_eq!(fs::read_to_string(file).unwrap(), before, "{key}");
        };
        refuse("vm.swappiness", "/proc/sys/vm/swappiness", &|_| ());
        refuse("net/../vm/swappiness", "/proc/sys/vm/swappiness", &|_| ());
        refuse("net.ipv4.ip_unprivileged_port_start", "/proc/sys/net/ipv4/ip_unprivileged_port_start", &|spec| {
            spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "network");
        });
    }

    fn a_cgroup_with_a_process_in_it_is_refused_and_the_process_lives_on(node) {
        let path = format!("/{}/taken", node.namespace);
        let hierarchy = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(Path::new).into_iter().find(|path| path.exists());
        let folder = hierarchy.unwrap().join(path.trim_start_matches('/'));
        fs::create_dir_all(&folder).unwrap();
        // It bears the test's name, so that it is swept away when the test fails.
        let mut process = Command::new("sh").args(["-c", "read line", &node.namespace]).stdin(Stdio::piped()).spawn().unwrap();
        fs::write(folder.join("cgroup.procs"), process.id().to_string()).unwrap();

        let root = root_folder(node, &[("probe.wasm", &Probe::P1.bytes())]);
        let mut spec = spec(node, &root, &["/probe.wasm", "say", "x"]);
        spec["linux"]["cgroupsPath"] = path.clone().into();
        Run::of_spec(node, &spec).fail().expect_refusal(&["linux.cgroupsPath", &path]);
        assert!(process.try_wait().unwrap().is_none(), "the process was ended");
        let members = fs::read_to_string(folder.join("cgroup.procs")).unwrap();
        assert_eq!(members.trim(), process.id().to_string());
        process.kill().unwrap();
        process.wait().unwrap();
        fs::remove_dir(&folder).unwrap();

        spec["linux"]["cgroupsPath"] = "/".into();
        Run::of_spec(node, &spec).fail().expect_refusal(&["linux.cgroupsPath", "root cgroup"]);
    }

    fn a_profile_that_lets_little_through_is_installed_whole(node) {
        let root = root_folder(node, &[("probe.wasm", &Probe::P1.bytes())]);
        let mut spec = spec(node, &root, &["/probe.wasm", "idle"]);
        // Neither prctl nor seccomp, which install the filters, is among what the profile allows.
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            rule(&LITTLE, "SCMP_ACT_ALLOW"), rule(&["linkat"], "SCMP_ACT_KILL_PROCESS"),
        ]});
        let (id, pid) = Run::of_spec(node, &spec).detach();
        assert_eq!(status(pid, "Seccomp_filters"), "4", "two of every guest, one for each action of the profile");
        node.remove(&id);
        spec["process"]["args"] = json!(["/probe.wasm", "say", "said"]);
        assert_eq!(Run::of_spec(node, &spec).finish().ok().stdout, "said\n");
        spec["process"]["args"] = json!(["/probe.wasm", "write", "/new", "x"]);
        Run::of_spec(node, &spec).finish().expect_code(1).expect_error(&["probe write"]);
    }

    fn a_profile_that_denies_opening_makes_a_guests_open_fail(node) {
        let root = root_folder(node, &[("probe.wasm", &Probe::P1.bytes()), ("file", b"text")]);
        let read = |profile: Value| {
            let mut spec = spec(node, &root, &["/probe.wasm", "read", "/file"]);
            spec["linux"]["seccomp"] = profile;
            Run::of_spec(node, &spec).finish()
        };
        let allow = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []});
        assert_eq!(read(allow).ok().stdout, "text");
        let denied = |calls: &[&str]| {
            let mut deny = rule(calls, "SCMP_ACT_ERRNO");
            // EACCES, which is not what anything else here says.
            deny["errnoRet"] = json!(13);
            read(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [deny]}))
        };
        // The call by which a guest's files are opened; by openat it is given its folders.
        denied(&["openat2"]).expect_code(1).expect_error(&["probe read: Permission denied"]);
        let finished = denied(&["open", "openat", "openat2"]).expect_error(&["Permission denied"]);
        assert_ne!(finished.code, Some(0), "{finished}");
        assert_eq!(finished.stdout, "", "{finished}");
    }

    fn a_label_of_a_security_module_that_the_node_does_not_have_is_refused_by_name(node) {
        let root = root_folder(node, &[("probe.wasm", &Probe::P1.bytes())]);
        let refuse = |edit: &dyn Fn(&mut Value), words: &[&str]| {
            let mut spec = spec(node, &root, &["/probe.wasm", "say", "x"]);
            edit(&mut spec);
            Run::of_spec(node, &spec).fail().expect_refusal(words);
        };
        if !Path::new("/sys/kernel/security/apparmor").exists() {
            refuse(&|spec| spec["process"]["apparmorProfile"] = json!("web"), &["process.apparmorProfile", "web", "AppArmor"]);
        }
        if !Path::new("/sys/fs/selinux/enforce").exists() {
            refuse(&|spec| spec["process"]["selinuxLabel"] = json!("a:b:c"), &["process.selinuxLabel", "a:b:c", "SELinux"]);
            refuse(&|spec| spec["linux"]["mountLabel"] = json!("a:b:d"), &["linux.mountLabel", "a:b:d", "SELinux"]);
        }
    }

    fn a_profile_that_needs_a_supervisor_is_refused_by_name(node) {
        let root = root_folder(node, &[("probe.wasm", &Probe::P1.bytes())]);
        let mut spec = spec(node, &root, &["/probe.wasm", "say", "x"]);
        for action in ["SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE"] {
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule(&["openat"], action)]});
            Run::of_spec(node, &spec).fail().expect_refusal(&["linux.seccomp", action]);
        }
    }
}

/// What a guest needs that only speaks: no call that changes a file system.
const LITTLE: [&str; 34] = [
    "brk",
    "mmap",
    "munmap",
    "mremap",
    "mprotect",
    "madvise",
    "read",
    "write",
    "readv",
    "writev",
    "close",
    "exit",
    "exit_group",
    "futex",
    "clock_gettime",
    "clock_nanosleep",
    "nanosleep",
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_wait",
    "eventfd2",
    "getrandom",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sigaltstack",
    "fstat",
    "statx",
    "fcntl",
    "poll",
    "ppoll",
    "openat",
    "open",
];
