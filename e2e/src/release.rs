//! The chart as its users install it: by helm, with the images that were built for the tests.

use std::env;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::cluster::Cluster;
use crate::namespace::images;
use crate::runtime;

/// The release's name, its namespace's too.
pub const NAME: &str = "kubewasi";

/// The name of the release's own WasmRuntime, of its handler and of its RuntimeClass.
pub const RUNTIME: &str = "wasi";

/// How long helm may take.
const LIMIT: Duration = Duration::from_secs(240);

/// Installs the release, or upgrades the one that is there; `spec` is laid over the WasmRuntime's of e2e/values.yaml.
pub async fn apply(cluster: &Cluster, spec: Value) -> Result<()> {
    apply_replicas(cluster, 1, spec).await
}

/// As [`apply`], with so many controllers.
pub async fn apply_replicas(cluster: &Cluster, replicas: usize, spec: Value) -> Result<()> {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/kubewasi");
    let values = concat!(env!("CARGO_MANIFEST_DIR"), "/values.yaml");
    let over = json!({
        "image": {"registry": images()},
        "controller": {"replicas": replicas},
        "runtime": {"spec": spec},
    });
    let timeout = format!("{}s", LIMIT.as_secs());
    let mut arguments = vec![
        "upgrade",
        "--install",
        NAME,
        chart,
        "--create-namespace",
        "--reset-values",
    ];
    arguments.extend(["--values", values, "--values", "-", "--wait", "--timeout", &timeout]);
    helm(cluster, &arguments, &over.to_string()).await?;
    Ok(())
}

/// Lays `spec` over what the WasmRuntime has, as who edits it does: helm's next upgrade will not like that.
pub async fn edit(cluster: &Cluster, spec: Value) -> Result<()> {
    let patch = json!({"spec": spec}).to_string();
    let arguments = ["patch", "wasmruntime", RUNTIME, "--type=merge", "--patch", &patch];
    cluster.output_of_kubectl(&arguments).await?;
    Ok(())
}

/// As [`apply`], and waits until every node proved what the spec says.
pub async fn ready(cluster: &Cluster, spec: Value) -> Result<()> {
    apply(cluster, spec).await?;
    runtime::settled(cluster, RUNTIME).await?;
    Ok(())
}

/// The lines of the controller's metrics whose names are `kubewasi_` and then `name`.
pub async fn controller_metrics(cluster: &Cluster, name: &str) -> Result<Vec<String>> {
    let path = format!("/api/v1/namespaces/{NAME}/services/kubewasi-controller:http/proxy/metrics");
    let metrics = cluster.output_of_kubectl(&["get", "--raw", &path]).await?;
    let wanted = format!("kubewasi_{name}");
    let lines = metrics.lines().filter(|line| line.starts_with(&wanted));
    Ok(lines.map(str::to_owned).collect())
}

/// Takes the release away, which fails while wasm pods run.
pub async fn uninstall(cluster: &Cluster) -> Result<()> {
    let timeout = format!("{}s", LIMIT.as_secs());
    helm(cluster, &["uninstall", NAME, "--wait", "--timeout", &timeout], "").await?;
    Ok(())
}

/// As [`uninstall`], if there is a release.
pub async fn absent(cluster: &Cluster) -> Result<()> {
    let timeout = format!("{}s", LIMIT.as_secs());
    let arguments = ["uninstall", NAME, "--ignore-not-found", "--wait", "--timeout", &timeout];
    helm(cluster, &arguments, "").await?;
    Ok(())
}

/// `helm test`: what the release's own test pod wrote is in the answer.
pub async fn test(cluster: &Cluster) -> Result<String> {
    helm(cluster, &["test", NAME, "--logs"], "").await
}

/// What helm writes to its standard output; anything but success is an error with its standard error.
async fn helm(cluster: &Cluster, arguments: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new(env::var_os("HELM").unwrap_or_else(|| "helm".into()))
        .env("KUBECONFIG", cluster.kubeconfig())
        .args(["--namespace", NAME])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start helm: is it on PATH, or named by HELM?")?;
    let mut stdin = child.stdin.take().context("helm has no stdin")?;
    stdin.write_all(input.as_bytes()).await?;
    drop(stdin);
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        bail!(
            "helm {}: {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout).context("helm did not write UTF-8")
}
