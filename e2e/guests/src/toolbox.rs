//! A multi-call program, as busybox is one: the name it is called by says which tool it is. Built for WASI alone, it
//! stands for busybox where critest may be told to use another image (hack/critest-images).
//!
//! A guest starts no processes, so its shell knows these tools and no others.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::exit;
use std::time::Duration;

mod shell;

/// The streams of a tool: the process's own, or those of a pipeline.
pub struct Streams<'a> {
    pub input: &'a mut dyn Read,
    pub output: &'a mut dyn Write,
    pub error: &'a mut dyn Write,
}

fn main() {
    let mut arguments = std::env::args();
    let name = arguments.next().unwrap_or_default();
    let arguments: Vec<String> = arguments.collect();
    let name = Path::new(&name).file_name().unwrap_or_default().to_string_lossy();
    let mut streams = Streams {
        input: &mut io::stdin(),
        output: &mut io::stdout(),
        error: &mut io::stderr(),
    };
    exit(call(&name, &arguments, &mut streams));
}

/// Runs the tool `name` and returns its exit code: 127 when there is none of this name.
pub fn call(name: &str, arguments: &[String], streams: &mut Streams<'_>) -> i32 {
    let done = match name {
        "sh" => return shell::run(arguments, streams),
        "true" => Ok(true),
        "false" => Ok(false),
        "echo" => echo(arguments, streams),
        "sleep" => sleep(arguments),
        "top" => top(streams),
        "ls" => list(arguments, streams),
        "touch" => touch(arguments),
        "grep" => grep(arguments, streams),
        "[" => test(arguments),
        _ => {
            // What cannot be told is nobody's to hear.
            let _ = writeln!(streams.error, "sh: {name}: not found");
            return 127;
        }
    };
    match done {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(error) => {
            let _ = writeln!(streams.error, "{name}: {error}");
            1
        }
    }
}

/// `echo [-n] WORD...`
fn echo(arguments: &[String], streams: &mut Streams<'_>) -> io::Result<bool> {
    let (words, end) = match arguments {
        [first, rest @ ..] if first == "-n" => (rest, ""),
        all => (all, "\n"),
    };
    write!(streams.output, "{}{end}", words.join(" "))?;
    streams.output.flush()?;
    Ok(true)
}

/// `sleep SECONDS | infinity`
fn sleep(arguments: &[String]) -> io::Result<bool> {
    match arguments {
        [seconds] if seconds == "infinity" => wait(),
        [seconds] => match seconds.parse() {
            Ok(seconds) => std::thread::sleep(Duration::from_secs(seconds)),
            Err(_) => return Err(io::Error::other(format!("invalid number '{seconds}'"))),
        },
        _ => return Err(io::Error::other("usage: sleep SECONDS")),
    }
    Ok(true)
}

/// Says that there is nothing to see, and waits: a guest sees no processes.
fn top(streams: &mut Streams<'_>) -> io::Result<bool> {
    writeln!(streams.output, "top: no processes but this one")?;
    streams.output.flush()?;
    wait()
}

fn wait() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// `ls [-A] FOLDER`
fn list(arguments: &[String], streams: &mut Streams<'_>) -> io::Result<bool> {
    let folder = arguments
        .iter()
        .find(|word| !word.starts_with('-'))
        .map_or("/", String::as_str);
    let mut names: Vec<String> = fs::read_dir(folder)
        .map_err(|error| at(folder, &error))?
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()?;
    names.sort();
    for name in names {
        writeln!(streams.output, "{name}")?;
    }
    Ok(true)
}

/// `touch FILE...`
fn touch(arguments: &[String]) -> io::Result<bool> {
    for file in arguments {
        fs::File::options()
            .create(true)
            .append(true)
            .open(file)
            .map_err(|error| at(file, &error))?;
    }
    Ok(true)
}

/// `grep -q TEXT`: whether the input has it.
fn grep(arguments: &[String], streams: &mut Streams<'_>) -> io::Result<bool> {
    let [option, text] = arguments else {
        return Err(io::Error::other("usage: grep -q TEXT"));
    };
    if option != "-q" {
        return Err(io::Error::other(format!("invalid option '{option}'")));
    }
    let mut all = String::new();
    streams.input.read_to_string(&mut all)?;
    Ok(all.contains(text.as_str()))
}

/// `[ -f FILE ]`
fn test(arguments: &[String]) -> io::Result<bool> {
    match arguments {
        [option, file, end] if option == "-f" && end == "]" => Ok(Path::new(file).is_file()),
        _ => Err(io::Error::other("usage: [ -f FILE ]")),
    }
}

/// The error in busybox's words, which critest reads.
fn at(path: &str, error: &io::Error) -> io::Error {
    let said = match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => "Read-only file system".to_owned(),
        io::ErrorKind::NotFound => "No such file or directory".to_owned(),
        io::ErrorKind::PermissionDenied => "Permission denied".to_owned(),
        _ => error.to_string(),
    };
    io::Error::new(error.kind(), format!("{path}: {said}"))
}
