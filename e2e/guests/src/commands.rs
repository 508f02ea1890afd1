//! What a probe can be told to do; each command shows one thing that a guest sees or can do.

use std::io::{self, IsTerminal, Read, Write};
use std::process::exit;
use std::time::Duration;

mod network;
mod platform;
#[cfg(all(target_os = "wasi", target_env = "p2"))]
pub mod services;

const USAGE: &str = "usage: probe args|env|cwd|isatty|say|cat|exit|exit-with-code|trap|panic|ls|read|write|random|lines|\
                     sleep|idle|spin|fill|grow|flood|seek|\
                     tcp-client|tcp-server|udp-client|udp-server|resolve|config|keyvalue|get [VALUE...]";

/// Runs the command that the arguments name; returns when it is done, or ends the process as it says.
pub fn run() {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let values: Vec<String> = args.collect();
    if let Err(error) = perform(&command, &values) {
        eprintln!("probe {command}: {error}");
        exit(1);
    }
}

fn perform(command: &str, values: &[String]) -> io::Result<()> {
    let first = values.first().map(String::as_str).unwrap_or_default();
    match command {
        "args" => std::env::args().for_each(|arg| println!("{arg}")),
        "env" => {
            let mut all: Vec<_> = std::env::vars().collect();
            all.sort();
            all.iter().for_each(|(name, value)| println!("{name}={value}"));
        }
        "cwd" => println!("{}", platform::cwd()?.display()),
        // Whether stdin, stdout and stderr are terminals.
        "isatty" => println!(
            "{} {} {}",
            io::stdin().is_terminal(),
            io::stdout().is_terminal(),
            io::stderr().is_terminal()
        ),
        // say OUT [ERR]: one line on each stream.
        "say" => {
            println!("{first}");
            if let Some(error) = values.get(1) {
                eprintln!("{error}");
            }
        }
        "cat" => {
            io::copy(&mut io::stdin().lock(), &mut io::stdout().lock())?;
        }
        "exit" => exit(number(first)?),
        "exit-with-code" => platform::exit_with_code(number(first)?),
        "trap" => outer(),
        "panic" => panic!("the probe was told to panic"),
        "ls" => list(first)?,
        "read" => io::copy(&mut std::fs::File::open(first)?, &mut io::stdout()).map(drop)?,
        "write" => std::fs::write(first, values.get(1).map(String::as_str).unwrap_or_default())?,
        // random BYTES: hexadecimal, from the secure and then from the insecure source, a line each.
        "random" => {
            let count = number(first)?;
            println!("{}", hex(&platform::random(count)?));
            println!("{}", hex(&platform::insecure_random()));
        }
        // lines COUNT: numbered lines of a known length, to see that none is lost or mixed.
        "lines" => {
            let mut out = io::stdout().lock();
            for index in 0..number::<u32>(first)? {
                writeln!(out, "{index:015}")?;
            }
        }
        "sleep" => std::thread::sleep(Duration::from_millis(number(first)?)),
        "idle" => idle()?,
        "spin" => loop {
            std::hint::spin_loop();
        },
        // fill MEBIBYTES: says how many it got when memory runs out.
        "fill" => {
            let mut kept = Vec::new();
            fill(&mut kept, number(first)?)?;
            println!("filled {}", kept.len());
        }
        "grow" => grow(first)?,
        "seek" => seek()?,
        // flood FILE MEBIBYTES
        "flood" => flood(first, number(values.get(1).map(String::as_str).unwrap_or_default())?)?,
        #[cfg(all(target_os = "wasi", target_env = "p2"))]
        "config" => services::config(first)?,
        #[cfg(all(target_os = "wasi", target_env = "p2"))]
        "keyvalue" => services::store::exercise()?,
        // get URL [TIMES]
        #[cfg(all(target_os = "wasi", target_env = "p2"))]
        "get" => services::get(first, values.get(1).map_or(Ok(1), |times| number(times))?)?,
        // post URL BYTES
        #[cfg(all(target_os = "wasi", target_env = "p2"))]
        "post" => services::post(first, number(values.get(1).map(String::as_str).unwrap_or_default())?)?,
        // ask URL TEXT
        #[cfg(all(target_os = "wasi", target_env = "p2"))]
        "ask" => services::ask(first, values.get(1).map(String::as_str).unwrap_or_default())?,
        _ => {
            let second = values.get(1).map(String::as_str).unwrap_or_default();
            return network::perform(command, first, second).unwrap_or_else(|| Err(io::Error::other(USAGE)));
        }
    }
    Ok(())
}

