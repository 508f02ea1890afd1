//! Measures wasm containers beside runc's on a private containerd, for `make demo` and `make bench`.

mod builds;
mod languages;
mod measure;
mod node;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kubewasi_bench::baseline::Build;
use kubewasi_bench::plot::{Row, plot};

use crate::measure::{lifecycle, memory, milliseconds, on_path};
use crate::node::{Node, RUNC, Workload};

const USAGE: &str = "usage: kubewasi-bench demo|report SOCKET FOLDER WASM-LAYER NATIVE-LAYER OPTIONS\n\
    usage: kubewasi-bench languages SOCKET FOLDER EXAMPLES OPTIONS\n\
    usage: kubewasi-bench compare containers|languages SOCKET FOLDER WASM-LAYER|EXAMPLES BUILD=SHIM...\n\
    SOCKET is containerd's, FOLDER takes snapshots (not on an overlay) and the plot report.svg or languages.svg,\n\
    the layers hold /hello.wasm and /hello,\n\
    EXAMPLES has a folder each, with the unpacked images wasm/ and native/ and their compressed sizes in size.wasm and\n\
    size.native; OPTIONS is the wasi handler's options file, whose cache folder does not exist yet;\n\
    BUILD is baseline, tree or closing, SHIM the shim's absolute path";

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["compare", section, socket, folder, layers, ..] => {
            let (socket, folder, layers) = (Path::new(socket), Path::new(folder), Path::new(layers));
            let builds = Build::parse_all(&args[5..])?;
            let node = Node::connect(socket, folder).await?;
            let comparison = match *section {
                "containers" => builds::containers(&node, socket, folder, layers, &builds).await?,
                "languages" => builds::languages(&node, folder, layers, &builds).await?,
                _ => bail!(USAGE),
            };
            comparison.conclude()
        }
        ["languages", socket, folder, examples, options] => {
            let node = Node::connect(Path::new(socket), Path::new(folder)).await?;
            let plot = Path::new(folder).join("languages.svg");
            languages::table(&node, Path::new(examples), Path::new(options), &plot).await
        }
        ["demo", socket, folder, layers @ ..] => Bench::new(socket, folder, layers).await?.demo().await,
        ["report", socket, folder, layers @ ..] => {
            let bench = Bench::new(socket, folder, layers).await?;
            bench.report(&Path::new(folder).join("report.svg")).await
        }
        _ => bail!(USAGE),
    }
}

struct Bench {
    node: Node,
    socket: PathBuf,
    wasi_shim: PathBuf,
    runc_shim: PathBuf,
    wasi: Workload,
    runc: Workload,
}

impl Bench {
    /// `layers` are those of the component and of the native program, and then the handler's options file.
    async fn new(socket: &str, folder: &str, layers: &[&str]) -> Result<Bench> {
        let &[wasm, native, options] = layers else {
            bail!(USAGE);
        };
        Ok(Bench {
            node: Node::connect(Path::new(socket), Path::new(folder)).await?,
            socket: socket.into(),
            wasi_shim: on_path("containerd-shim-wasi-v1").context("containerd-shim-wasi-v1 is not on PATH")?,
            runc_shim: on_path("containerd-shim-runc-v2").context("containerd-shim-runc-v2 is not on PATH")?,
            wasi: Workload {
                options: Some(options.into()),
                ..Workload::hello(Path::new(wasm))
            },
            runc: Workload {
                name: "runc",
                runtime: RUNC.into(),
                layer: native.into(),
                command: vec!["/hello".into()],
                environment: Vec::new(),
                options: None,
            },
        })
    }

