//! The confined child that compiles: wasm on stdin, the artifact to stdout, the outcome as JSON on stderr.
//!
//! The bytes are hostile and the compiler is large, so it runs where a mistake is worth little: as nobody, without
//! capabilities, descriptors, files, network, or other processes' memory, within limits of memory and time.

use std::any::Any;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::panic;

use kubewasi_options::{Engine as Options, WorldChoice};
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal};

use super::world::worlds;
use super::{World, Worlds, compression, engine};
use crate::sys::credentials::{Capabilities, Ids};
use crate::sys::seccomp::{Allow, FilterError};
use crate::sys::{allocator, credentials, fds, seccomp};

/// What a worker is told, as arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// The most memory it may map beside its own program, in bytes.
    pub memory: u64,
    /// The most processor time, in seconds; more is SIGXCPU.
    pub seconds: u64,
    pub choice: WorldChoice,
    pub engine: Options,
}

/// What a worker says when it ends by itself.
#[derive(Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Compiled {
        worlds: Worlds,
        length: u64,
    },
    /// The module is at fault, and this is the compiler's message.
    Rejected {
        message: String,
    },
    /// The worker is: it could not confine itself, read or write.
    Broken {
        message: String,
    },
}

/// The exit code when memory ran out: nothing can be allocated to say so.
pub const EXHAUSTED: i32 = 12;

/// Above every pod's but those that ask for nothing (Kubernetes gives BestEffort 1000, Burstable at most 999).
const OOM_SCORE: &str = "900";

/// `nobody` on every distribution.
const NOBODY: u32 = 65534;

impl Job {
    /// The arguments that follow the binary's name.
    pub fn arguments(&self) -> [String; 5] {
        [
            "compile".to_owned(),
            self.memory.to_string(),
            self.seconds.to_string(),
            self.choice.to_string(),
            engine::argument(&self.engine),
        ]
    }

    fn parse(mut arguments: impl Iterator<Item = String>) -> Option<Job> {
        if arguments.next()? != "compile" {
            return None;
        }
        Some(Job {
            memory: arguments.next()?.parse().ok()?,
            seconds: arguments.next()?.parse().ok()?,
            choice: arguments.next()?.parse().ok()?,
            engine: engine::of_argument(&arguments.next()?)?,
        })
    }
}

/// `containerd-shim-wasi-v1 compile`: compiles what stdin holds and exits.
pub fn run() -> ! {
    let outcome = Job::parse(std::env::args().skip(1)).map_or_else(
        || Outcome::Broken {
            message: "compile is for the server's own use".to_owned(),
        },
        |job| {
            allocator::exit_when_exhausted(EXHAUSTED);
            confine(&job)
                .and_then(|()| perform(&job))
                .unwrap_or_else(|message| Outcome::Broken { message })
        },
    );
    let code = match outcome {
        Outcome::Compiled { .. } => 0,
        Outcome::Rejected { .. } | Outcome::Broken { .. } => 1,
    };
    let text = serde_json::to_string(&outcome).unwrap_or_default();
    // Without a reader there is nobody left to tell.
    let _ = io::stderr().write_all(text.as_bytes());
    std::process::exit(code);
}

fn perform(job: &Job) -> Result<Outcome, String> {
    let told = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| format!("{what} failed: {error}")
    };
    let input = input().map_err(told("reading the wasm"))?;
    // The default hook would mix its text into the outcome.
    panic::set_hook(Box::new(|_| {}));
    let compile = || {
        let wasm = compression::decompress(&input).map_err(|error| error.to_string())?;
        compile(&wasm, &job.engine, job.choice)
    };
    match panic::catch_unwind(compile) {
        Ok(Ok((artifact, worlds))) => {
            let mut output = File::from(
                io::stdout()
                    .as_fd()
                    .try_clone_to_owned()
                    .map_err(told("opening the output"))?,
            );
            output.write_all(&artifact).map_err(told("writing the artifact"))?;
            Ok(Outcome::Compiled {
                worlds,
                length: artifact.len() as u64,
            })
        }
        Ok(Err(message)) => Ok(Outcome::Rejected { message }),
        Err(panic) => Ok(Outcome::Rejected {
            message: format!("the compiler panicked: {}", said(&*panic)),
        }),
    }
}

