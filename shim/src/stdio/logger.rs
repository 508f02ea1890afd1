//! A program of the host that takes a process's output, as containerd's own shim runs it
//! (cmd/containerd-shim-runc-v2/process/io.go, `NewBinaryIO`): stdout and stderr are its fds 3 and 4, and by fd 5 it says
//! that it is ready.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::uri::Program;
use crate::sys::children::{Children, Watched};
use crate::sys::command::{limit_open_files, pass_files};

/// The longest that a logger may take until it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a logger may take to end by itself once its streams have ended.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// How long it may take after SIGTERM, as in containerd (`binaryIOProcTermTimeout`).
const TERM_TIMEOUT: Duration = Duration::from_secs(12);

/// A running logger. Dropping it kills one that is not ready yet; one that is ends by itself, when it has written all.
#[derive(Debug)]
pub struct Logger {
    child: Child,
    ready: bool,
    /// Its end is waited for here; one that is dropped is reaped with the orphans.
    _watched: Watched,
}

impl Drop for Logger {
    fn drop(&mut self) {
        if !self.ready {
            // One that has ended already is what is wanted.
            let _ = self.child.start_kill();
        }
    }
}

/// A logger with the ends of its pipes for the process.
pub struct Started {
    pub logger: Logger,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Starts `program` for the process `id` of `namespace`, as one of `children`, and waits until it is ready.
///
/// # Errors
///
/// When it cannot be run, or ends or takes a minute before it is ready.
pub async fn start(program: &Program, namespace: &str, id: &str, children: &Arc<Children>) -> io::Result<Started> {
    let (stdout_reader, stdout) = io::pipe()?;
    let (stderr_reader, stderr) = io::pipe()?;
    let (ready, report) = io::pipe()?;
    let mut command = Command::new(&program.path);
    command
        .args(&program.arguments)
        .env_clear()
        .envs(program.environment.iter().map(|(name, value)| (name, value)))
        .envs([("CONTAINER_ID", id), ("CONTAINER_NAMESPACE", namespace)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    limit_open_files(&mut command);
    let kept = pass_files(
        &mut command,
        [stdout_reader.into(), stderr_reader.into(), report.into()],
    )?;
    let (child, watched) = children.spawn(&mut command)?;
    // What the logger has, nobody else may: the ends of the pipes are what it waits for.
    drop((command, kept));
    let mut logger = Logger {
        child,
        ready: false,
        _watched: watched,
    };
    let mut ready = Receiver::from_owned_fd(ready.into())?;
    let mut byte = [0];
    let read = timeout(READY_TIMEOUT, ready.read(&mut byte)).await;
    let read = read.map_err(|_| {
        let seconds = READY_TIMEOUT.as_secs();
        io::Error::other(format!(
            "it is not ready after {seconds} s: it must close fd 5 (with binary-v2: after it has written a byte)"
        ))
    })??;
    if program.must_report && read == 0 {
        return Err(io::Error::other(
            "it ended, or closed fd 5, without writing a byte to it",
        ));
    }
    logger.ready = true;
    Ok(Started {
        logger,
        stdout: stdout.into(),
        stderr: stderr.into(),
    })
}

impl Logger {
    /// Waits for the end of a logger whose streams have ended, by SIGTERM after a while, and SIGKILL.
    pub async fn end(mut self) {
        if timeout(END_TIMEOUT, self.child.wait()).await.is_ok() {
            return;
        }
        let pid = self
            .child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It is not reaped, so the pid is its own.
            let _ = kill_process(pid, Signal::TERM);
        }
        if timeout(TERM_TIMEOUT, self.child.wait()).await.is_err() {
            tracing::warn!("the logger does not end, it is killed");
            if let Err(error) = self.child.kill().await {
                tracing::warn!(%error, "cannot kill the logger");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;

    /// A logger of the shell in `folder`.
    fn program(folder: &Path, script: &str, must_report: bool) -> Program {
        let path = folder.join("logger");
        fs::write(&path, format!("#!/bin/sh\ncd {}\n{script}\n", folder.display())).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        Program {
            path,
            arguments: vec!["a".to_owned(), "b c".to_owned()],
            environment: Vec::new(),
            must_report,
        }
    }

    #[tokio::test]
    async fn it_gets_both_streams_its_arguments_and_the_names_of_its_container_alone() {
        let folder = tempfile::tempdir().unwrap();
        let script = "echo \"$1|$2|$CONTAINER_NAMESPACE|$CONTAINER_ID|$HOME\" >facts\nexec 5>&-\n/bin/cat <&3 >out\n/bin/cat <&4 >err";
        let started = start(&program(folder.path(), script, false), "k8s.io", "c1", &Arc::default())
            .await
            .unwrap();
        File::from(started.stdout).write_all(b"out").unwrap();
        File::from(started.stderr).write_all(b"err").unwrap();
        started.logger.end().await;
        let read = |name| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!((read("out"), read("err")), ("out".to_owned(), "err".to_owned()));
        assert_eq!(read("facts"), "a|b c|k8s.io|c1|\n");
    }

    #[tokio::test]
    async fn one_that_must_report_and_does_not_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let silent = program(folder.path(), "exec 5>&-; exec /bin/sleep 1000", true);
        assert!(
            start(&silent, "n", "c1", &Arc::default())
                .await
                .err()
                .unwrap()
                .to_string()
                .contains("fd 5")
        );
        let reports = program(folder.path(), "echo >&5; exec 5>&-; exec /bin/cat <&3 >/dev/null", true);
        let started = start(&reports, "n", "c1", &Arc::default()).await.unwrap();
        drop((started.stdout, started.stderr));
        started.logger.end().await;
    }

    #[tokio::test]
    async fn one_that_does_not_end_with_its_streams_gets_sigterm() {
        let folder = tempfile::tempdir().unwrap();
        let script = "trap 'echo terminated >end; exit' TERM\nexec 5>&-\nwhile true; do /bin/sleep 0.05; done";
        let started = start(&program(folder.path(), script, false), "n", "c1", &Arc::default())
            .await
            .unwrap();
        drop((started.stdout, started.stderr));
        started.logger.end().await;
        assert_eq!(fs::read_to_string(folder.path().join("end")).unwrap(), "terminated\n");
    }

    #[tokio::test]
    async fn one_that_is_ready_writes_all_that_it_has_when_nothing_waits_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let script = "exec 5>&-\n/bin/sleep 0.5\n/bin/cat <&3 >out.new\n/bin/mv out.new out";
        let started = start(&program(folder.path(), script, false), "n", "c1", &Arc::default())
            .await
            .unwrap();
        File::from(started.stdout).write_all(b"out").unwrap();
        drop((started.logger, started.stderr));
        let written = async {
            while !folder.path().join("out").exists() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(20), written).await.unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("out")).unwrap(), "out");
    }

    #[tokio::test]
    async fn one_that_is_missing_is_an_error() {
        let missing = Program {
            path: "/nowhere/logger".into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            must_report: false,
        };
        assert_eq!(
            start(&missing, "n", "c", &Arc::default()).await.err().unwrap().kind(),
            io::ErrorKind::NotFound
        );
    }
}
