//! Where a service's time goes: what the kernel's clock finds it doing while it is loaded, by perf(1).

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Samples a second; no divisor of the kernel's own ticks.
const FREQUENCY: &str = "1999";

/// What a service does, in the order of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Guest,
    Instances,
    Calls,
    Wasi,
    Http,
    EventLoop,
    Allocator,
    Copies,
    Other,
    Sockets,
    Waits,
    HandOvers,
    Memory,
    PageFaults,
    OtherKernel,
}

impl Part {
    /// All there are.
    pub const ALL: [Part; 15] = [
        Part::Guest,
        Part::Instances,
        Part::Calls,
        Part::Wasi,
        Part::Http,
        Part::EventLoop,
        Part::Allocator,
        Part::Copies,
        Part::Other,
        Part::Sockets,
        Part::Waits,
        Part::HandOvers,
        Part::Memory,
        Part::PageFaults,
        Part::OtherKernel,
    ];

    /// As the report has it.
    pub fn name(self) -> &'static str {
        match self {
            Part::Guest => "the guest's code",
            Part::Instances => "wasmtime: stores, linking, pool slots, images and resets of memories",
            Part::Calls => "wasmtime: calls, tasks, streams, resources, fibers",
            Part::Wasi => "the host's side of WASI and wasi:http, and the service's own code",
            Part::Http => "hyper: heads, bodies, connections",
            Part::EventLoop => "tokio: tasks, timers, events",
            Part::Allocator => "allocator",
            Part::Copies => "copying and zeroing memory, of resets too",
            Part::Other => "what has another name",
            Part::Sockets => "kernel: sockets, the client's side of the loopback included",
            Part::Waits => "kernel: waiting for events",
            Part::HandOvers => "kernel: waking and giving way to threads",
            Part::Memory => "kernel: looking for written pages, mapping, protecting",
            Part::PageFaults => "kernel: page faults",
            Part::OtherKernel => "kernel: the rest, interrupts above all",
        }
    }
}

/// Which part has a name of the binary with one of these in it; the first that fits.
const OWN: [(Part, &[&str]); 7] = [
    (Part::Copies, &["memcpy", "memmove", "memset", "memcmp", "bcmp"]),
    (
        Part::Allocator,
        &[
            "kept_blocks",
            "allocator::Allocator",
            "malloc",
            "__libc_free",
            "__rust_alloc",
            "__rust_dealloc",
            "alloc_slot",
        ],
    ),
    (
        Part::Instances,
        &[
            "pooling",
            "vm::cow",
            "pagemap",
            "InstancePre",
            "Instantiator",
            "instantiate",
            "StoreInner",
            "vm::instance",
            "Surroundings",
            "WasiCtxBuilder",
            "guest::http::spare",
        ],
    ),
    (Part::Wasi, &["wasmtime_wasi", "containerd_shim_wasi_v1"]),
    (Part::Calls, &["wasmtime", "cranelift", "fiber"]),
    (
        Part::Http,
        &[
            "hyper",
            "httparse",
            "httpdate",
            "http::",
            "h2::",
            "http_body",
            "bytes::",
        ],
    ),
    (Part::EventLoop, &["tokio", "mio::", "futures", "epoll"]),
];

/// Which part a call of the kernel's is.
const CALLS: [(Part, &[&str]); 4] = [
    (
        Part::Sockets,
        &[
            "sendto", "sendmsg", "write", "writev", "recvfrom", "recvmsg", "read", "readv", "accept4", "shutdown",
            "close",
        ],
    ),
    (Part::Waits, &["epoll_wait", "epoll_pwait", "epoll_ctl", "poll"]),
    (Part::HandOvers, &["futex", "sched_yield"]),
    (
        Part::Memory,
        &["ioctl", "madvise", "mmap", "munmap", "mprotect", "mremap"],
    ),
];

/// A recording of a process, in a file.
pub struct Recording<'a>(pub &'a Path);

