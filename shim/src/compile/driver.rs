//! The server's side of a compile worker: starts it, waits for it, and says how it ended.
//!
//! The kernel limits its processor time (RLIMIT_CPU): a busy node takes longer for the same work. Wall-clock time counts only
//! for a worker that uses no processor time at all.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::Duration;

use kubewasi_options::{Engine as Options, WorldChoice};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::Worlds;
use super::confine::Confine;
use super::worker::{EXHAUSTED, Job, Outcome};
use crate::image::memory;
use crate::sys::stat::Stat;

/// Starts compile workers.
#[derive(Clone, Debug)]
pub struct Driver {
    /// This program; /proc/self/exe is right even after an upgrade replaced its file.
    pub program: PathBuf,
    /// The most processor time; whole seconds.
    pub timeout: Duration,
    /// The interval at which the worker's processor time is read.
    pub look: Duration,
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
    #[error("compiling takes more than {} s of processor time: raise the option compile_timeout", .0.as_secs())]
    ProcessorTime(Duration),
    #[error("the compile worker used no processor time for {} s and was ended", .0.as_secs())]
    Stalled(Duration),
    #[error("compiling needs more than {} MiB of memory: raise the option compile_memory", .0 >> 20)]
    Memory(u64),
    #[error("the compile worker was killed by signal {0}{hint}", hint = if *.0 == libc::SIGKILL { " (is the node short of memory?)" } else { "" })]
    Signal(i32),
    #[error("the compile worker failed: {0}")]
    Broken(String),
    #[error("the compile worker's cgroup could not be made: {0}")]
    Cgroup(#[source] io::Error),
    #[error("starting the compile worker failed: {0}")]
    Start(#[source] io::Error),
}

/// The interval at which a worker's processor time is read.
pub const LOOK: Duration = Duration::from_secs(30);

/// After so many intervals in a row without progress a worker is ended. Readings are counted instead of time, since a server
/// that was frozen together with its worker has taken none.
const IDLE_LOOKS: u32 = 20;

/// As many bytes of a worker's stderr are read: an outcome with the longest sensible message.
const MOST_SAID: usize = 64 << 10;

/// As many threads compile one module.
const MOST_THREADS: usize = 4;

impl Driver {
    /// Compiles `input` in a worker, whose pid `started` is given; the artifact comes in a sealed memfd. Blocks, and must
    /// be called on a thread that lives as long as the call: the kernel ends the worker when that thread ends.
    pub fn compile(
        &self,
        input: OwnedFd,
        choice: WorldChoice,
        started: impl FnOnce(u32),
    ) -> Result<(File, Worlds), WorkerError> {
        let output = memory::file("artifact").map_err(WorkerError::Start)?;
        let threads = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(MOST_THREADS);
        let job = Job {
            memory: self.memory,
            seconds: self.timeout.as_secs(),
            choice,
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
        started(child.id());
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
            return Err(WorkerError::Stalled(self.look * IDLE_LOOKS));
        };
        if status.signal() == Some(libc::SIGKILL) && confine.as_ref().is_some_and(Confine::ran_out) {
            return Err(WorkerError::Memory(self.memory));
        }
        let worlds = self.verdict(status, &said)?;
        memory::seal(&output).map_err(|error| WorkerError::Broken(error.to_string()))?;
        Ok((output, worlds))
    }

    /// Waits until the worker is gone, and ends it when it makes no progress (`None`). Nothing of it is left afterwards.
    fn finish(&self, child: &mut Child) -> io::Result<(Option<ExitStatus>, Vec<u8>)> {
        let mut progress = Progress::new(child.id(), self.look);
        let mut wait = |child: &mut Child| -> io::Result<(bool, Vec<u8>)> {
            let pid = Pid::from_child(child);
            let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
            let said = match child.stderr.take() {
                Some(stderr) => read_all(stderr, &mut progress)?,
                None => Vec::new(),
            };
            Ok((progress.readable(&pidfd)?, said))
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

    fn verdict(&self, status: ExitStatus, said: &[u8]) -> Result<Worlds, WorkerError> {
        match status.signal() {
            Some(libc::SIGXCPU) => return Err(WorkerError::ProcessorTime(self.timeout)),
            Some(signal) => return Err(WorkerError::Signal(signal)),
            None => {}
        }
        if status.code() == Some(EXHAUSTED) {
            return Err(WorkerError::Memory(self.memory));
        }
        match serde_json::from_slice(said) {
            Ok(Outcome::Compiled { worlds, .. }) if status.success() => Ok(worlds),
            Ok(Outcome::Rejected { message }) => Err(WorkerError::Rejected(message)),
            Ok(Outcome::Broken { message }) => Err(WorkerError::Broken(message)),
            _ => Err(WorkerError::Broken(format!(
                "{status}: {}",
                String::from_utf8_lossy(said).trim()
            ))),
        }
    }
}

/// Detects a worker that makes no progress.
struct Progress {
    pid: u32,
    look: Duration,
    used: Option<Duration>,
    idle_looks: u32,
}

impl Progress {
    fn new(pid: u32, look: Duration) -> Progress {
        Progress {
            pid,
            look,
            used: None,
            idle_looks: 0,
        }
    }

    /// Whether `fd` became readable, or its other end went away, before the worker was found idle too often.
    fn readable(&mut self, fd: impl std::os::fd::AsFd) -> io::Result<bool> {
        let look = Timespec {
            tv_sec: self.look.as_secs() as i64,
            tv_nsec: i64::from(self.look.subsec_nanos()),
        };
        while self.idle_looks < IDLE_LOOKS {
            match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&look)) {
                Ok(0) => self.look(),
                Ok(_) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(false)
    }

    fn look(&mut self) {
        let used = Stat::of(self.pid).ok().and_then(|stat| stat.processor_time());
        self.idle_looks = if used == self.used { self.idle_looks + 1 } else { 0 };
        self.used = used;
    }
}

/// Reads until the end, or until the worker makes no progress, keeping at most [`MOST_SAID`] bytes.
fn read_all(mut stderr: ChildStderr, progress: &mut Progress) -> io::Result<Vec<u8>> {
    let (mut said, mut buffer) = (Vec::new(), [0; 4096]);
    while progress.readable(&stderr)? {
        match stderr.read(&mut buffer)? {
            0 => break,
            count => said.extend_from_slice(&buffer[..count.min(MOST_SAID - said.len())]),
        }
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::World;
    use std::os::unix::fs::PermissionsExt;

    /// A driver whose worker is a script: how workers end is what is tested here, not what they compile.
    fn driver(folder: &tempfile::TempDir, script: &str) -> Driver {
        let program = folder.path().join("worker");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("script");
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("chmod");
        Driver {
            program,
            timeout: Duration::from_secs(3),
            look: Duration::from_millis(50),
            memory: 64 << 20,
            engine: Options::default(),
            confined: false,
        }
    }

    const COMPILED: &str = r#"printf artifact; printf '{"compiled":{"worlds":{"world":"Module"},"length":8}}' >&2"#;

    fn run(script: &str) -> Result<(File, Worlds), WorkerError> {
        let folder = tempfile::tempdir().expect("temp folder");
        let input = memory::file("input").expect("memfd");
        driver(&folder, script).compile(input.into(), WorldChoice::Auto, |_| ())
    }

    #[test]
    fn a_finished_worker_gives_its_output_and_world() {
        let (mut output, worlds) = run(COMPILED).expect("compiled");
        assert_eq!(worlds.world, World::Module);
        use std::io::{Seek, SeekFrom, Write};
        output.seek(SeekFrom::Start(0)).expect("seek");
        let mut text = String::new();
        output.read_to_string(&mut text).expect("read");
        assert_eq!(text, "artifact");
        assert!(output.write_all(b"more").is_err(), "the output is sealed");
    }

    #[test]
    fn a_worker_that_does_not_compute_is_ended() {
        let error = run("exec sleep 30").expect_err("stalled");
        assert!(matches!(error, WorkerError::Stalled(_)), "{error}");
        // Also one that closed its stderr.
        assert!(matches!(run("exec sleep 30 2>&-"), Err(WorkerError::Stalled(_))));
    }

    #[test]
    fn a_worker_that_computes_is_waited_for() {
        // Longer than an idle one is.
        let script = "i=0; while [ $i -lt 3000000 ]; do i=$((i+1)); done";
        run(&format!("{script}; {COMPILED}")).expect("compiled");
    }

    #[test]
    fn the_kernels_signal_for_the_processor_time_names_limit_and_option() {
        let error = run("kill -XCPU $$").expect_err("too long").to_string();
        assert_eq!(
            error,
            "compiling takes more than 3 s of processor time: raise the option compile_timeout"
        );
    }

    #[test]
    fn the_caller_learns_the_pid_of_its_worker() {
        let folder = tempfile::tempdir().expect("temp folder");
        let input = memory::file("input").expect("memfd");
        let mut pid = 0;
        let said = driver(&folder, "printf %s $$ >&2; exit 3").compile(input.into(), WorldChoice::Auto, |it| pid = it);
        let said = said.expect_err("no outcome").to_string();
        assert!(pid > 0 && said.ends_with(&format!(": {pid}")), "{pid}: {said}");
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
        let lie = run(&format!("{COMPILED}; exit 1"));
        assert!(matches!(lie, Err(WorkerError::Broken(_))));
    }

    #[test]
    fn a_program_that_is_not_there_is_told() {
        let driver = Driver {
            program: "/no/such/program".into(),
            timeout: Duration::from_secs(1),
            look: LOOK,
            memory: 1 << 20,
            engine: Options::default(),
            confined: false,
        };
        let input = memory::file("input").expect("memfd");
        let started = driver.compile(input.into(), WorldChoice::Auto, |_| ());
        assert!(matches!(started, Err(WorkerError::Start(_))));
    }
}
