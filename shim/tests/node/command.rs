//! Runs a command to its end or to its time limit, and keeps what it printed.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The longest any command of a test may take: a little more than crictl is patient.
pub const LIMIT: Duration = Duration::from_secs(150);

/// How many times longer than elsewhere a wait may last: `KUBEWASI_PATIENCE`, for a machine that is emulated.
pub fn patience() -> u32 {
    let text = std::env::var("KUBEWASI_PATIENCE").unwrap_or_else(|_| "1".to_owned());
    text.parse().expect("KUBEWASI_PATIENCE is a number")
}

/// A command that ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// What was run, for messages.
    pub line: String,
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Finished {
    /// Fails the test, with all that is known, unless the exit code is `code`.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Finished {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }

    /// Fails the test unless the command succeeded.
    #[track_caller]
    pub fn ok(self) -> Finished {
        self.expect_code(0)
    }

    /// Fails the test unless the command failed and said every one of `words` on stderr.
    #[track_caller]
    pub fn expect_refusal(self, words: &[&str]) -> Finished {
        assert_ne!(self.code, Some(0), "this had to fail: {self}");
        self.expect_error(words)
    }

    /// Fails the test unless every one of `words` is on stderr.
    #[track_caller]
    pub fn expect_error(self, words: &[&str]) -> Finished {
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not on stderr: {self}");
        }
        self
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} -> {:?} after {:?}", self.line, self.code, self.took)?;
        writeln!(f, "--- stdout\n{}", self.stdout)?;
        writeln!(f, "--- stderr\n{}", self.stderr)
    }
}

/// Runs `command` with nothing on its standard input.
#[track_caller]
pub fn run(command: &mut Command) -> Finished {
    Running::start(command).wait()
}

/// A command that is still running.
pub struct Running {
    line: String,
    since: Instant,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: JoinHandle<Vec<u8>>,
    stderr: JoinHandle<Vec<u8>>,
}

impl Running {
    #[track_caller]
    pub fn start(command: &mut Command) -> Running {
        let line = format!("{command:?}");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        Running {
            line,
            since: Instant::now(),
            stdin: child.stdin.take(),
            child,
            stdout: collect(stdout),
            stderr: collect(stderr),
        }
    }

    /// Writes `bytes` to the command's standard input, which stays open until [`Running::wait`].
    pub fn feed(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    /// Closes its standard input and waits for the end; fails the test after [`LIMIT`], times [`patience`].
    #[track_caller]
    pub fn wait(mut self) -> Finished {
        let limit = LIMIT * patience();
        drop(self.stdin.take());
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break Some(status);
            }
            if self.since.elapsed() > limit {
                self.child.kill().unwrap();
                self.child.wait().unwrap();
                break None;
            }
            thread::sleep(Duration::from_millis(2));
        };
        let finished = Finished {
            line: self.line,
            code: status.and_then(|status| status.code()),
            stdout: String::from_utf8_lossy(&self.stdout.join().unwrap()).into_owned(),
            stderr: own_words(&self.stderr.join().unwrap()),
            took: self.since.elapsed(),
        };
        assert!(status.is_some(), "over its limit of {limit:?} and killed: {finished}");
        finished
    }
}

/// What a command said itself: containerd 2.x has `ctr` warn on stderr that cgroup v1 is going away.
fn own_words(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    text.split_inclusive('\n')
        .filter(|line| !line.contains("msg=\"DEPRECATION:"))
        .collect()
}

fn collect(mut stream: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all
    })
}

/// Asks `done` again and again until it answers, at most for `limit`, times [`patience`]; `what` names the wait in the failure.
#[track_caller]
pub fn eventually<T>(what: &str, limit: Duration, mut done: impl FnMut() -> Option<T>) -> T {
    let (since, limit) = (Instant::now(), limit * patience());
    loop {
        if let Some(found) = done() {
            return found;
        }
        assert!(since.elapsed() < limit, "{what}: not within {limit:?}");
        thread::sleep(Duration::from_millis(10));
    }
}
