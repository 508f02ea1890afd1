//! Measures wasi:http services beside `wasmtime serve` and a native server: same component, same machine, same
//! connections, in turns; then has clients misbehave.

mod comparison;
mod cost;
mod load;
mod native;
mod pod;
mod profile;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kubewasi_bench::baseline::Build;
use kubewasi_bench::memory::pss;
use kubewasi_testbed::hostile;
use tokio::net::TcpStream;

use crate::comparison::{compare, compare_builds, keep};
use crate::cost::Cost;
use crate::load::load;
use crate::pod::Node;
use crate::profile::{Part, Recording, Symbols};

const USAGE: &str = "usage: kubewasi-bench-http SOCKET FOLDER LAYER OPTIONS [ONLY] | kubewasi-bench-http native\n\
    usage: kubewasi-bench-http compare SOCKET FOLDER LAYER BUILD=SHIM...\n\
    SOCKET is containerd's, FOLDER takes snapshots and the plot http.svg, LAYER holds service02.wasm,\n\
    service03.wasm, wasmtime and this program, OPTIONS is the wasi handler's options file; run it in a network\n\
    namespace of its own. With ONLY no more is measured than the loads of servers whose names have that.\n\
    BUILD is baseline, tree or closing, SHIM the shim's absolute path.";

/// Every server's, one after the other.
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);

/// The connections of each load.
const CONNECTIONS: [usize; 2] = [32, 1];

/// How long a service is sampled under load.
const PROFILED: Duration = Duration::from_secs(4);

/// As many requests an instance answers where it is reused.
const REUSED: &str = "1000000";

/// How long an instance is asked one request after the other for how long it takes to make one.
const INSTANTIATED: Duration = Duration::from_secs(2);

/// The clients of which half misbehave, and how long.
const HOSTILE: usize = 256;
const HOSTILE_TIME: Duration = Duration::from_secs(60);

/// How long the service is asked afterwards, to see that it lives.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// What a service may have while they do, in KiB: an instance a client, with its megabyte of memory, at most.
const HOSTILE_PSS: u64 = 256 << 10;

const SERVICES: [&str; 2] = ["service02.wasm", "service03.wasm"];

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["native"] => native::serve(ADDRESS).await,
        ["compare", socket, folder, layer, ..] => {
            let node = Node::connect(socket, folder, layer).await?;
            let comparison = compare_builds(&node, &Build::parse_all(&args[4..])?).await?;
            comparison.conclude()
        }
        [socket, folder, layer, options, only @ ..] => {
            let node = Node {
                options: options.into(),
                ..Node::connect(socket, folder, layer).await?
            };
            println!(
                "# HTTP services\n\nOne run of `make bench`: clients and server share the \
                 machine's {} cpus, and every server is a container: services by us, the others by runc.\n\n\
                 ![{} connections](http.svg)\n",
                std::thread::available_parallelism()?,
                CONNECTIONS[0]
            );
            compare(&node, only.first().unwrap_or(&"")).await?;
            if !only.is_empty() {
                return Ok(());
            }
            profile(&node).await?;
            instantiate(&node).await?;
            keep(&node).await?;
            misbehave(&node).await
        }
        _ => bail!(USAGE),
    }
}

/// How instances are used: the mode's name, the annotation for it, and how often each is.
fn modes() -> [(&'static str, String, &'static str); 2] {
    [
        ("fresh", "per-request".to_owned(), "1"),
        ("reuse", format!("reuse({REUSED})"), REUSED),
    ]
}

