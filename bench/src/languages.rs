//! The same program in each language as a wasm image and as a native one: how large, and how long until it has run.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use kubewasi_bench::plot::{Row, plot};

use crate::measure::{lifecycle, milliseconds};
use crate::node::{Node, RUNC, WASI, Workload};

/// Of so many runs the middle one counts.
const RUNS: usize = 11;

/// One example, given enough to do that it does its work: neither is a `--version` measured, nor a whole day's orders.
pub struct Program {
    pub example: &'static str,
    pub language: &'static str,
    wasm: &'static str,
    /// The native program and what it is started by.
    native: &'static [&'static str],
    arguments: &'static [&'static str],
    environment: &'static [&'static str],
    /// Files that it reads: path and text.
    files: &'static [(&'static str, &'static str)],
}

pub const PROGRAMS: [Program; 6] = [
    Program {
        example: "hello",
        language: "Rust",
        wasm: "/hello.wasm",
        native: &["/hello"],
        arguments: &[],
        environment: &[],
        files: &[],
    },
    Program {
        example: "c-render",
        language: "C",
        wasm: "/render.wasm",
        native: &["/render"],
        arguments: &["/template", "/rendered"],
        environment: &["PORT=8080"],
        files: &[("template", "listen=${PORT}\n")],
    },
    Program {
        example: "cpp-wordcount",
        language: "C++",
        wasm: "/wordcount.wasm",
        native: &["/wordcount"],
        arguments: &["/text"],
        environment: &[],
        files: &[("text", "A rose is a rose is a rose is a rose.\n")],
    },
    Program {
        example: "go-report",
        language: "Go",
        wasm: "/report.wasm",
        native: &["/report"],
        arguments: &[],
        environment: &[],
        files: &[("data/orders/monday.csv", "ada,150\n")],
    },
    Program {
        example: "python-worker",
        language: "Python",
        wasm: "/worker.wasm",
        native: &["/usr/bin/python3.11", "/worker"],
        arguments: &["once"],
        environment: &[],
        files: &[("queue/new/job.json", "{\"lines\": [[2, 150]]}\n")],
    },
    Program {
        example: "js-merge",
        language: "JavaScript",
        wasm: "/merge.wasm",
        native: &["/usr/bin/node", "/merge/native.mjs"],
        arguments: &[],
        environment: &["TEMPLATE=Dear {{ name }}", "RECORDS=[{\"name\": \"Ada\"}]"],
        files: &[],
    },
];

/// Prints the table in Markdown, and writes its `file` of bars. `examples` has a folder for each program, as
/// `hack/bench` makes it.
pub async fn table(node: &Node, examples: &Path, options: &Path, file: &Path) -> Result<()> {
    let mut rows = Vec::new();
    println!(
        "| language | program | wasm image, KiB | native image, KiB | first start, ms | wasm, ms | native, ms |\n\
         |---|---|---:|---:|---:|---:|---:|"
    );
    for program in &PROGRAMS {
        let folder = examples.join(program.example);
        let wasm = program.wasm(examples, options)?;
        let native = program.native(examples)?;
        let cold = node.lifecycle(&wasm, &format!("{}-cold", program.example)).await?;
        let (_, ours) = lifecycle(node, &wasm, RUNS).await?;
        let (_, theirs) = lifecycle(node, &native, RUNS).await?;
        let (wasm_size, native_size) = (size(&folder, "wasm")?, size(&folder, "native")?);
        println!(
            "| {} | [{example}](../examples/{example}) | {wasm_size} | {native_size} | {:.0} | {ours:.0} | {theirs:.0} |",
            program.language,
            milliseconds(cold.whole),
            example = program.example,
        );
        let mut row = |kind: &str, size: u64, time: f64| {
            rows.push(Row {
                name: format!("{}, {kind}", program.language),
                is_ours: kind == "wasm",
                figures: vec![size as f64, time],
            });
        };
        row("wasm", wasm_size, ours);
        row("native", native_size, theirs);
    }
    plot(file, &["image, KiB", "create to deleted, ms"], &rows)
}

impl Program {
    /// Its component by the shim on containerd's PATH.
    pub fn wasm(&self, examples: &Path, options: &Path) -> Result<Workload> {
        let folder = examples.join(self.example);
        let workload = self.workload(&folder, "wasm", &[self.wasm], WASI)?;
        Ok(Workload {
            options: Some(options.to_owned()),
            ..workload
        })
    }

    fn native(&self, examples: &Path) -> Result<Workload> {
        self.workload(&examples.join(self.example), "native", self.native, RUNC)
    }

    fn workload(&self, folder: &Path, kind: &str, program: &[&str], runtime: &str) -> Result<Workload> {
        let layer = folder.join(kind);
        for (path, text) in self.files {
            let file = layer.join(path);
            if let Some(parent) = file.parent() {
                fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
            }
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        Ok(Workload {
            name: self.example,
            runtime: runtime.to_owned(),
            layer,
            command: words(&[program, self.arguments].concat()),
            environment: words(self.environment),
            options: None,
        })
    }
}

/// KiB of an image's compressed layers.
fn size(folder: &Path, kind: &str) -> Result<u64> {
    let file = folder.join(format!("size.{kind}"));
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let bytes: u64 = text
        .trim()
        .parse()
        .with_context(|| format!("{} has no number", file.display()))?;
    Ok(bytes.div_ceil(1024))
}