fn number<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse()
        .map_err(|_| io::Error::other(format!("{text:?} is not a number in range")))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Two frames that a backtrace must name.
#[inline(never)]
fn outer() {
    inner(std::env::args().count());
    println!("not reached");
}

#[inline(never)]
fn inner(count: usize) {
    if count > 0 {
        platform::trap();
    }
}

fn list(folder: &str) -> io::Result<()> {
    let mut names: Vec<_> = std::fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()?;
    names.sort();
    names.iter().for_each(|name| println!("{name}"));
    Ok(())
}

/// Says that it is there, then waits for its end.
fn idle() -> io::Result<()> {
    println!("idle");
    io::stdout().flush()?;
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Allocates and touches mebibytes until there are `mebibytes`.
fn fill(kept: &mut Vec<Vec<u8>>, mebibytes: usize) -> io::Result<()> {
    while kept.len() < mebibytes {
        let mut one = Vec::new();
        one.try_reserve_exact(1 << 20)
            .map_err(|_| io::Error::other(format!("out of memory after {} MiB", kept.len())))?;
        one.resize(1 << 20, 1u8);
        kept.push(std::hint::black_box(one));
    }
    Ok(())
}

/// Waits for a file `want` in `folder`, fills as many mebibytes as it says, and writes to a file `held` how many there
/// are; again and again.
fn grow(folder: &str) -> io::Result<()> {
    let mut kept = Vec::new();
    loop {
        if let Ok(want) = std::fs::read_to_string(format!("{folder}/want")) {
            std::fs::remove_file(format!("{folder}/want"))?;
            // Running out of memory is what is asked about.
            let _ = fill(&mut kept, number(&want)?);
            std::fs::write(format!("{folder}/held.new"), kept.len().to_string())?;
            std::fs::rename(format!("{folder}/held.new"), format!("{folder}/held"))?;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Looks for files of the kernel under every path and symlink there is, says what could be opened and how many folders it
/// looked into.
fn seek() -> io::Result<()> {
    const WANTED: [&str; 14] = [
        "self/mem",
        "1/mem",
        "thread-self/mem",
        "self/environ",
        "sysrq-trigger",
        "kcore",
        "kernel/notes",
        "cgroup.procs",
        "memory.max",
        "release_agent",
        "null",
        "mem",
        "kmsg",
        "ptmx",
    ];
    let mut folders = vec![std::path::PathBuf::from("/")];
    let mut looked = 0;
    while let Some(folder) = folders.pop() {
        looked += 1;
        // By names too: what is there need not be listed.
        for name in ["", "proc", "sys", "dev", "cgroup", "sys/fs/cgroup", ".."] {
            for path in WANTED.map(|wanted| folder.join(name).join(wanted)) {
                if std::fs::File::open(&path).is_ok() {
                    println!("found {}", path.display());
                }
            }
        }
        // A symlink in a circle ends where the path gets too long.
        if folder.components().count() > 8 {
            continue;
        }
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = entry?.path();
            match std::fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => folders.push(path),
                // Anything that is neither opens to something that is no file.
                Ok(metadata) if !metadata.is_file() && std::fs::File::open(&path).is_ok() => {
                    println!("found {}", path.display());
                }
                _ => {}
            }
        }
    }
    println!("looked into {looked}");
    Ok(())
}

/// Writes `mebibytes` to a file: on a tmpfs they are memory of the container's, but not the program's.
fn flood(file: &str, mebibytes: usize) -> io::Result<()> {
    let mut file = std::fs::File::create(file)?;
    for _ in 0..mebibytes {
        file.write_all(&[1; 1 << 20])?;
    }
    Ok(())
}

/// Reads all of standard input; the 0.3 probe echoes it through its own streams.
pub fn stdin() -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    io::stdin().read_to_end(&mut all)?;
    Ok(all)
}
