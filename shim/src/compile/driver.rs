//! The server's side of a compile worker: starts it, waits within a limit, and says how it ended.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use kubewasi_options::Engine as Options;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::World;
use super::confine::Confine;
use super::worker::{EXHAUSTED, Job, Outcome};
use crate::image::memory;

/// Starts compile workers.
#[derive(Clone, Debug)]
pub struct Driver {
    /// This program; /proc/self/exe is right even after an upgrade replaced its file.
    pub program: PathBuf,
    pub timeout: Duration,
    /// In bytes.
    pub memory: u64,
    pub engine: Options,
    /// Workers get a cgroup of their own.
    pub confined: bool,
}

/// Why a worker made no artifact.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("{0}")]
    Rejected(String),
    #[error("compiling took longer than {} s: raise the option compile_timeout", .0.as_secs())]
    Timeout(Duration),
    #[error("compiling needs more than {} MiB of memory: raise the option compile_memory", .0 >> 20)]
    Memory(u64),
    #[error("the compiler died by signal {0}{hint}", hint = if *.0 == libc::SIGKILL { " (is the node short of memory?)" } else { "" })]
    Signal(i32),
    #[error("the compile worker failed: {0}")]
    Broken(String),
    #[error("the compile worker's cgroup could not be made: {0}")]
    Cgroup(#[source] io::Error),
    #[error("starting the compile worker failed: {0}")]
    Start(#[source] io::Error),
}

/// As many bytes of a worker's stderr are read: an outcome with the longest sensible message.
const MOST_SAID: usize = 64 << 10;

/// As many threads compile one module.
const MOST_THREADS: usize = 4;

impl Driver {
    /// Compiles `input` in a worker; the artifact comes in a sealed memfd. Blocks, and must be called on a thread that
    /// lives as long as the call: the kernel ends the worker when that thread ends.
    pub fn compile(&self, input: OwnedFd) -> Result<(File, World), WorkerError> {
        let output = memory::file("artifact").map_err(WorkerError::Start)?;
        let threads = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(MOST_THREADS);
        // The wall clock strikes first unless the server is gone.
        let seconds = (self.timeout.as_secs() + 1).saturating_mul(threads as u64) + 5;
        let job = Job {
            memory: self.memory,
            seconds,
            engine: self.engine,
        };
        let confine = if self.confined {
            Some(Confine::new(self.memory).map_err(WorkerError::Cgroup)?)
        } else {
            None
        };
        let mut child = Command::new(&self.program)
            .arg0("containerd-shim-wasi-v1")
            .args(job.arguments())
            .env_clear()
            .env("RAYON_NUM_THREADS", threads.to_string())
            .current_dir("/")
            .stdin(input)
            .stdout(output.try_clone().map_err(WorkerError::Start)?)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(WorkerError::Start)?;
        // It waits for nothing: what it uses before it is moved is what any process uses to begin.
        let moved = confine.iter().try_for_each(|confine| confine.enter(child.id()));
        if moved.is_err() {
            // It is reaped below.
            let _ = child.kill();
        }
        let finished = self.finish(&mut child).map_err(WorkerError::Start);
        moved.map_err(WorkerError::Cgroup)?;
        let (status, said) = finished?;
        let Some(status) = status else {
            return Err(WorkerError::Timeout(self.timeout));
        };
        if status.signal() == Some(libc::SIGKILL) && confine.as_ref().is_some_and(Confine::ran_out) {
            return Err(WorkerError::Memory(self.memory));
        }
        let world = self.verdict(status, &said)?;
        memory::seal(&output).map_err(|error| WorkerError::Broken(error.to_string()))?;
        Ok((output, world))
    }

    /// Waits until the worker is gone, and ends it when its time is up (`None`). Nothing of it is left afterwards.
    fn finish(&self, child: &mut Child) -> io::Result<(Option<ExitStatus>, Vec<u8>)> {
        let deadline = Instant::now() + self.timeout;
        let wait = |child: &mut Child| -> io::Result<(bool, Vec<u8>)> {
            let pid = Pid::from_child(child);
            let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
            let said = match child.stderr.take() {
                Some(stderr) => read_until(stderr, deadline)?,
                None => Vec::new(),
            };
            Ok((readable(&pidfd, deadline)?, said))
        };
        let (ended, said) = match wait(child) {
            Ok((ended, said)) => (ended, Ok(said)),
            Err(error) => (false, Err(error)),
        };
        if !ended {
            child.kill()?;
        }
        let status = child.wait()?;
        Ok((ended.then_some(status), said?))
    }

    fn verdict(&self, status: ExitStatus, said: &[u8]) -> Result<World, WorkerError> {
        if let Some(signal) = status.signal() {
            return Err(WorkerError::Signal(signal));
        }
        if status.code() == Some(EXHAUSTED) {
            return Err(WorkerError::Memory(self.memory));
        }
        match serde_json::from_slice(said) {
            Ok(Outcome::Compiled { world, .. }) if status.success() => Ok(world),
            Ok(Outcome::Rejected { message }) => Err(WorkerError::Rejected(message)),
            Ok(Outcome::Broken { message }) => Err(WorkerError::Broken(message)),
            _ => Err(WorkerError::Broken(format!(
                "{status}: {}",
                String::from_utf8_lossy(said).trim()
            ))),
        }
    }
}

/// Reads until the end or the deadline, keeping at most [`MOST_SAID`] bytes.
fn read_until(mut stderr: ChildStderr, deadline: Instant) -> io::Result<Vec<u8>> {
    let (mut said, mut buffer) = (Vec::new(), [0; 4096]);
    while readable(&stderr, deadline)? {
        match stderr.read(&mut buffer)? {
            0 => break,
            count => said.extend_from_slice(&buffer[..count.min(MOST_SAID - said.len())]),
        }
    }
    Ok(said)
}

/// Whether `fd` became readable, or its other end went away, before the deadline.
fn readable(fd: impl std::os::fd::AsFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&left)) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A driver whose worker is a script: how workers end is what is tested here, not what they compile.
    fn driver(folder: &tempfile::TempDir, script: &str) -> Driver {
        let program = folder.path().join("worker");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("script");
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("chmod");
        Driver {
            program,
            timeout: Duration::from_millis(400),
            memory: 64 << 20,
            engine: Options::default(),
            confined: false,
        }
    }

    fn run(script: &str) -> Result<(File, World), WorkerError> {
        let folder = tempfile::tempdir().expect("temp folder");
        let input = memory::file("input").expect("memfd");
        driver(&folder, script).compile(input.into())
    }

    #[test]
    fn a_finished_worker_gives_its_output_and_world() {
        let (mut output, world) =
            run(r#"printf artifact; printf '{"compiled":{"world":"Module","length":8}}' >&2"#).expect("compiled");
        assert_eq!(world, World::Module);
        use std::io::{Seek, SeekFrom, Write};
        output.seek(SeekFrom::Start(0)).expect("seek");
        let mut text = String::new();
        output.read_to_string(&mut text).expect("read");
        assert_eq!(text, "artifact");
        assert!(output.write_all(b"more").is_err(), "the output is sealed");
    }

    #[test]
    fn a_worker_that_takes_too_long_is_ended() {
        let begun = Instant::now();
        let error = run("exec sleep 30").expect_err("too long");
        assert!(matches!(error, WorkerError::Timeout(_)), "{error}");
        assert!(error.to_string().contains("compile_timeout"), "{error}");
        // Also one that closed its stderr.
        assert!(matches!(run("exec sleep 30 2>&-"), Err(WorkerError::Timeout(_))));
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn ends_without_an_outcome_are_told_apart() {
        let memory = run(&format!("exit {EXHAUSTED}")).expect_err("memory").to_string();
        assert_eq!(
            memory,
            "compiling needs more than 64 MiB of memory: raise the option compile_memory"
        );
        assert!(matches!(run("kill -SEGV $$"), Err(WorkerError::Signal(11))));
        let broken = run("echo oops >&2; exit 3").expect_err("broken").to_string();
        assert!(broken.contains("oops") && broken.contains('3'), "{broken}");
        let rejected = run(r#"printf '{"rejected":{"message":"bad"}}' >&2; exit 1"#).expect_err("rejected");
        assert!(matches!(rejected, WorkerError::Rejected(message) if message == "bad"));
    }

    #[test]
    fn a_claim_of_success_with_a_failing_exit_code_is_not_believed() {
        let lie = run(r#"printf '{"compiled":{"world":"Module","length":8}}' >&2; exit 1"#);
        assert!(matches!(lie, Err(WorkerError::Broken(_))));
    }

    #[test]
    fn a_program_that_is_not_there_is_told() {
        let driver = Driver {
            program: "/no/such/program".into(),
            timeout: Duration::from_secs(1),
            memory: 1 << 20,
            engine: Options::default(),
            confined: false,
        };
        let input = memory::file("input").expect("memfd");
        assert!(matches!(driver.compile(input.into()), Err(WorkerError::Start(_))));
    }
}
