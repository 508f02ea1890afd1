//! An API server and its etcd, for one test.

use std::collections::BTreeMap;
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

/// The administrator's token.
const ADMINISTRATOR: &str = "admin";

/// Ends with its value; so do the processes.
pub struct ControlPlane {
    folder: TempDir,
    processes: Vec<Child>,
    port: u16,
    /// The administrator's.
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
        std::fs::write(&tokens, format!("{ADMINISTRATOR},admin,admin,system:masters\n")).unwrap();
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
        let control_plane = ControlPlane {
            folder,
            processes,
            port: api,
            client: client(api, ADMINISTRATOR).await,
        };
        control_plane.wait_until_ready().await;
        control_plane
    }

    /// A client of whoever has `token`.
    pub async fn client_of(&self, token: &str) -> Client {
        client(self.port, token).await
    }

    /// A kubeconfig of whoever has `token`, under a name of its own.
    pub fn kubeconfig(&self, name: &str, token: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        let new = path.with_extension("new");
        std::fs::write(&new, kubeconfig(self.port, token)).unwrap();
        // A program that was just started may be reading the last one.
        std::fs::rename(&new, &path).unwrap();
        path
    }

    /// How many writes the API server has answered, by resource, but for leases: those are for being renewed.
    pub async fn writes(&self) -> BTreeMap<String, u64> {
        let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
        let metrics = self.client.request_text(request).await.unwrap();
        let mut writes = BTreeMap::new();
        for line in metrics
            .lines()
            .filter(|line| line.starts_with("apiserver_request_total{"))
        {
            let (labels, count) = line.rsplit_once(' ').unwrap();
            let label = |name: &str| {
                let (_, rest) = labels.split_once(&format!("{name}=\"")).unwrap();
                rest.split_once('"').unwrap().0
            };
            if ["GET", "LIST", "WATCH", "CONNECT"].contains(&label("verb")) || label("resource") == "leases" {
                continue;
            }
            *writes.entry(label("resource").to_owned()).or_default() += count.parse::<u64>().unwrap();
        }
        writes
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

async fn client(port: u16, token: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(&kubeconfig(port, token)).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap();
    Client::try_from(config).unwrap()
}

fn kubeconfig(port: u16, token: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Config, current-context: test, \
         clusters: [{{name: test, cluster: {{server: \"https://127.0.0.1:{port}\", insecure-skip-tls-verify: true}}}}], \
         users: [{{name: test, user: {{token: {token}}}}}], \
         contexts: [{{name: test, context: {{cluster: test, user: test}}}}]}}"
    )
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