async fn listens(name: &str) -> Result<()> {
    let since = Instant::now();
    while TcpStream::connect(ADDRESS).await.is_err() {
        if since.elapsed() > Duration::from_secs(30) {
            bail!("{name} does not listen on {ADDRESS}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Where each service's time goes under the larger load.
async fn profile(node: &Node) -> Result<()> {
    let connections = CONNECTIONS[0];
    println!(
        "\n## Where the time goes\n\nMicroseconds of the processor for each request at {connections} connections, by \
         `perf record -e cpu-clock` in a run of its own. A sample counts where its innermost function belongs; in the \
         kernel, for what it is called for.\n"
    );
    let shim = std::env::current_exe()?.with_file_name("containerd-shim-wasi-v1");
    let symbols = Symbols::of(&shim)?;
    let (mut names, mut columns) = (Vec::new(), Vec::new());
    for file in SERVICES {
        let service = file.trim_end_matches(".wasm");
        for (mode, instance, _) in modes() {
            let id = format!("{service}-{mode}-profile");
            let pod = node.start(&id, file, &[("instance", &instance)]).await?;
            listens(file).await?;
            let samples = node.folder.join(&id);
            let recording = Recording(&samples);
            let before = Cost::of(pod.pid)?;
            let (seen, taken) = tokio::join!(load(ADDRESS, connections, PROFILED), recording.take(pod.pid, PROFILED));
            taken?;
            let cost = Cost::of(pod.pid)?.of_each(&before, seen?.answered);
            pod.end().await?;
            names.push(format!("{service}, {mode}"));
            columns.push((cost.user + cost.system, recording.shares(&symbols)?));
        }
    }
    println!("| | {} |\n|---|{}", names.join(" | "), "---:|".repeat(names.len()));
    for part in Part::ALL {
        let cells = columns.iter().map(|(cost, shares)| {
            let share = shares.get(&part).copied().unwrap_or_default();
            format!("{:.2}", cost * share * 1e6)
        });
        println!("| {} | {} |", part.name(), cells.collect::<Vec<_>>().join(" | "));
    }
    Ok(())
}

/// What services themselves say of how long making an instance takes.
async fn instantiate(node: &Node) -> Result<()> {
    println!("\n## Making an instance\n\nAs the service measures it and says in its access log, at one connection.\n");
    for file in SERVICES {
        let id = format!("{}-made", file.trim_end_matches(".wasm"));
        let annotations = [("instance", "per-request"), ("access-log", "true")];
        let pod = node.start(&id, file, &annotations).await?;
        listens(file).await?;
        load(ADDRESS, 1, INSTANTIATED).await?;
        let log = pod.end().await?;
        let last = log.lines().last().with_context(|| format!("{file} logged nothing"))?;
        println!("- {file}: {last}");
    }
    Ok(())
}

/// Half of the clients are not what a service wishes for.
async fn misbehave(node: &Node) -> Result<()> {
    println!(
        "\n## {HOSTILE} clients for {} s, half of which misbehave\n\nThey read slowly, reset connections, leave heads \
         unfinished and send what is no HTTP.\n\n| service | answered | refused | reset | left half open | read slowly, \
         MiB | most PSS, MiB |\n|---|---:|---:|---:|---:|---:|---:|",
        HOSTILE_TIME.as_secs()
    );
    for file in SERVICES {
        let id = format!("{}-hostile", file.trim_end_matches(".wasm"));
        let pod = node.start(&id, file, &[]).await?;
        listens(file).await?;
        let (seen, most) = hostile_clients(pod.pid)?;
        ensure!(seen.wrong.is_empty(), "{file}: {:#?}", seen.wrong);
        ensure!(most < HOSTILE_PSS, "{file} had {most} KiB");
        println!(
            "| {file} | {} | {} | {} | {} | {:.1} | {:.1} |",
            seen.answered,
            seen.refused,
            seen.reset,
            seen.left_half_open,
            seen.sipped as f64 / f64::from(1 << 20),
            most as f64 / 1024.0
        );
        load(ADDRESS, 1, AFTERWARDS)
            .await
            .with_context(|| format!("{file} after that"))?;
        pod.end().await?;
    }
    Ok(())
}

/// What they saw, and the most memory that the service had meanwhile, in KiB.
fn hostile_clients(pid: u32) -> Result<(hostile::Seen, u64)> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watched = scope.spawn(|| {
            let mut most = 0;
            while !over.load(Ordering::Relaxed) {
                most = most.max(pss(pid)?);
                std::thread::sleep(Duration::from_millis(200));
            }
            anyhow::Ok(most)
        });
        let seen = hostile::clients(ADDRESS, HOSTILE, HOSTILE_TIME);
        over.store(true, Ordering::Relaxed);
        let most = watched.join().map_err(|_| anyhow::anyhow!("the watch panicked"))??;
        Ok((seen, most))
    })
}
