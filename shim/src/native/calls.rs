//! Calls of the node's OCI runtime for one container, through the `runc` crate; crun takes the same command line.
//!
//! Each call has a log of its own in the bundle (`--log`), from which the runtime's own words are taken when it fails:
//! its standard streams are the container's. A runtime does not outlive the server, so that none finishes what nobody
//! knows of, and it ends with the request that is given up.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use oci_spec::runtime::{LinuxResources, Process};
use runc::options::{CreateOpts, DeleteOpts, ExecOpts, GlobalOpts};
use runc::{Command, Runc, Spawner};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::failure::NativeError;
use super::streams::Ends;
use crate::stdio::{Console, Kept, Streams};
use crate::sys::child::Child;
use crate::sys::children::Children;
use crate::sys::{command, pidfd};

/// The runtime's state, in the bundle.
const ROOT: &str = "runtime";

/// Numbers the files of calls, which may run side by side.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// How the runtime is called for one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calls {
    /// A name on the PATH, or a path.
    pub binary: String,
    pub id: String,
    pub bundle: PathBuf,
    /// `linux.cgroupsPath` is `slice:prefix:name`: systemd makes the cgroup.
    pub systemd_cgroup: bool,
    pub no_pivot_root: bool,
    pub no_new_keyring: bool,
}

/// A new process and what stays here of its streams.
pub struct Born {
    pub child: Arc<Child>,
    pub kept: Kept,
    pub console: Option<Console>,
}

impl Calls {
    /// Makes the container; its first process, one of `children`, waits for [`Calls::start`].
    pub async fn create(
        &self,
        children: &Arc<Children>,
        streams: &Streams,
        terminal: bool,
    ) -> Result<Born, NativeError> {
        let _expected = children.expect();
        let ends = self.open(children, streams, terminal).await?;
        let pid_file = self.scratch("pid");
        let options = CreateOpts {
            io: Some(ends.handed()),
            pid_file: Some(pid_file.0.clone()),
            console_socket: ends.console_socket(),
            no_pivot: self.no_pivot_root,
            no_new_keyring: self.no_new_keyring,
            ..CreateOpts::default()
        };
        self.call("create", async |runtime| {
            runtime.create(&self.id, &self.bundle, Some(&options)).await
        })
        .await?;
        self.born(children, &pid_file, ends).await
    }

    /// Runs one more process in the container, one of `children`.
    pub async fn exec(
        &self,
        children: &Arc<Children>,
        process: &Process,
        streams: &Streams,
        terminal: bool,
    ) -> Result<Born, NativeError> {
        let _expected = children.expect();
        let ends = self.open(children, streams, terminal).await?;
        let pid_file = self.scratch("pid");
        let options = ExecOpts {
            io: Some(ends.handed()),
            pid_file: Some(pid_file.0.clone()),
            console_socket: ends.console_socket(),
            detach: true,
        };
        self.call("exec", async |runtime| {
            runtime.exec(&self.id, process, Some(&options)).await
        })
        .await?;
        self.born(children, &pid_file, ends).await
    }

    pub async fn start(&self) -> Result<(), NativeError> {
        self.call("start", async |runtime| runtime.start(&self.id).await.map(drop))
            .await
    }

    pub async fn pause(&self) -> Result<(), NativeError> {
        self.call("pause", async |runtime| runtime.pause(&self.id).await).await
    }

    pub async fn resume(&self) -> Result<(), NativeError> {
        self.call("resume", async |runtime| runtime.resume(&self.id).await)
            .await
    }

    pub async fn update(&self, limits: &LinuxResources) -> Result<(), NativeError> {
        self.call("update", async |runtime| runtime.update(&self.id, limits).await)
            .await
    }

    /// The pids of all processes, in the server's namespace.
    pub async fn pids(&self) -> Result<Vec<u32>, NativeError> {
        let pids = self.call("ps", async |runtime| runtime.ps(&self.id).await).await?;
        Ok(pids.into_iter().filter_map(|pid| u32::try_from(pid).ok()).collect())
    }

    /// Kills what is left of the container and removes the runtime's state of it; one that never was is fine.
    pub async fn delete(&self) -> Result<(), NativeError> {
        let force = DeleteOpts { force: true };
        self.call("delete", async |runtime| runtime.delete(&self.id, Some(&force)).await)
            .await
    }

    /// An error when there is no such runtime.
    pub fn check(&self) -> Result<(), NativeError> {
        let log = self.scratch("log");
        self.client(&log)
            .map(drop)
            .map_err(|error| self.failed("call", error, &log))
    }

    fn client(&self, log: &Scratch) -> runc::Result<Runc> {
        let mut options = GlobalOpts::new()
            .command(&self.binary)
            .root(self.bundle.join(ROOT))
            .log(&log.0)
            .log_json()
            .systemd_cgroup(self.systemd_cgroup);
        options.custom_spawner(Arc::new(Tethered));
        options.build()
    }

    async fn call<T>(
        &self,
        act: &'static str,
        work: impl AsyncFnOnce(Runc) -> runc::Result<T>,
    ) -> Result<T, NativeError> {
        let log = self.scratch("log");
        let done = match self.client(&log) {
            Ok(runtime) => work(runtime).await,
            Err(error) => Err(error),
        };
        done.map_err(|error| self.failed(act, error, &log))
    }

    fn failed(&self, act: &'static str, error: runc::error::Error, log: &Scratch) -> NativeError {
        use runc::error::Error;
        let binary = self.binary.clone();
        match error {
            Error::NotFound => NativeError::NoRuntime { binary },
            Error::ProcessSpawnFailed(cause) => NativeError::Run { binary, cause },
            Error::CommandFailed { status, stderr, .. } => NativeError::Refused {
                act,
                message: last_error(&fs::read_to_string(&log.0).unwrap_or_default())
                    .unwrap_or_else(|| words(&stderr, status)),
            },
            other => NativeError::Refused {
                act,
                message: other.to_string(),
            },
        }
    }

