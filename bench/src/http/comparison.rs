//! Services, `wasmtime serve` and a native server under the same loads, in turns.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result};
use kubewasi_bench::baseline::{Build, Comparison, Effort, Figure, interleave};
use kubewasi_bench::median::median;
use kubewasi_bench::memory::pss;
use kubewasi_bench::plot::{self, plot};
use kubewasi_bench::verdict::Better;

use crate::cost::Cost;
use crate::load::{kept, load};
use crate::pod::Node;
use crate::{ADDRESS, CONNECTIONS, SERVICES, listens, modes};

/// How long each load lasts.
const TIME: Duration = Duration::from_secs(3);

/// How often each server is measured.
const ROUNDS: usize = 3;

/// As many connections are kept, and were before it is looked at what those cost.
const KEPT: usize = 500;
const WARM: usize = 50;

/// The plot, in the node's folder.
const PLOT: &str = "http.svg";

/// Whose servers they are.
const HYPER: &str = "native hyper";
const OURS: &str = "kubewasi";
const SERVE: &str = "wasmtime serve";

/// A server that is measured.
struct Server {
    name: String,
    id: String,
    program: Program,
}

enum Program {
    /// A component by us, and the annotation that says how instances are used.
    Service(&'static str, String),
    /// By runc.
    Native(Vec<String>),
}

/// All that are measured: each component in each mode by us and by `wasmtime serve`, and a native one.
fn servers() -> Vec<Server> {
    let native = ["/kubewasi-bench-http", "native"].map(str::to_owned).to_vec();
    let mut servers = vec![Server {
        name: HYPER.to_owned(),
        id: "hyper".to_owned(),
        program: Program::Native(native),
    }];
    for file in SERVICES {
        let service = file.trim_end_matches(".wasm");
        for (mode, instance, count) in modes() {
            servers.push(Server {
                name: format!("{OURS}, {file}, {mode}"),
                id: format!("{service}-{mode}"),
                program: Program::Service(file, instance),
            });
            let (address, component) = (ADDRESS.to_string(), format!("/{file}"));
            let args = ["/wasmtime", "serve", "-Scli", "--max-instance-reuse-count", count];
            let args = [&args[..], &["--addr", &address, &component]].concat();
            servers.push(Server {
                name: format!("{SERVE}, {file}, {mode}"),
                id: format!("serve-{service}-{mode}"),
                program: Program::Native(args.into_iter().map(str::to_owned).collect()),
            });
        }
    }
    servers
}

/// The same loads for every server whose name has `only`, in turns: a machine is not always as fast.
pub async fn compare(node: &Node, only: &str) -> Result<()> {
    let servers: Vec<Server> = servers()
        .into_iter()
        .filter(|server| server.name.contains(only))
        .collect();
    let mut rounds: Vec<[Vec<Row>; CONNECTIONS.len()]> = servers.iter().map(|_| Default::default()).collect();
    for _ in 0..ROUNDS {
        for (server, rows) in servers.iter().zip(&mut rounds) {
            for (rows, row) in rows
                .iter_mut()
                .zip(server.with(node, async |pid| loads(pid, TIME).await).await?)
            {
                rows.push(row);
            }
        }
    }
    println!(
        "Each was measured {ROUNDS} times, in turns with the others; the figures are the medians. The last four columns are \
         the server's part of one request: time of the processor in its own code and in the kernel's, pages that were \
         faulted in, switches between threads.\n\n| server | connections | requests/s | median, us | p99, us | PSS after, \
         MiB | user, us | kernel, us | page faults | switches |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    );
    let (mut rates, mut bars) = (HashMap::new(), Vec::new());
    for (server, rows) in servers.iter().zip(&rounds) {
        let measured = rows.each_ref().map(|rows| medians(rows));
        for (connections, row) in CONNECTIONS.iter().zip(measured) {
            let [rate, median, p99, pss, user, system, faults, switches] = row;
            println!(
                "| {} | {connections} | {rate:.0} | {median:.0} | {p99:.0} | {pss:.1} | {user:.1} | {system:.1} | {faults:.2} \
                 | {switches:.2} |",
                server.name
            );
        }
        // What is summed up and plotted is the first of the loads.
        let [[rate, _, p99, pss, ..], ..] = measured;
        rates.insert(server.name.as_str(), rate);
        bars.push(plot::Row {
            name: server.name.clone(),
            is_ours: server.is_ours(),
            figures: vec![rate, p99, pss],
        });
    }
    summarize(&rates);
    plot(&node.folder.join(PLOT), &["requests/s", "p99, us", "PSS, MiB"], &bars)
}

/// What the first of the loads says of us, if all were measured.
fn summarize(rates: &HashMap<&str, f64>) {
    let rate = |name: &str| rates.get(name).copied();
    let mut summary = Vec::new();
    for file in SERVICES {
        for (mode, ..) in modes() {
            let of = |server: &str| rate(&format!("{server}, {file}, {mode}"));
            if let (Some(ours), Some(serve), Some(hyper)) = (of(OURS), of(SERVE), rate(HYPER)) {
                let (beside, share) = (ours / serve, ours / hyper * 100.0);
                summary.push(format!("{file} {mode} {beside:.1} ({share:.0} % of hyper)"));
            }
        }
    }
    if !summary.is_empty() {
        eprintln!(
            "bench: services at {} connections, times wasmtime serve: {}",
            CONNECTIONS[0],
            summary.join(", ")
        );
    }
}

/// The loads of each component in each mode by several builds of the shim, in interleaved rounds.
pub async fn compare_builds(node: &Node, builds: &[Build]) -> Result<Comparison> {
    let effort = Effort::from_env()?;
    let servers = servers();
    interleave(builds, effort.rounds, async |build, _| {
        let node = Node {
            runtime: build.runtime(),
            options: build.options(&node.folder, "http")?,
            ..node.clone()
        };
        let mut figures = Vec::new();
        for server in servers.iter().filter(|server| server.is_ours()) {
            let rows = server.with(&node, async |pid| loads(pid, effort.load).await).await?;
            for (connections, [rate, _, p99, pss, user, system, ..]) in CONNECTIONS.iter().zip(rows) {
                let figure = |what: &str, better, value| Figure {
                    name: format!("{}, {connections} connections: {what}", server.id),
                    better,
                    value,
                };
                figures.extend([
                    figure("requests/s", Better::Higher, rate),
                    figure("p99, us", Better::Lower, p99),
                    figure("processor, us a request", Better::Lower, user + system),
                    figure("PSS after, MiB", Better::Lower, pss),
                ]);
            }
        }
        Ok(figures)
    })
    .await
}

/// Of one server under one load: requests a second, median and p99 in microseconds, PSS in MiB, and what one request cost.
type Row = [f64; 8];

/// The median of each column.
fn medians(rows: &[Row]) -> Row {
    std::array::from_fn(|column| median(rows.iter().map(|row| row[column]).collect()))
}

impl Server {
    fn is_ours(&self) -> bool {
        matches!(self.program, Program::Service(..))
    }

    /// Starts it, does this with its process when it listens, and ends it.
    async fn with<T>(&self, node: &Node, measure: impl AsyncFnOnce(u32) -> Result<T>) -> Result<T> {
        let pod = match &self.program {
            Program::Service(file, instance) => node.start(&self.id, file, &[("instance", instance)]).await?,
            Program::Native(args) => node.start_native(&self.id, args).await?,
        };
        listens(&self.name).await?;
        let measured = measure(pod.pid).await.with_context(|| self.name.clone())?;
        match self.program {
            Program::Service(..) => pod.end().await.map(drop)?,
            Program::Native(_) => pod.kill().await?,
        }
        Ok(measured)
    }
}

async fn loads(pid: u32, time: Duration) -> Result<[Row; CONNECTIONS.len()]> {
    let mut rows = [Row::default(); CONNECTIONS.len()];
    for (row, connections) in rows.iter_mut().zip(CONNECTIONS) {
        let before = Cost::of(pid)?;
        let seen = load(ADDRESS, connections, time).await?;
        let cost = Cost::of(pid)?.of_each(&before, seen.answered);
        *row = [
            seen.requests_per_second,
            seen.median.as_secs_f64() * 1e6,
            seen.p99.as_secs_f64() * 1e6,
            pss(pid)? as f64 / 1024.0,
            cost.user * 1e6,
            cost.system * 1e6,
            cost.faults,
            cost.switches,
        ];
    }
    Ok(rows)
}

/// What clients cost that have asked once and keep their connections.
pub async fn keep(node: &Node) -> Result<()> {
    println!(
        "\n## Connections that are kept\n\n{KEPT} clients have asked once and stay. KiB of PSS that each adds, to what is \
         there after {WARM} of them.\n\n| server | KiB a connection |\n|---|---:|"
    );
    for server in servers() {
        let each = server.with(node, async |pid| {
            let _warm = kept(ADDRESS, WARM).await?;
            let before = pss(pid)?;
            let _kept = kept(ADDRESS, KEPT).await?;
            Ok((pss(pid)?.saturating_sub(before)) as f64 / KEPT as f64)
        });
        println!("| {} | {:.1} |", server.name, each.await?);
    }
    Ok(())
}
