//! What a guest that is out of its wasm sandbox would try: system calls that our filter forbids, and files of the kernel.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{CWD, FileType, Mode, StatVfsMountFlags, makedev, mknodat, statvfs};
use serde_json::{Value, json};

use crate::container::{Run, root_folder, spec};
use crate::cri;
use crate::guests::Probe;
use crate::image_builder::Image;
use crate::sandbox::{idle, status};
use crate::server;
use crate::tracer::Tracee;

/// Calls that no guest makes, whatever their arguments: none may say anything but EPERM.
const FORBIDDEN: [(&str, libc::c_long); 69] = [
    ("acct", libc::SYS_acct),
    ("add_key", libc::SYS_add_key),
    ("adjtimex", libc::SYS_adjtimex),
    ("bpf", libc::SYS_bpf),
    ("capset", libc::SYS_capset),
    ("chdir", libc::SYS_chdir),
    ("chroot", libc::SYS_chroot),
    ("clock_settime", libc::SYS_clock_settime),
    ("clone3", libc::SYS_clone3),
    ("delete_module", libc::SYS_delete_module),
    ("execve", libc::SYS_execve),
    ("execveat", libc::SYS_execveat),
    ("fanotify_init", libc::SYS_fanotify_init),
    ("fchdir", libc::SYS_fchdir),
    ("fchmod", libc::SYS_fchmod),
    ("fchownat", libc::SYS_fchownat),
    ("finit_module", libc::SYS_finit_module),
    ("fork", libc::SYS_fork),
    ("fsconfig", libc::SYS_fsconfig),
    ("fsmount", libc::SYS_fsmount),
    ("fsopen", libc::SYS_fsopen),
    ("init_module", libc::SYS_init_module),
    ("io_uring_enter", libc::SYS_io_uring_enter),
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("ioperm", libc::SYS_ioperm),
    ("iopl", libc::SYS_iopl),
    ("kexec_load", libc::SYS_kexec_load),
    ("keyctl", libc::SYS_keyctl),
    ("kill", libc::SYS_kill),
    ("landlock_create_ruleset", libc::SYS_landlock_create_ruleset),
    ("memfd_secret", libc::SYS_memfd_secret),
    ("mknodat", libc::SYS_mknodat),
    ("mount", libc::SYS_mount),
    ("mount_setattr", libc::SYS_mount_setattr),
    ("move_mount", libc::SYS_move_mount),
    ("name_to_handle_at", libc::SYS_name_to_handle_at),
    ("open_by_handle_at", libc::SYS_open_by_handle_at),
    ("open_tree", libc::SYS_open_tree),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("personality", libc::SYS_personality),
    ("pidfd_getfd", libc::SYS_pidfd_getfd),
    ("pidfd_open", libc::SYS_pidfd_open),
    ("pidfd_send_signal", libc::SYS_pidfd_send_signal),
    ("pivot_root", libc::SYS_pivot_root),
    ("pkey_mprotect", libc::SYS_pkey_mprotect),
    ("prlimit64", libc::SYS_prlimit64),
    ("process_madvise", libc::SYS_process_madvise),
    ("process_vm_readv", libc::SYS_process_vm_readv),
    ("process_vm_writev", libc::SYS_process_vm_writev),
    ("ptrace", libc::SYS_ptrace),
    ("quotactl", libc::SYS_quotactl),
    ("reboot", libc::SYS_reboot),
    ("remap_file_pages", libc::SYS_remap_file_pages),
    ("sendmsg", libc::SYS_sendmsg),
    ("setgid", libc::SYS_setgid),
    ("setns", libc::SYS_setns),
    ("setresuid", libc::SYS_setresuid),
    ("setuid", libc::SYS_setuid),
    ("shmget", libc::SYS_shmget),
    ("socket", libc::SYS_socket),
    ("socketpair", libc::SYS_socketpair),
    ("swapon", libc::SYS_swapon),
    ("tgkill", libc::SYS_tgkill),
    ("tkill", libc::SYS_tkill),
    ("umount2", libc::SYS_umount2),
    ("unshare", libc::SYS_unshare),
    ("userfaultfd", libc::SYS_userfaultfd),
    ("vfork", libc::SYS_vfork),
    ("vmsplice", libc::SYS_vmsplice),
];

const EPERM: i64 = -(libc::EPERM as i64);