    /// The demo's table, then what its last line says, for the script that prints it.
    async fn demo(&self) -> Result<()> {
        let cold = self.node.lifecycle(&self.wasi, "wasi-cold").await?;
        let (warm, whole) = lifecycle(&self.node, &self.wasi, 11).await?;
        let (runc_start, runc_whole) = lifecycle(&self.node, &self.runc, 11).await?;
        let ours = memory(&self.node, &self.wasi, &self.wasi_shim, &self.socket, 10).await?;
        let theirs = memory(&self.node, &self.runc, &self.runc_shim, &self.socket, 10).await?;
        println!("{:44}{:>10}{:>10}", "", "wasi", "runc");
        let row = |what: &str, ours: String, theirs: String| println!("{what:44}{ours:>10}{theirs:>10}");
        row(
            "first start: server, compilation, program, ms",
            ms(milliseconds(cold.start)),
            "-".into(),
        );
        row("create and start, ms (median of 11)", ms(warm), ms(runc_start));
        row("create, start, exit and delete, ms", ms(whole), ms(runc_whole));
        row(
            "memory of 10 idle: program, MiB each",
            mib(ours.program_each()),
            mib(theirs.program_each()),
        );
        row(
            "  its runtime's processes, MiB in all",
            mib(ours.runtime as f64 / 1024.0),
            mib(theirs.runtime as f64 / 1024.0),
        );
        row("  both, MiB each", mib(ours.each()), mib(theirs.each()));
        println!(
            "cold {:.0} ms, warm {:.0} ms, {} MiB a guest, runc {}",
            milliseconds(cold.start),
            warm,
            mib(ours.program_each()),
            mib(theirs.each())
        );
        Ok(())
    }

    /// The report in Markdown on stdout, its plot in a file, and the last line on stderr.
    async fn report(&self, file: &Path) -> Result<()> {
        self.node.lifecycle(&self.wasi, "wasi-cold").await?;
        let mut rows = String::new();
        let mut last = String::new();
        let mut columns = Vec::new();
        let (mut wasi, mut runc) = (Vec::new(), Vec::new());
        for count in [1, 10, 100] {
            let ours = memory(&self.node, &self.wasi, &self.wasi_shim, &self.socket, count).await?;
            let theirs = memory(&self.node, &self.runc, &self.runc_shim, &self.socket, count).await?;
            writeln!(
                rows,
                "| {count} | {} | {} | {} | {} | {} | {} |",
                mib(ours.program_each()),
                mib(ours.runtime as f64 / 1024.0),
                mib(ours.each()),
                mib(theirs.program_each()),
                mib(theirs.runtime as f64 / 1024.0),
                mib(theirs.each())
            )?;
            columns.push(format!("MiB each of {count}"));
            wasi.push(ours.each());
            runc.push(theirs.each());
            last = format!(
                "{} MiB each of {count} (program {}), runc {}",
                mib(ours.each()),
                mib(ours.program_each()),
                mib(theirs.each())
            );
        }
        let ours = lifecycle(&self.node, &self.wasi, 51).await?;
        let theirs = lifecycle(&self.node, &self.runc, 51).await?;
        println!(
            "# Benchmark\n\nOne run of `make bench`: `examples/hello` as a wasm component and as a static native program,\n\
             through one containerd. The figures hold for the machine that they were taken on.\n\n\
             ![memory and time](report.svg)\n\n\
             ## Memory of idle containers, MiB PSS\n\n\
             | containers | wasi: program each | wasi: server and launcher | wasi: all, each | runc: program each | \
             runc: shims | runc: all, each |\n|---:|---:|---:|---:|---:|---:|---:|\n{rows}\n\
             ## Time, ms, median of 51\n\n| | wasi | runc |\n|---|---:|---:|\n\
             | create and start | {} | {} |\n| create, start, exit and delete | {} | {} |",
            ms(ours.0),
            ms(theirs.0),
            ms(ours.1),
            ms(theirs.1)
        );
        columns.extend(["start, ms", "whole life, ms"].map(str::to_owned));
        wasi.extend([ours.0, ours.1]);
        runc.extend([theirs.0, theirs.1]);
        let row = |name: &str, is_ours, figures| Row {
            name: name.to_owned(),
            is_ours,
            figures,
        };
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        plot(file, &columns, &[row("wasi", true, wasi), row("runc", false, runc)])?;
        eprintln!("bench: {last}; lifecycle {} ms, runc {} ms", ms(ours.1), ms(theirs.1));
        Ok(())
    }
}

fn ms(value: f64) -> String {
    format!("{value:.1}")
}

fn mib(value: f64) -> String {
    format!("{value:.1}")
}
