//! The cluster under test: the one that KUBECONFIG names.

use std::env;
use std::ffi::{OsStr, OsString};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use kube::Client;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// A cluster, and how to reach it by API and by kubectl.
#[derive(Clone)]
pub struct Cluster {
    pub client: Client,
    kubeconfig: OsString,
}

impl Cluster {
    /// Connects to the cluster of KUBECONFIG. `hack/kind-cluster up` makes one and prints the path.
    pub async fn connect() -> Result<Cluster> {
        let kubeconfig = env::var_os("KUBECONFIG")
            .context("KUBECONFIG is not set: `make e2e` sets it, and so does KUBECONFIG=$(hack/kind-cluster up)")?;
        let client = Client::try_default()
            .await
            .context("KUBECONFIG names no cluster that can be reached")?;
        Ok(Cluster { client, kubeconfig })
    }

    /// The file that programs find the cluster by.
    pub fn kubeconfig(&self) -> &OsStr {
        &self.kubeconfig
    }

    /// kubectl on this cluster, killed when it is dropped.
    pub fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut kubectl = Command::new(env::var_os("KUBECTL").unwrap_or_else(|| "kubectl".into()));
        kubectl
            .env("KUBECONFIG", &self.kubeconfig)
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        kubectl
    }

    /// What kubectl writes to its standard output; anything but success is an error with its standard error.
    pub async fn output_of_kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_with_input(arguments, "").await
    }

    /// As [`Cluster::output_of_kubectl`], with `input` on its standard input.
    pub async fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut child = self
            .kubectl(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start kubectl: is it on PATH, or named by KUBECTL?")?;
        let mut stdin = child.stdin.take().context("kubectl has no stdin")?;
        stdin.write_all(input.as_bytes()).await?;
        drop(stdin);
        let output = child.wait_with_output().await?;
        if !output.status.success() {
            bail!(
                "kubectl {}: {}: {}",
                arguments.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        String::from_utf8(output.stdout).context("kubectl did not write UTF-8")
    }
}