/// All of stdin, a regular file or memfd, read by position: others share its offset.
fn input() -> io::Result<Vec<u8>> {
    let file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Compiles `wasm` for the world that `choice` has it run as; the error is what its author should read.
pub fn compile(wasm: &[u8], options: &Options, choice: WorldChoice) -> Result<(Vec<u8>, Worlds), String> {
    let worlds = worlds(wasm, choice).map_err(|error| error.to_string())?;
    let engine = engine::engine(worlds.world.profile(), options).map_err(|error| format!("{error:#}"))?;
    let artifact = match worlds.world {
        World::Module => engine.precompile_module(wasm),
        World::Command02 | World::Command03 | World::Http02 | World::Http03 => engine.precompile_component(wasm),
    };
    Ok((artifact.map_err(|error| format!("{error:#}"))?, worlds))
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a message")
}

/// What this process has mapped, in bytes: its program, of any size, leaves a compilation what it was promised.
fn mapped() -> io::Result<u64> {
    let counts = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = counts
        .split(' ')
        .next()
        .unwrap_or_default()
        .parse()
        .map_err(io::Error::other)?;
    Ok(pages.saturating_mul(rustix::param::page_size() as u64))
}

/// Gives up everything that compiling does not need. The order matters: each step needs what a later one takes away.
fn confine(job: &Job) -> Result<(), String> {
    let step = |what: &'static str| move |error: io::Error| format!("confining the compiler failed: {what}: {error}");
    fds::close_all_but(&[]).map_err(step("closing descriptors"))?;
    let rustix_step = |what| move |errno: rustix::io::Errno| step(what)(errno.into());
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(rustix_step("death signal"))?;
    // Before guests and the server: what it does can be done again.
    std::fs::write("/proc/self/oom_score_adj", OOM_SCORE).map_err(step("oom score"))?;
    // Guests that start come first.
    rustix::process::nice(10).map_err(rustix_step("nice"))?;
    let own = mapped().map_err(step("asking for its own size"))?;
    let limits = [
        (Resource::As, job.memory.saturating_add(own), 0),
        (Resource::Fsize, job.memory, 0),
        // SIGXCPU, by which the server knows the reason, and SIGKILL for one that ignores it.
        (Resource::Cpu, job.seconds, 5),
        // The three it has; it opens none.
        (Resource::Nofile, 5, 0),
        (Resource::Core, 0, 0),
        (Resource::Memlock, 0, 0),
    ];
    if rustix::process::geteuid().is_root() {
        become_nobody().map_err(|error| format!("confining the compiler failed: {error}"))?;
    }
    // After the user changed: that resets it.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(rustix_step("dumpable"))?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(rustix_step("death signal"))?;
    for (resource, most, grace) in limits {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most + grace),
        };
        rustix::process::setrlimit(resource, limit).map_err(rustix_step("limits"))?;
    }
    rustix::thread::set_no_new_privs(true).map_err(rustix_step("no new privileges"))?;
    let filtered = || seccomp::enter(&seccomp::allow_list(&calls())?);
    filtered().map_err(|error: FilterError| format!("confining the compiler failed: {error}"))
}

/// Drops all capabilities, groups and the user; there is one thread yet, so the thread's are the process's.
fn become_nobody() -> Result<(), String> {
    let ids = Ids {
        uid: NOBODY,
        gid: NOBODY,
        groups: Vec::new(),
        umask: None,
    };
    credentials::take(&ids, &Capabilities::default()).map_err(|(step, error)| format!("{step}: {error}"))
}

