//! An API server and its etcd, for one test.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tempfile::TempDir;

/// Long enough for a machine that builds something beside.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Ends with its value; so do the processes.
pub struct ControlPlane {
    folder: TempDir,
    processes: Vec<Child>,
    pub client: Client,
}

impl ControlPlane {
    /// Starts both, and waits until the API server is ready.
    pub async fn start() -> ControlPlane {
        let folder = tempfile::tempdir().unwrap();
        let (etcd, peer, api) = (free_port(), free_port(), free_port());
        let etcd_url = format!("http://127.0.0.1:{etcd}");
        let peer_url = format!("http://127.0.0.1:{peer}");
        let mut processes = Vec::new();
        processes.push(spawn(
            folder.path(),
            "etcd",
            &[
                ("data-dir", folder.path().join("etcd").to_str().unwrap()),
                ("listen-client-urls", &etcd_url),
                ("advertise-client-urls", &etcd_url),
                ("listen-peer-urls", &peer_url),
                ("initial-advertise-peer-urls", &peer_url),
                ("initial-cluster", &format!("default={peer_url}")),
                ("unsafe-no-fsync", "true"),
            ],
        ));
        let key = folder.path().join("service-accounts.key");
        let made = Command::new("openssl")
            .args(["ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out"])
            .arg(&key)
            .status()
            .unwrap();
        assert!(made.success(), "openssl makes no key");
        let tokens = folder.path().join("tokens.csv");
        std::fs::write(&tokens, "admin,admin,admin,system:masters\n").unwrap();
        processes.push(spawn(
            folder.path(),
            "kube-apiserver",
            &[
                ("etcd-servers", &etcd_url),
                ("bind-address", "127.0.0.1"),
                ("secure-port", &api.to_string()),
                ("cert-dir", folder.path().join("certificates").to_str().unwrap()),
                ("token-auth-file", tokens.to_str().unwrap()),
                ("authorization-mode", "RBAC"),
                ("service-account-issuer", "https://kubernetes.default"),
                ("service-account-key-file", key.to_str().unwrap()),
                ("service-account-signing-key-file", key.to_str().unwrap()),
                ("service-cluster-ip-range", "10.96.0.0/16"),
                // Nobody makes the accounts that this one asks for.
                ("disable-admission-plugins", "ServiceAccount"),
            ],
        ));
        let kubeconfig = format!(
            "{{apiVersion: v1, kind: Config, current-context: test, \
             clusters: [{{name: test, cluster: {{server: \"https://127.0.0.1:{api}\", insecure-skip-tls-verify: true}}}}], \
             users: [{{name: test, user: {{token: admin}}}}], \
             contexts: [{{name: test, context: {{cluster: test, user: test}}}}]}}"
        );
        std::fs::write(folder.path().join("kubeconfig"), &kubeconfig).unwrap();
        let kubeconfig = Kubeconfig::from_yaml(&kubeconfig).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .unwrap();
        let control_plane = ControlPlane {
            folder,
            processes,
            client: Client::try_from(config).unwrap(),
        };
        control_plane.wait_until_ready().await;
        control_plane
    }

    /// A kubeconfig of the administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    async fn wait_until_ready(&self) {
        let ready = async {
            loop {
                let request = http::Request::get("/readyz").body(Vec::new()).unwrap();
                if self
                    .client
                    .request_text(request)
                    .await
                    .is_ok_and(|answer| answer == "ok")
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, ready).await.is_err() {
            let log = std::fs::read_to_string(self.folder.path().join("kube-apiserver.log")).unwrap_or_default();
            panic!("the API server does not get ready:\n{log}");
        }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // The API server first: without its etcd it would retry.
        for process in self.processes.iter_mut().rev() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

fn spawn(folder: &Path, command: &str, flags: &[(&str, &str)]) -> Child {
    let log = std::fs::File::create(folder.join(format!("{command}.log"))).unwrap();
    Command::new(binaries().join(command))
        .args(flags.iter().map(|(name, value)| format!("--{name}={value}")))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// The folder with both programs, which are built when they are first needed.
fn binaries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let hack = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack/kubernetes");
        let output = Command::new(hack)
            .args(["etcd", "kube-apiserver"])
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "hack/kubernetes failed");
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    })
}

/// A port that was free just now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
