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

/// Which part a sample in the kernel is, by a function that it is in; the first that fits.
const KERNEL: [(Part, &[&str]); 5] = [
    (Part::PageFaults, &["exc_page_fault"]),
    (
        Part::Memory,
        &["pagemap", "madvise", "mprotect", "munmap", "mmap_region", "mremap"],
    ),
    (Part::HandOvers, &["futex", "sched_yield"]),
    (Part::Waits, &["epoll"]),
    (
        Part::Sockets,
        &[
            "sock_",
            "tcp_",
            "recvfrom",
            "sendto",
            "readv",
            "writev",
            "vfs_read",
            "vfs_write",
        ],
    ),
];

/// The end of an artifact's name.
const ARTIFACT: &str = ".cwasm";

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

    /// The share of each part in the samples of a process that runs the shim, whose names are `symbols`.
    ///
    /// # Errors
    ///
    /// When perf(1) cannot read it, or there is none in it.
    pub fn shares(&self, symbols: &Symbols) -> Result<BTreeMap<Part, f64>> {
        let script = output(
            Command::new("perf")
                .args(["script", "--fields", "ip,sym,dso", "--input"])
                .arg(self.0),
        )?;
        let samples = parts_of(&script, symbols);
        ensure!(!samples.is_empty(), "perf found nothing in {}", self.0.display());
        let mut shares = BTreeMap::new();
        for part in &samples {
            *shares.entry(*part).or_default() += 1.0 / samples.len() as f64;
        }
        Ok(shares)
    }
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The names of a binary's functions by where they begin in its file. A guest's process has no path to its binary, so
/// perf says places alone.
pub struct Symbols(BTreeMap<u64, String>);

impl Symbols {
    /// Of the binary at `path`, by nm(1) and readelf(1).
    ///
    /// # Errors
    ///
    /// When one of them cannot read it, or its names were stripped.
    pub fn of(path: &Path) -> Result<Symbols> {
        let names = output(Command::new("nm").args(["--defined-only", "--demangle"]).arg(path))?;
        let segments = output(Command::new("readelf").args(["--segments", "--wide"]).arg(path))?;
        let symbols = Symbols::parse(&names, &segments);
        symbols.with_context(|| format!("{} has no names: build it with BUILD_SYMBOLS=1", path.display()))
    }

    fn parse(names: &str, segments: &str) -> Option<Symbols> {
        let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
        let code = segments
            .lines()
            .find(|line| line.contains("LOAD") && line.contains(" E "))?;
        let mut fields = code.split_whitespace().skip(1);
        let (offset, address) = (number(fields.next()?)?, number(fields.next()?)?);
        let symbols: BTreeMap<u64, String> = names
            .lines()
            .filter_map(|line| {
                let (begins, named) = line.split_once(' ')?;
                let name = named.strip_prefix(['t', 'T', 'w', 'W'])?;
                Some((number(begins)?.checked_sub(address)? + offset, name.trim().to_owned()))
            })
            .collect();
        (!symbols.is_empty()).then_some(Symbols(symbols))
    }

    fn at(&self, place: u64) -> Option<&str> {
        self.0.range(..=place).next_back().map(|(_, name)| name.as_str())
    }
}

/// The part of each sample in what `perf script` prints: a line for each frame, `place name (file)`, the innermost first,
/// and an empty line behind each sample.
fn parts_of(script: &str, symbols: &Symbols) -> Vec<Part> {
    let samples = script.split("\n\n").map(|sample| sample.trim_matches('\n'));
    let samples = samples.filter(|sample| !sample.is_empty());
    samples
        .filter_map(|sample| part_of(&sample.lines().filter_map(frame).collect::<Vec<_>>(), symbols))
        .collect()
}

/// The place, the name and the file of a frame.
fn frame(line: &str) -> Option<(u64, &str, &str)> {
    let (place, named) = line.trim().split_once(' ')?;
    let (name, file) = named.rsplit_once(" (")?;
    Some((u64::from_str_radix(place, 16).ok()?, name, file.strip_suffix(')')?))
}

fn part_of(frames: &[(u64, &str, &str)], symbols: &Symbols) -> Option<Part> {
    let (place, name, file) = frames.first()?;
    let find = |rules: &[(Part, &[&str])], names: &[&str]| {
        let fits = |wanted: &&str| names.iter().any(|name| name.contains(wanted));
        let rule = rules.iter().find(|(_, wanted)| wanted.iter().any(fits));
        rule.map(|(part, _)| *part)
    };
    Some(if file.starts_with("[kernel") {
        let kernel = frames.iter().take_while(|(_, _, file)| file.starts_with("[kernel"));
        find(&KERNEL, &kernel.map(|(_, name, _)| *name).collect::<Vec<_>>()).unwrap_or(Part::OtherKernel)
    } else if file.ends_with(ARTIFACT) {
        Part::Guest
    } else {
        let name = if *name == "[unknown]" {
            symbols.at(*place)?
        } else {
            *name
        };
        find(&OWN, &[name]).unwrap_or(Part::Other)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_told_by_the_function_of_the_binary_or_by_what_the_kernel_is_in() {
        let names = "0000000000002100 t <hyper::proto::h1::conn::Conn<I,B,T>>::poll\n\
            0000000000002200 T _start\n0000000000000010 r no_function\n";
        let segments = "  LOAD 0x000000 0x0000 0x0000 0x000bc0 0x000bc0 R   0x1000\n  \
            LOAD 0x001000 0x2000 0x2000 0x009600 0x009600 R E 0x1000\n";
        let symbols = Symbols::parse(names, segments).unwrap();
        let script = "\n\
            \tffffffff813a4413 finish_task_switch.isra.0 ([kernel.kallsyms])\n\
            \tffffffff81733cca __x64_sys_epoll_wait ([kernel.kallsyms])\n\
            \t           1110 [unknown] (/)\n\n\n\
            \tffffffff813a4413 clear_page ([kernel.kallsyms])\n\
            \tffffffff81733cca asm_exc_page_fault ([kernel.kallsyms])\n\n\n\
            \t           1110 [unknown] (/)\n\
            \t        1df312f [unknown] (/)\n\n\n\
            \t        1de26b3 [unknown] (/c258.cwasm)\n\n\n\
            \t           1210 [unknown] (/)\n\n\n\
            \tffffffff813a4413 sysvec_apic_timer_interrupt ([kernel.kallsyms])\n\
            \t           1110 tcp_ack (/)\n\n";
        assert_eq!(
            parts_of(script, &symbols),
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