/// What the compiler calls: memory, threads of its own, its three files, time.
fn calls() -> Vec<Allow> {
    let plain = [
        libc::SYS_read,
        libc::SYS_pread64,
        libc::SYS_readv,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_close,
        libc::SYS_fstat,
        libc::SYS_statx,
        libc::SYS_lseek,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_mprotect,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_membarrier,
        libc::SYS_futex,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_set_tid_address,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_gettid,
        libc::SYS_getpid,
        libc::SYS_getuid,
        libc::SYS_getcpu,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_restart_syscall,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
        libc::SYS_getrandom,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];
    let mut calls: Vec<Allow> = plain.into_iter().map(Allow::Call).collect();
    #[cfg(target_arch = "x86_64")]
    calls.push(Allow::Call(libc::SYS_time));
    // Threads, never processes: musl's pthread_create calls clone(2).
    calls.push(Allow::Bits {
        call: libc::SYS_clone,
        index: 0,
        mask: libc::CLONE_THREAD as u64,
    });
    // Nothing by which the kernel sends signals on its behalf, to another process of the same user, say.
    for value in [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_DUPFD_CLOEXEC] {
        calls.push(Allow::Equals {
            call: libc::SYS_fcntl,
            index: 1,
            value: value as u64,
        });
    }
    // Rust names its threads.
    calls.push(Allow::Equals {
        call: libc::SYS_prctl,
        index: 0,
        value: libc::PR_SET_NAME as u64,
    });
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_read_back_from_its_arguments() {
        let job = Job {
            memory: 1 << 30,
            seconds: 60,
            choice: WorldChoice::Command,
            engine: Options::default(),
        };
        assert_eq!(Job::parse(job.arguments().into_iter()), Some(job));
        assert_eq!(Job::parse(["compile".to_owned()].into_iter()), None);
    }

    #[test]
    fn text_and_cut_modules_are_rejected_with_the_parsers_message() {
        let rejected = |bytes: &[u8]| {
            compile(bytes, &Options::default(), WorldChoice::Auto)
                .map(|_| ())
                .expect_err("rejected")
        };
        assert!(
            rejected(b"(module)").contains("magic header not detected"),
            "{}",
            rejected(b"(module)")
        );
        let module = wat::parse_str("(module (func (export \"_start\")))").expect("valid text");
        let message = rejected(&module[..module.len() - 2]);
        assert!(
            message.contains("unexpected end") && message.contains("offset 0x"),
            "{message}"
        );
    }

    #[test]
    fn an_invalid_module_is_rejected_with_the_validators_message() {
        let bad = wat::parse_str("(module (func (export \"_start\") i32.add drop))").expect("text assembles");
        let message = compile(&bad, &Options::default(), WorldChoice::Auto)
            .map(|_| ())
            .expect_err("rejected");
        assert!(message.contains("type mismatch"), "{message}");
    }

    #[test]
    fn a_proposal_is_compiled_where_its_option_allows_it_alone() {
        let on = Options {
            wide_arithmetic: true,
            ..Options::default()
        };
        let off = Options {
            gc: false,
            exceptions: false,
            threads: false,
            tail_call: false,
            memory64: false,
            ..Options::default()
        };
        let with = |text: &str, options: &Options| {
            compile(
                &wat::parse_str(text).expect("text assembles"),
                options,
                WorldChoice::Auto,
            )
            .map(|_| ())
        };
        for text in [
            "(module (type (struct (field i32))) (func (result (ref 0)) struct.new_default 0))",
            "(module (tag) (func throw 0))",
            "(module (memory 1 1) (func (result i32) (i32.atomic.load (i32.const 0))))",
            "(module (func return_call 0))",
            "(module (memory i64 1))",
            "(module (func (param i64 i64 i64 i64) (result i64 i64)
                (i64.add128 (local.get 0) (local.get 1) (local.get 2) (local.get 3))))",
        ] {
            assert_eq!(with(text, &on), Ok(()), "{text}");
            assert!(with(text, &off).is_err(), "{text}");
        }
    }
}
