//! Measures wasi:http services beside `wasmtime serve` and a native server: same component, same machine, same
//! connections, one after the other.

mod load;
mod native;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kubewasi_bench::client::{Client, Streams, overlay};
use kubewasi_bench::memory::pss;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::load::load;

const USAGE: &str = "usage: kubewasi-bench-http SOCKET FOLDER LAYER OPTIONS WASMTIME | kubewasi-bench-http native\n\
    SOCKET is containerd's, FOLDER takes snapshots, LAYER holds service02.wasm and service03.wasm, OPTIONS is the wasi\n\
    handler's options file, WASMTIME the binary; run it in a network namespace of its own";

/// Every server's, one after the other.
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);

/// The connections of each load.
const CONNECTIONS: [usize; 2] = [32, 1];

/// How long each load lasts.
const TIME: Duration = Duration::from_secs(5);

/// As many requests an instance answers where it is reused.
const REUSED: &str = "1000000";

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["native"] => native::serve(ADDRESS).await,
        [socket, folder, layer, options, wasmtime] => {
            let bench = Bench {
                client: Client::connect(Path::new(socket), "bench-http").await?,
                folder: folder.into(),
                layer: layer.into(),
                options: options.into(),
                wasmtime: wasmtime.into(),
            };
            bench.report().await
        }
        _ => bail!(USAGE),
    }
}

struct Bench {
    client: Client,
    folder: PathBuf,
    layer: PathBuf,
    options: PathBuf,
    wasmtime: PathBuf,
}

impl Bench {
    async fn report(&self) -> Result<()> {
        println!(
            "| server | connections | requests/s | median, us | p99, us | PSS after, MiB |\n|---|---:|---:|---:|---:|---:|"
        );
        let exe = std::env::current_exe()?;
        self.command("native hyper", Command::new(exe).arg("native")).await?;
        for file in ["service02.wasm", "service03.wasm"] {
            for (mode, instance, count) in [
                ("fresh", "per-request".to_owned(), "1"),
                ("reuse", format!("reuse({REUSED})"), REUSED),
            ] {
                self.pod(&format!("kubewasi, {file}, {mode}"), file, &instance).await?;
                let mut serve = Command::new(&self.wasmtime);
                serve
                    .args(["serve", "-Scli", "--max-instance-reuse-count", count])
                    .args(["--addr", &ADDRESS.to_string()])
                    .arg(self.layer.join(file));
                self.command(&format!("wasmtime serve, {file}, {mode}"), &mut serve)
                    .await?;
            }
        }
        Ok(())
    }

    /// Measures a server that is a process.
    async fn command(&self, name: &str, command: &mut Command) -> Result<()> {
        let mut server: Child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let pid = server.id().with_context(|| format!("{name} has ended"))?;
        measure(name, pid).await?;
        server.kill().await.with_context(|| format!("cannot end {name}"))
    }

    /// Measures a service in a container of ours.
    async fn pod(&self, name: &str, file: &str, instance: &str) -> Result<()> {
        let id = format!(
            "{}-{}",
            file.trim_end_matches(".wasm"),
            instance.trim_end_matches(')').replace('(', "-")
        );
        let own = self.folder.join("snapshots").join(&id);
        for part in ["upper", "work"] {
            std::fs::create_dir_all(own.join(part)).with_context(|| format!("cannot make {}", own.display()))?;
        }
        let spec = spec(&id, file, instance);
        let runtime = "io.containerd.wasi.v1";
        self.client.declare(&id, runtime, Some(&self.options), &spec).await?;
        let streams = Streams::default();
        let pid = self
            .client
            .create(&id, vec![overlay(&self.layer, &own)], &streams)
            .await?;
        self.client.start(&id, "").await?;
        measure(name, pid).await?;
        self.client.kill(&id, 15, true).await?;
        let code = self.client.wait(&id, "").await?;
        self.client.delete(&id).await?;
        self.client.forget(&id).await?;
        anyhow::ensure!(code == 0, "{name} exited with {code}");
        Ok(())
    }
}

/// Loads the server `pid` when it listens, and prints a row for each load.
async fn measure(name: &str, pid: u32) -> Result<()> {
    let since = Instant::now();
    while TcpStream::connect(ADDRESS).await.is_err() {
        if since.elapsed() > Duration::from_secs(30) {
            bail!("{name} does not listen on {ADDRESS}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for connections in CONNECTIONS {
        let seen = load(ADDRESS, connections, TIME)
            .await
            .with_context(|| name.to_owned())?;
        println!(
            "| {name} | {connections} | {:.0} | {} | {} | {:.1} |",
            seen.requests_per_second,
            seen.median.as_micros(),
            seen.p99.as_micros(),
            pss(pid)? as f64 / 1024.0,
        );
    }
    Ok(())
}

/// A service in the network namespace of its containerd.
fn spec(id: &str, file: &str, instance: &str) -> serde_json::Value {
    json!({
        "ociVersion": "1.0.2",
        "annotations": {"kubewasi.dev/instance": instance},
        "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": [format!("/{file}")], "noNewPrivileges": true},
        "root": {"path": "rootfs"},
        "linux": {
            "cgroupsPath": format!("/bench-http/{id}"),
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
        },
    })
}
