//! Containers and languages by several builds of the shim, in interleaved rounds.

use std::path::Path;

use anyhow::Result;
use kubewasi_bench::baseline::{Build, Comparison, Effort, Figure, interleave};
use kubewasi_bench::verdict::Better;

use crate::languages::PROGRAMS;
use crate::measure::{lifecycle, memory, milliseconds};
use crate::node::{Node, Workload};

/// The middle one of so many lifecycles counts in a round.
const LIVES: usize = 11;

/// Memory, and how long a container lasts. `layer` holds /hello.wasm; `socket` is the node's.
pub async fn containers(
    node: &Node,
    socket: &Path,
    folder: &Path,
    layer: &Path,
    builds: &[Build],
) -> Result<Comparison> {
    interleave(builds, Effort::from_env()?.rounds, async |build, _| {
        let workload = Workload {
            runtime: build.runtime(),
            options: Some(build.options(folder, "containers")?),
            ..Workload::hello(layer)
        };
        let (start, whole) = lifecycle(node, &workload, LIVES).await?;
        let mut figures = vec![
            less("create and start, ms", start),
            less("create, start, exit and delete, ms", whole),
        ];
        for count in [10, 100] {
            let memory = memory(node, &workload, &build.shim, socket, count).await?;
            figures.push(less(&format!("{count} idle, MiB each"), memory.each()));
            figures.push(less(&format!("{count} idle, program, MiB each"), memory.program_each()));
        }
        Ok(figures)
    })
    .await
}

/// How long each example takes at first, from a server that does not run and a cache that is empty, and from then on.
pub async fn languages(node: &Node, folder: &Path, examples: &Path, builds: &[Build]) -> Result<Comparison> {
    interleave(builds, Effort::from_env()?.rounds, async |build, round| {
        let mut figures = Vec::new();
        for program in &PROGRAMS {
            let options = build.options(folder, &format!("{}-{round}", program.example))?;
            let workload = Workload {
                runtime: build.runtime(),
                ..program.wasm(examples, &options)?
            };
            let cold = node.lifecycle(&workload, &format!("{}-cold", program.example)).await?;
            let (_, warm) = lifecycle(node, &workload, LIVES).await?;
            let name = |what: &str| format!("{}, {what}, ms", program.language);
            figures.push(less(&name("first start"), milliseconds(cold.whole)));
            figures.push(less(&name("create to deleted"), warm));
        }
        Ok(figures)
    })
    .await
}

fn less(name: &str, value: f64) -> Figure {
    Figure {
        name: name.to_owned(),
        better: Better::Lower,
        value,
    }
}