on_newest_containerd! {
    fn a_guests_process_cannot_make_a_call_that_leaves_its_sandbox(node) {
        // All that a pod can give: a root with every capability that there is, and no profile of its own.
        let (id, pid) = idle(node, |spec| {
            let all = u64::from_str_radix(&status(std::process::id(), "CapBnd"), 16).unwrap();
            let names: Vec<String> = (0..64).filter(|number| all & (1 << number) != 0).filter_map(capability).collect();
            spec["process"]["capabilities"] = json!({"bounding": names, "effective": names, "permitted": names});
            spec["linux"]["seccomp"] = Value::Null;
        });
        let guest = Tracee::stop(pid);
        assert_eq!(guest.call(libc::SYS_getpid, [0; 6]), 1, "a call that is allowed, by the first process of its namespace");
        for (name, number) in FORBIDDEN {
            assert_eq!(guest.call(number, [0; 6]), EPERM, "{name}");
        }
        // The x32 ones of all calls, and one that no kernel has.
        for number in [libc::SYS_read, libc::SYS_getpid, libc::SYS_execve] {
            assert_eq!(guest.call(number | 0x4000_0000, [0; 6]), EPERM, "x32 {number}");
        }
        assert_eq!(guest.call(4000, [0; 6]), EPERM);

        let page = 4096;
        let (private, anonymous) = (libc::MAP_PRIVATE as u64, libc::MAP_ANONYMOUS as u64);
        let map = |protection: i32| {
            guest.call(libc::SYS_mmap, [0, page, protection as u64, private | anonymous, u64::MAX, 0])
        };
        let (writable, executable) = (libc::PROT_READ | libc::PROT_WRITE, libc::PROT_READ | libc::PROT_EXEC);
        assert_eq!(map(executable), EPERM);
        let memory = map(writable);
        assert!(memory > 0, "{memory}");
        let protect = |protection: i32| guest.call(libc::SYS_mprotect, [memory as u64, page, protection as u64, 0, 0, 0]);
        assert_eq!(protect(libc::PROT_READ), 0);
        assert_eq!(protect(executable), EPERM, "memory never becomes executable");

        let refused = |name: &str, number: libc::c_long, arguments: [u64; 6]| {
            assert_eq!(guest.call(number, arguments), EPERM, "{name}");
        };
        refused("a process", libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0, 0]);
        refused("a user namespace", libc::SYS_clone, [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0]);
        refused("to be dumpable", libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1, 0, 0, 0, 0]);
        refused("to outlive the server", libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, 0, 0, 0, 0, 0]);
        refused("to be traced", libc::SYS_prctl, [libc::PR_SET_PTRACER as u64, u64::MAX, 0, 0, 0, 0]);
        refused("to type", libc::SYS_ioctl, [0, libc::TIOCSTI as u64, memory as u64, 0, 0, 0]);
        refused("to have signals sent", libc::SYS_fcntl, [0, libc::F_SETOWN as u64, 1, 0, 0, 0]);
        refused("to have signals sent", libc::SYS_fcntl, [0, libc::F_SETFL as u64, libc::O_ASYNC as u64, 0, 0, 0]);
        let socket = |name: &str, family: i32, kind: i32, protocol: i32| {
            refused(name, libc::SYS_socket, [family as u64, kind as u64, protocol as u64, 0, 0, 0]);
        };
        socket("a unix socket", libc::AF_UNIX, libc::SOCK_STREAM, 0);
        socket("a netlink socket", libc::AF_NETLINK, libc::SOCK_RAW, 0);
        socket("a packet socket", libc::AF_PACKET, libc::SOCK_RAW, 0);
        socket("a raw socket", libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP);
        socket("a ping socket", libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP);
        socket("an SCTP socket", libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_SCTP);
        let option = |level: i32, name: i32| [0, level as u64, name as u64, 0, 0, 0];
        refused("to filter packets", libc::SYS_setsockopt, option(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER));
        refused("to leave by a device", libc::SYS_setsockopt, option(libc::SOL_SOCKET, libc::SO_BINDTODEVICE));
        let tcp = [libc::AF_INET as u64, (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as u64, 0, 0, 0, 0];
        assert!(guest.call(libc::SYS_socket, tcp) > 0, "a TCP socket is allowed");
        drop(guest);
        assert_eq!(node.task(&id), Some((pid, "RUNNING".into())), "it was refused, not ended");
        node.remove(&id);
    }

    fn no_file_of_the_kernel_is_found_by_a_guest_that_looks_everywhere(node) {
        cri::give_networks(node);
        cri::prepare(node);
        // Symlinks of the image and of a volume lead to where the kernel's files are in any other container.
        let mut image = Image::with_files("seek", &[("/probe.wasm", &Probe::P2.bytes()), ("/deep/er/file", b"")])
            .symlink("/deep/proc", "/proc").symlink("/deep/er/up", "../../../../proc").symlink("/round", ".")
            .symlink("/self", "/proc/self").symlink("/cgroup", "/sys/fs/cgroup").symlink("/deep/dev", "../dev");
        image = image.config("User", "0".into());
        node.import_into(&image, "k8s.io").ok();
        let volume = node.folder.join("volume");
        fs::create_dir_all(volume.join("folder")).unwrap();
        for (link, target) in [("proc", "/proc"), ("folder/sys", "../../../sys"), ("fds", "/proc/self/fd"), ("host", "/")] {
            std::os::unix::fs::symlink(target, volume.join(link)).unwrap();
        }
        mknodat(CWD, volume.join("folder/null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 3)).unwrap();
        for all in [false, true] {
            let edit = |pod: &mut cri::Pod| {
                for part in [&mut pod.sandbox, &mut pod.container] {
                    let context = &mut part["linux"]["security_context"];
                    context["privileged"] = all.into();
                    let mode = if all { 2 } else { 1 };
                    context["namespace_options"] = json!({"network": 2, "pid": mode, "ipc": 2});
                }
                pod.container["mounts"] = json!([{"host_path": volume, "container_path": "/volume"},
                                                 {"host_path": volume, "container_path": "/proc"}]);
            };
            cri::with_edited_pod(node, &image.name, &["/probe.wasm", "seek"], edit, |id, log| {
                assert_eq!(cri::exit_code(node, id), 0);
                let said = fs::read_to_string(log).unwrap();
                assert!(said.contains("looked into ") && !said.contains("found "), "{said}");
                fs::remove_file(log).unwrap();
            });
        }
        // What the probe looks for, it finds where it is.
        let root = root_folder(node, &[("probe.wasm", &Probe::P2.bytes()), ("deep/self/mem", b"")]);
        let said = Run::of_spec(node, &spec(node, &root, &["/probe.wasm", "seek"])).finish().ok().stdout;
        assert!(said.contains("found /deep/self/mem"), "{said}");
    }

    fn nobody_reaches_the_hosts_files_for_writing_by_what_a_guest_has_of_them(node) {
        let image = Image::with_files("exe", &[("/probe.wasm", &Probe::P1.bytes())]);
        node.import(&image);
        let (id, pid) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        let is_read_only = |path: &str| statvfs(path).unwrap().f_flag.contains(StatVfsMountFlags::RDONLY);
        // The shim's own file, and the device that stands for a stream that is nowhere: chmod(2) would reach the host's.
        for (guests, hosts) in [("exe", format!("/proc/{}/exe", server::pid(node))), ("fd/0", "/dev/null".to_owned())] {
            let guests = format!("/proc/{pid}/{guests}");
            let inode = |path: &str| fs::metadata(path).unwrap().ino();
            assert_eq!(inode(&guests), inode(&hosts));
            assert!(is_read_only(&guests) && !is_read_only(&hosts), "{guests}");
        }
        node.remove(&id);
    }

    fn folders_of_the_kernel_are_refused_as_volumes_by_name(node) {
        cri::prepare(node);
        let image = Image::with_files("kernel", &[("/probe.wasm", &Probe::P1.bytes())]);
        node.import_into(&image, "k8s.io").ok();
        for (host, kind) in [("/proc", "proc"), ("/sys", "sysfs"), ("/dev", "devtmpfs"), ("/", "proc"),
                             ("/sys/fs/cgroup", "cgroup"), ("/proc/self", "proc"), ("/dev/null", "device")] {
            let mut pod = cri::Pod::new(node, &image.name, &["/probe.wasm", "seek"]);
            pod.container["mounts"] = json!([{"host_path": host, "container_path": "/volume"}]);
            pod.fail(node, &["/volume", kind]);
        }
    }
}

/// The name of a capability by its number (capabilities(7)).
fn capability(number: u32) -> Option<String> {
    let set = rustix::thread::CapabilitySet::from_bits(1 << number)?;
    let (name, _) = set.iter_names().next()?;
    Some(format!("CAP_{name}"))
}