impl Recording<'_> {
    /// Samples the process for `time`.
    ///
    /// # Errors
    ///
    /// When there is no perf(1), or it cannot.
    pub async fn take(&self, pid: u32, time: Duration) -> Result<()> {
        let status = tokio::process::Command::new("perf")
            .args([
                "record",
                "--quiet",
                "-g",
                "-e",
                "cpu-clock",
                "-F",
                FREQUENCY,
                "--pid",
                &pid.to_string(),
                "--output",
            ])
            .arg(self.0)
            .args(["--", "sleep", &time.as_secs_f64().to_string()])
            .status()
            .await
            .context("cannot run perf: install linux-perf")?;
        ensure!(status.success(), "perf record: {status}");
        Ok(())
    }

    /// The share of each part in the samples. To be called when the process has ended: while it lives, perf looks for
    /// its binary in its root.
    ///
    /// # Errors
    ///
    /// When perf(1) cannot read it, or there is none in it.
    pub fn shares(&self) -> Result<BTreeMap<Part, f64>> {
        let output = Command::new("perf")
            .args(["script", "--fields", "ip,sym,dso", "--input"])
            .arg(self.0)
            .output()
            .context("cannot run perf")?;
        ensure!(
            output.status.success(),
            "perf script: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let samples = parts_of(&String::from_utf8_lossy(&output.stdout));
        ensure!(!samples.is_empty(), "perf found nothing in {}", self.0.display());
        let mut shares = BTreeMap::new();
        for part in &samples {
            *shares.entry(*part).or_default() += 1.0 / samples.len() as f64;
        }
        Ok(shares)
    }
}

/// The part of each sample in what `perf script` prints: a line for each frame, `address name (file)`, the innermost
/// first, and an empty line behind each sample.
fn parts_of(script: &str) -> Vec<Part> {
    let samples = script.split("\n\n").map(|sample| sample.trim_matches('\n'));
    let samples = samples.filter(|sample| !sample.is_empty());
    samples
        .filter_map(|sample| part_of(&sample.lines().filter_map(frame).collect::<Vec<_>>()))
        .collect()
}

/// The name and the file of a frame.
fn frame(line: &str) -> Option<(&str, &str)> {
    let (_, named) = line.trim().split_once(' ')?;
    let (name, file) = named.rsplit_once(" (")?;
    Some((name, file.strip_suffix(')')?))
}

fn part_of(frames: &[(&str, &str)]) -> Option<Part> {
    let (name, file) = frames.first()?;
    let fits = |rules: &[(Part, &[&str])], fits: &dyn Fn(&str) -> bool| {
        let rule = rules.iter().find(|(_, names)| names.iter().any(|name| fits(name)));
        rule.map(|(part, _)| *part)
    };
    if !file.starts_with("[kernel") {
        // An artifact has no names.
        let own = if *name == "[unknown]" {
            Some(Part::Guest)
        } else {
            fits(&OWN, &|part| name.contains(part))
        };
        return Some(own.unwrap_or(Part::Other));
    }
    for (name, _) in frames {
        if name.contains("exc_page_fault") {
            return Some(Part::PageFaults);
        }
        if let Some(call) = name
            .strip_prefix("__x64_sys_")
            .or_else(|| name.strip_prefix("__arm64_sys_"))
        {
            return Some(fits(&CALLS, &|part| call == part).unwrap_or(Part::OtherKernel));
        }
    }
    Some(Part::OtherKernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_told_by_its_call_in_the_kernel_and_by_its_own_name_elsewhere() {
        let script = "\n\
            \tffffffff813a4413 finish_task_switch.isra.0 ([kernel.kallsyms])\n\
            \tffffffff81733cca __x64_sys_epoll_wait ([kernel.kallsyms])\n\
            \t           96f17 mio::poll::Poll::poll (/bin/shim)\n\n\
            \tffffffff813a4413 clear_page ([kernel.kallsyms])\n\
            \tffffffff81733cca asm_exc_page_fault ([kernel.kallsyms])\n\
            \t           96f17 __x64_sys_read (/bin/shim)\n\n\
            \t1de26b3 <hyper::proto::h1::conn::Conn<I,B,T>>::poll (/bin/shim)\n\
            \t1df312f [unknown] (/bin/shim)\n\n\
            \t1de26b3 [unknown] (/cache/a.cwasm)\n\n\
            \t1de26b3 _start (/bin/shim)\n\n\
            \tffffffff813a4413 sysvec_apic_timer_interrupt ([kernel.kallsyms])\n\n";
        assert_eq!(
            parts_of(script),
            [
                Part::Waits,
                Part::PageFaults,
                Part::Http,
                Part::Guest,
                Part::Other,
                Part::OtherKernel
            ]
        );
    }
}
