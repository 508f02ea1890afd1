//! The harness itself: it runs containers, and it sees what is left.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use crate::container::{Run, root_folder, spec};
use crate::guests::Probe;
use crate::image_builder::Image;
use crate::machine::Machine;

fn native_probe() -> Image {
    Image::with_files("native", &[("/probe", &Probe::Native.bytes())])
}

on_every_containerd! {
    fn a_runc_container_runs_and_leaves_nothing(node) {
        let image = native_probe();
        node.import(&image);
        let said = node.run(&image).runtime("io.containerd.runc.v2").args(&["/probe", "say", "out", "err"]).finish().ok();
        assert_eq!(said.stdout, "out\n");
        assert_eq!(said.stderr, "err\n");
        node.run(&image).runtime("io.containerd.runc.v2").args(&["/probe", "exit", "7"]).finish().expect_code(7);
        let echo = node.run(&image).runtime("io.containerd.runc.v2").args(&["/probe", "cat"]).stdin(b"ping").finish().ok();
        assert_eq!(echo.stdout, "ping");
    }

    fn a_spec_from_a_file_is_run_as_it_is(node) {
        let root = root_folder(node, &[("probe", &Probe::Native.bytes())]);
        std::os::unix::fs::chown(root.join("probe"), Some(0), Some(0)).unwrap();
        let mut permissions = fs::metadata(root.join("probe")).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
        fs::set_permissions(root.join("probe"), permissions).unwrap();
        let mut spec = spec(node, &root, &["/probe", "cwd"]);
        spec["process"]["cwd"] = "/tmp".into();
        fs::create_dir(root.join("tmp")).unwrap();
        let said = Run::of_spec(node, &spec).runtime("io.containerd.runc.v2").finish().ok();
        assert_eq!(said.stdout, "/tmp\n");
    }

    fn whatever_is_left_is_named(node) {
        let mark = node.namespace.clone();
        let before = Machine::look(&mark);
        let mut process = Command::new("/bin/sh")
            .args(["-c", "echo; read line", &mark]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Until then it may have no arguments: the kernel sets them after it has closed what exec closes.
        process.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let cgroup = std::path::Path::new("/sys/fs/cgroup/pids").join(&mark).join("left");
        fs::create_dir_all(&cgroup).unwrap();
        let mount = node.folder.join("mount");
        fs::create_dir(&mount).unwrap();
        rustix::mount::mount("none", &mount, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        let socket = node.folder.join("left.sock");
        drop(UnixListener::bind(&socket).unwrap());

        let left = Machine::look(&mark).since(&before).join("\n");
        for what in [format!("process {}", process.id()), format!("cgroup {}", cgroup.display()),
                     format!("mount {}", mount.display()), format!("socket or fifo {}", socket.display())] {
            assert!(left.contains(&what), "{what} is not in:\n{left}");
        }
        process.kill().unwrap();
        process.wait().unwrap();
        fs::remove_dir(&cgroup).unwrap();
        rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::empty()).unwrap();
        fs::remove_file(socket).unwrap();
    }
}
