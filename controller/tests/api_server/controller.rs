//! The controller's own process.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use kubewasi_testbed::binary;

use crate::control_plane::{ControlPlane, free_port};
use crate::package;

/// A controller; it is killed with its value, as by a node that dies.
pub struct Controller {
    process: Child,
    port: u16,
}

impl Controller {
    /// Starts one, under a name of its own in the lease.
    pub async fn start(control_plane: &ControlPlane, name: &str) -> Controller {
        Controller::start_with(control_plane, name, &[]).await
    }

    /// Starts one that ends at once after a write of this kind.
    pub async fn start_with_fault(control_plane: &ControlPlane, name: &str, after: &str) -> Controller {
        Controller::start_with(control_plane, name, &[("KUBEWASI_FAULT_AFTER", after)]).await
    }

    /// Starts one with these environment variables beside.
    pub async fn start_with(control_plane: &ControlPlane, name: &str, environment: &[(&str, &str)]) -> Controller {
        let port = free_port();
        let process = command(control_plane)
            .await
            .arg("run")
            .args(["--namespace=kubewasi", "--agent-image=registry/agent:1"])
            .arg(format!("--identity={name}"))
            .arg(format!("--listen=127.0.0.1:{port}"))
            .envs(environment.iter().copied())
            .spawn()
            .unwrap();
        Controller { process, port }
    }

    /// Whether and how it ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().unwrap()
    }

    /// Whether it ended itself at its fault point.
    pub fn aborted(&mut self) -> bool {
        // SIGABRT.
        self.ended().is_some_and(|status| status.signal() == Some(6))
    }

    /// Asks it to end, and waits for it.
    pub fn terminate(mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.process.wait().unwrap()
    }

    /// The body of one of its endpoints, or nothing before it listens.
    pub async fn get(&self, path: &str) -> Option<String> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: controller\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs the hook of `helm uninstall`, while the test's agents go on.
pub async fn uninstall(control_plane: &ControlPlane, seconds: u32) -> Output {
    tokio::process::Command::from(command(control_plane).await)
        .args(["uninstall", &format!("--timeout={seconds}")])
        .stderr(Stdio::piped())
        .output()
        .await
        .unwrap()
}

/// The controller's command, with the rights that the package gives it.
async fn command(control_plane: &ControlPlane) -> Command {
    let token = package::token(&control_plane.client, "kubewasi-controller", None).await;
    let mut command = Command::new(binary::under_test(
        "kubewasi-controller",
        env!("CARGO_BIN_EXE_kubewasi-controller"),
    ));
    command
        .env("KUBECONFIG", control_plane.kubeconfig("controller", &token))
        .env_remove("KUBEWASI_FAULT_AFTER")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    if std::env::var_os("KUBEWASI_TEST_LOG").is_some() {
        command.stderr(Stdio::inherit());
    } else {
        command.stderr(Stdio::null());
    }
    command
}
