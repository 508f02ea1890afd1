//! Docker, which runs the shim through a containerd of its own: a service on the bridge network is reached by a published
//! port.
//!
//! `make test-docker` runs these tests, in a network namespace of their own: all but Debian's dockerd are built from source.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kubewasi_testbed::script::hack;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};

use crate::command::{Finished, eventually, run};
use crate::container::root_folder;
use crate::containerd::{Node, Version};
use crate::guests::{Probe, Service};

const WASI: &str = "io.containerd.wasi.v1";

/// A dockerd on a node's containerd.
struct Docker {
    socket: String,
    folder: PathBuf,
    daemon: Child,
}

impl Docker {
    #[track_caller]
    fn start(node: &Node, version: &str) -> Docker {
        let binaries = hack("build-docker", &[version]);
        let folder = node.folder.join("docker");
        fs::create_dir_all(&folder).unwrap();
        let file = File::create(folder.join("log")).unwrap();
        let socket = format!("unix://{}", folder.join("docker.sock").display());
        let shims = node.shim().parent().unwrap().to_owned();
        let path = [
            shims.as_path(),
            &binaries,
            "/usr/sbin".as_ref(),
            "/usr/bin".as_ref(),
            "/sbin".as_ref(),
            "/bin".as_ref(),
        ];
        let mut command = Command::new(binaries.join("dockerd"));
        command
            // No firewall: docker-proxy serves the published ports.
            .args([
                "--iptables=false",
                "--ip6tables=false",
                "--storage-driver",
                "vfs",
                "--bip",
                "10.231.8.1/24",
            ])
            .args(["--host", &socket, "--cgroup-parent", &format!("/{}", node.namespace)])
            .arg("--containerd")
            .arg(node.socket())
            .arg("--data-root")
            .arg(folder.join("data"))
            .arg("--exec-root")
            .arg(folder.join("exec"))
            .arg("--pidfile")
            .arg(folder.join("pid"))
            .env("PATH", std::env::join_paths(path).unwrap())
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        if !version.starts_with("20.") {
            command.arg("--feature").arg("containerd-snapshotter=false");
        }
        let daemon = command.spawn().unwrap();
        let docker = Docker { socket, folder, daemon };
        eventually("dockerd answers", Duration::from_secs(60), || {
            (docker.run(&["info"]).code == Some(0)).then_some(())
        });
        docker
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> Finished {
        run(Command::new("docker").args(["--host", &self.socket]).args(args))
    }

    /// An image of one program at `/app.wasm`.
    #[track_caller]
    fn import(&self, node: &Node, name: &str, program: &[u8]) {
        let root = root_folder(
            node,
            &[("app.wasm", program), ("etc/passwd", b"root:x:0:0::/root:/bin/sh\n")],
        );
        let archive = root.with_extension("tar");
        run(Command::new("tar")
            .arg("-C")
            .arg(&root)
            .arg("-cf")
            .arg(&archive)
            .arg("."))
        .ok();
        let entry_point = "ENTRYPOINT [\"/app.wasm\"]";
        let archive = archive.display().to_string();
        self.run(&[
            "import",
            "--change",
            entry_point,
            "--change",
            "ENV FROM=image",
            "--change",
            "WORKDIR /srv/app",
            &archive,
            name,
        ])
        .ok();
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.daemon), Signal::TERM);
        let _ = self.daemon.wait();
        let _ = run(Command::new("ip").args(["link", "delete", "docker0"]));
        // A mount on itself, which it leaves behind.
        let _ = rustix::mount::unmount(self.folder.join("data"), UnmountFlags::DETACH);
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("--- the end of dockerd's log");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

fn get(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .ok()?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).ok()?;
    (!reply.is_empty()).then_some(reply)
}

/// What users of Docker do, on `version`, which calls the shim `runtime`.
fn scenario(node: &Node, version: &str, runtime: &str) {
    let docker = Docker::start(node, version);
    docker.import(node, "service", &Service::Http02.bytes());
    docker.import(node, "probe", &Probe::P1.bytes());

    let started = docker
        .run(&[
            "run",
            "-d",
            "--name",
            "web",
            "-p",
            "127.0.0.1:18080:8080",
            "--runtime",
            runtime,
            "service",
        ])
        .ok();
    assert!(!started.stdout.is_empty());
    let reply = eventually(
        "the service answers at the published port",
        Duration::from_secs(30),
        || get(18080),
    );
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    docker.run(&["rm", "--force", "web"]).ok();

    let said = docker
        .run(&["run", "--rm", "--runtime", runtime, "-e", "FROM=client", "probe", "env"])
        .ok();
    let lines: Vec<&str> = said.stdout.lines().collect();
    assert!(
        lines.contains(&"FROM=client") && lines.contains(&"HOME=/root"),
        "{said}"
    );
    assert!(!lines.contains(&"FROM=image"), "{said}");
    docker
        .run(&["run", "--rm", "--runtime", runtime, "probe", "exit", "7"])
        .expect_code(7);
}

#[test]
#[ignore = "needs dockerd: make test-docker"]
fn a_service_is_published_by_docker_20_10() {
    // It takes no other runtime than this, which is containerd's to find by the name of its binary.
    Node::with(Version::V1_6, |node| {
        fs::hard_link(node.shim(), node.shim().with_file_name("containerd-shim-runc-v2")).unwrap();
        scenario(node, "20.10", "io.containerd.runc.v2");
    });
}

#[test]
#[ignore = "needs dockerd, which is built from source: make test-docker"]
fn a_service_is_published_by_docker_27() {
    Node::with(Version::V1_7, |node| scenario(node, "27.5.1", WASI));
}

#[test]
#[ignore = "needs dockerd, which is built from source: make test-docker"]
fn a_service_is_published_by_docker_28() {
    Node::with(Version::V1_7, |node| scenario(node, "28.5.2", WASI));
}

#[test]
#[ignore = "needs dockerd, which is built from source: make test-docker"]
fn a_service_is_published_by_moby_2() {
    Node::with(Version::V2_4, |node| scenario(node, "2.0.0-beta.3", WASI));
}
