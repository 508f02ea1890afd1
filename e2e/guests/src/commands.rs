//! What a probe can be told to do; each command shows one thing that a guest sees or can do.

use std::io::{self, IsTerminal, Read, Write};
use std::process::exit;
use std::time::Duration;

mod platform;

const USAGE: &str = "usage: probe args|env|cwd|isatty|say|cat|exit|exit-with-code|trap|panic|ls|read|write|random|lines|\
                     sleep|idle|spin|fill [VALUE...]";

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
        "fill" => fill(number(first)?),
        _ => return Err(io::Error::other(USAGE)),
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

/// Allocates and touches `mebibytes`.
fn fill(mebibytes: usize) {
    let mut kept = Vec::new();
    for _ in 0..mebibytes {
        kept.push(vec![1u8; 1 << 20]);
    }
    println!("filled {}", std::hint::black_box(&kept).len());
}

/// Reads all of standard input; the 0.3 probe echoes it through its own streams.
pub fn stdin() -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    io::stdin().read_to_end(&mut all)?;
    Ok(all)
}
