//! One measurement a function, the same for every runtime.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::node::{Node, Workload};
use anyhow::Result;
use kubewasi_bench::median::median;
use kubewasi_bench::memory::{processes_of, pss_of_all};

/// How long an idle container may settle before its memory is looked at.
const SETTLE: Duration = Duration::from_millis(500);

/// Memory of idle containers, in KiB.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub containers: u64,
    /// The programs themselves.
    pub programs: u64,
    /// Every other process of the runtime: shims, servers, launchers.
    pub runtime: u64,
}

impl Memory {
    /// MiB a container, the runtime's processes shared among all.
    pub fn each(&self) -> f64 {
        mebibytes(self.programs + self.runtime, self.containers)
    }

    /// MiB a container, its own processes alone.
    pub fn program_each(&self) -> f64 {
        mebibytes(self.programs, self.containers)
    }
}

fn mebibytes(kibibytes: u64, containers: u64) -> f64 {
    kibibytes as f64 / 1024.0 / containers as f64
}

/// Starts `count` idle containers, measures them, and removes them.
pub async fn memory(node: &Node, workload: &Workload, shim: &Path, socket: &Path, count: u64) -> Result<Memory> {
    let ids: Vec<String> = (0..count)
        .map(|index| format!("{}-idle-{count}-{index}", workload.name))
        .collect();
    let mut pids = Vec::new();
    for id in &ids {
        pids.push(node.idle(workload, id).await?);
    }
    tokio::time::sleep(SETTLE).await;
    let mut runtime = processes_of(shim, socket)?;
    runtime.retain(|pid| !pids.contains(pid));
    let memory = Memory {
        containers: count,
        programs: pss_of_all(pids)?,
        runtime: pss_of_all(runtime)?,
    };
    for id in &ids {
        node.remove(id).await?;
    }
    Ok(memory)
}

/// The middle of `count` whole lives and of their starts, in milliseconds: (start, whole).
pub async fn lifecycle(node: &Node, workload: &Workload, count: usize) -> Result<(f64, f64)> {
    let (mut starts, mut wholes) = (Vec::new(), Vec::new());
    for index in 0..count {
        let life = node
            .lifecycle(workload, &format!("{}-life-{index}", workload.name))
            .await?;
        starts.push(milliseconds(life.start));
        wholes.push(milliseconds(life.whole));
    }
    Ok((median(starts), median(wholes)))
}

pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Finds a binary on PATH.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_divided_by_the_number_of_containers() {
        let memory = Memory {
            containers: 4,
            programs: 2048,
            runtime: 2048,
        };
        assert_eq!((memory.program_each(), memory.each()), (0.5, 1.0));
    }
}