    async fn open(&self, children: &Arc<Children>, streams: &Streams, terminal: bool) -> Result<Ends, NativeError> {
        Ends::open(streams, terminal, &self.bundle, &name("sock"), children).await
    }

    /// The process that a call has made, with its streams.
    async fn born(&self, children: &Arc<Children>, pid_file: &Scratch, ends: Ends) -> Result<Born, NativeError> {
        let child = Arc::new(self.child(children, &pid_file.0)?);
        match ends.settle().await {
            Ok((kept, console)) => Ok(Born { child, kept, console }),
            Err(cause) => {
                // One that has ended already is what is wanted.
                let _ = child.kill(libc::SIGKILL);
                Err(NativeError::NoTerminal {
                    binary: self.binary.clone(),
                    cause,
                })
            }
        }
    }

    /// The process whose pid a call has written. Its parent, the runtime, is gone, so it is our child, and keeps its pid
    /// until we reap it.
    fn child(&self, children: &Arc<Children>, pid_file: &Path) -> Result<Child, NativeError> {
        let text = fs::read_to_string(pid_file).map_err(|cause| NativeError::Bundle {
            act: "read",
            path: pid_file.to_owned(),
            cause,
        })?;
        let pid = text.trim().parse().ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| NativeError::NoPid {
            binary: self.binary.clone(),
            path: pid_file.to_owned(),
            text,
        })?;
        let raw = pid.as_raw_nonzero().get();
        let child = pidfd::open(pid).and_then(|handle| children.watch(raw, handle, || None));
        child.map_err(|cause| NativeError::Watch {
            binary: self.binary.clone(),
            pid: raw,
            cause,
        })
    }

    fn scratch(&self, kind: &str) -> Scratch {
        Scratch(self.bundle.join(name(kind)))
    }
}

/// A name in the bundle that no other call uses, nor one of another process.
fn name(kind: &str) -> String {
    let number = CALLS.fetch_add(1, Ordering::Relaxed);
    format!("call-{}-{number}.{kind}", std::process::id())
}

/// A file of one call, removed after it.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // Not every call writes all of its files.
        let _ = fs::remove_file(&self.0);
    }
}

/// Runs the runtime for as long as the server lives and somebody waits for it.
#[derive(Debug)]
struct Tethered;

#[async_trait]
impl Spawner for Tethered {
    async fn execute(&self, mut program: Command) -> runc::Result<(ExitStatus, u32, String, String)> {
        program.kill_on_drop(true);
        command::die_with_us(&mut program);
        command::limit_open_files(&mut program);
        let child = program.spawn().map_err(runc::error::Error::ProcessSpawnFailed)?;
        // The program holds the container's streams, and would keep them open.
        drop(program);
        let pid = child.id().unwrap_or_default();
        let output = child
            .wait_with_output()
            .await
            .map_err(runc::error::Error::InvalidCommand)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((output.status, pid, text(output.stdout), text(output.stderr)))
    }
}

/// The last error in a log of JSON lines (pure).
fn last_error(log: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    let error = lines.rfind(|line| ["error", "fatal", "panic"].contains(&line.level.as_str()))?;
    Some(error.msg)
}

/// What a runtime without a log has said.
fn words(stderr: &str, status: ExitStatus) -> String {
    match stderr.trim() {
        "" => format!("it ended with {status} and said nothing"),
        stderr => stderr.to_owned(),
    }
}

/// Whether systemd is to make the cgroup, as runc and crun read it from `linux.cgroupsPath`.
pub fn is_systemd(cgroups_path: &Path) -> bool {
    cgroups_path
        .to_str()
        .is_some_and(|path| path.split(':').count() == 3 && !path.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_log_is_the_runtimes_word() {
        let log = concat!(
            r#"{"level":"warning","msg":"odd","time":"t"}"#,
            "\n",
            r#"{"level":"error","msg":"first","time":"t"}"#,
            "\n",
            r#"{"level":"error","msg":"exec: \"/x\": not found","time":"t"}"#,
            "\n",
            "not json\n",
            r#"{"level":"info","msg":"later","time":"t"}"#,
        );
        assert_eq!(last_error(log).as_deref(), Some(r#"exec: "/x": not found"#));
        assert_eq!(last_error(""), None);
    }

    #[test]
    fn systemds_cgroups_are_told_by_their_form() {
        assert!(is_systemd(Path::new("kubepods-pod1.slice:cri-containerd:abc")));
        assert!(is_systemd(Path::new(":cri-containerd:abc")));
        assert!(!is_systemd(Path::new("/kubepods/pod1/a:b:c")));
        assert!(!is_systemd(Path::new("/kubepods/pod1/abc")));
    }

    #[tokio::test]
    async fn a_runtime_that_is_not_there_is_named_with_the_mend() {
        let calls = |binary: &str| Calls {
            binary: binary.to_owned(),
            id: "x".to_owned(),
            bundle: std::env::temp_dir(),
            systemd_cgroup: false,
            no_pivot_root: false,
            no_new_keyring: false,
        };
        let error = calls("no-such-runc").start().await.unwrap_err().to_string();
        assert!(
            error.contains("\"no-such-runc\"") && error.contains("runc_binary"),
            "{error}"
        );
        assert!(calls("/nowhere/runc").check().is_err());
        let error = calls("/etc/passwd").start().await.unwrap_err().to_string();
        assert!(
            error.contains("\"/etc/passwd\"") && error.contains("cannot be run"),
            "{error}"
        );
    }
}
