//! A container's hooks: which of its spec are run and when, and running them, as runc does (libcontainer/process_linux.go,
//! container_linux.go, state_linux.go).
//!
//! ```text
//! Create   the process is confined and waits ── prestart, createRuntime ── poststart ──> created
//! Delete   process and cgroup are gone ── poststop
//! ```
//!
//! They run in the server's namespaces, or in those of a process that `delete` leaves when the server is dead: the host's
//! either way. runc runs `poststart` at the end of create too, in every version up to 1.4.

use std::collections::HashMap;
use std::env;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::{self, ContainerState, Spec, State};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};
use tracing::Instrument;

use super::plan::{PlanError, invalid, unsupported};
use crate::image::memory;
use crate::sys::children::Children;
use crate::sys::command::limit_open_files;

/// The version of the OCI runtime spec with which the state complies.
const OCI_VERSION: &str = "1.3.0";

/// The `PATH` of a hook without `env` where this process has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Maximum size of the output tail in an error, in bytes.
const SHOWN_OUTPUT: usize = 4096;

/// The hooks of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooks {
    /// `prestart` and `createRuntime`, in this order.
    create: Vec<Hook>,
    poststart: Vec<Hook>,
    poststop: Vec<Hook>,
    id: String,
    bundle: PathBuf,
    annotations: Option<HashMap<String, String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Hook {
    /// Its list and its place in there.
    name: String,
    path: PathBuf,
    args: Vec<String>,
    /// Name and value; `None` for `PATH` alone.
    env: Option<Vec<(String, String)>>,
    timeout: Option<Duration>,
}

/// A hook that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error("the {hook} hook {} could not be run: {cause}", path.display())]
    Run {
        hook: String,
        path: PathBuf,
        cause: io::Error,
    },
    #[error("the {hook} hook {} failed: {status}, output: {output}", path.display())]
    Failed {
        hook: String,
        path: PathBuf,
        status: ExitStatus,
        output: String,
    },
    #[error("the {hook} hook {} ran past its timeout of {} s: raise `timeout` or fix the hook", path.display(), timeout.as_secs())]
    TimedOut {
        hook: String,
        path: PathBuf,
        timeout: Duration,
    },
}

/// The hooks that `spec` asks for (pure).
///
/// # Errors
///
/// Names a list that a wasm container cannot have, since its namespaces have no program but the guest, and a hook that is
/// not valid.
pub fn hooks(spec: &Spec, id: &str, bundle: &Path) -> Result<Hooks, PlanError> {
    let Some(hooks) = spec.hooks() else {
        return Ok(Hooks::default());
    };
    let inside = [
        ("hooks.createContainer", hooks.create_container()),
        ("hooks.startContainer", hooks.start_container()),
    ];
    for (field, list) in inside {
        if list.as_ref().is_some_and(|list| !list.is_empty()) {
            return Err(unsupported(
                field,
                "set",
                "it would be executed in the container, where only wasm runs: use createRuntime",
            ));
        }
    }
    let mut create = list("prestart", hooks.prestart())?;
    create.extend(list("createRuntime", hooks.create_runtime())?);
    Ok(Hooks {
        create,
        poststart: list("poststart", hooks.poststart())?,
        poststop: list("poststop", hooks.poststop())?,
        id: id.to_owned(),
        bundle: bundle.to_owned(),
        annotations: spec.annotations().clone(),
    })
}

fn list(name: &str, hooks: &Option<Vec<runtime::Hook>>) -> Result<Vec<Hook>, PlanError> {
    let hooks = hooks.iter().flatten().enumerate();
    hooks
        .map(|(index, asked)| hook(format!("{name} #{index}"), asked))
        .collect()
}

fn hook(name: String, asked: &runtime::Hook) -> Result<Hook, PlanError> {
    let malformed = |what: String, rule| invalid("hooks", format!("{name} {what}"), rule);
    if !asked.path().is_absolute() {
        let path = format!("path {}", asked.path().display());
        return Err(malformed(path, "it must be an absolute path"));
    }
    let timeout = match asked.timeout() {
        None => None,
        Some(seconds) => match u64::try_from(seconds) {
            Ok(seconds @ 1..) => Some(Duration::from_secs(seconds)),
            _ => return Err(malformed(format!("timeout {seconds}"), "it must be greater than zero")),
        },
    };
    let variable = |(index, entry): (usize, &String)| {
        let pair = entry.split_once('=').filter(|(name, _)| !name.is_empty());
        pair.map(|(name, value)| (name.to_owned(), value.to_owned()))
            .ok_or_else(|| malformed(format!("env #{index}"), "an entry must be NAME=VALUE"))
    };
    let env = asked.env().as_ref();
    Ok(Hook {
        path: asked.path().clone(),
        args: asked.args().clone().unwrap_or_default(),
        env: env
            .map(|env| env.iter().enumerate().map(variable).collect())
            .transpose()?,
        timeout,
        name,
    })
}

impl Hooks {
    /// Runs the hooks of a container that has been made and not started, whose first process is `pid`: its namespaces are
    /// the container's. Stops at the first hook that fails. The hooks are among `children`.
    ///
    /// # Errors
    ///
    /// Names the hook, with its output.
    pub async fn create(&self, pid: i32, children: &Arc<Children>) -> Result<(), HookError> {
        let lists = [
            (ContainerState::Creating, &self.create),
            (ContainerState::Created, &self.poststart),
        ];
        for (status, hooks) in lists {
            for hook in hooks {
                hook.run(&self.state(status, Some(pid)), &self.bundle, children).await?;
            }
        }
        Ok(())
    }

    /// Whether there are hooks for a container of which nothing is left.
    pub fn has_poststop(&self) -> bool {
        !self.poststop.is_empty()
    }

    /// Runs the hooks of a container of which nothing is left. One that fails is logged, and the others run. The hooks are
    /// among `children`.
    pub async fn poststop(&self, children: &Arc<Children>) {
        let state = self.state(ContainerState::Stopped, None);
        for hook in &self.poststop {
            if let Err(error) = hook.run(&state, &self.bundle, children).await {
                tracing::warn!(id = self.id, %error, "a hook failed");
            }
        }
    }

    /// As [`Hooks::poststop`]; once `given_up` resolves the hooks run on and are waited for a second more alone.
    pub async fn poststop_until(self, children: &Arc<Children>, given_up: impl Future<Output = ()>) {
        const GRACE: Duration = Duration::from_secs(1);
        if !self.has_poststop() {
            return;
        }
        let (id, children) = (self.id.clone(), children.clone());
        let ran = tokio::spawn(async move { self.poststop(&children).await }.in_current_span());
        let given_up = async {
            given_up.await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            ran = ran => if let Err(error) = ran {
                tracing::error!(id, %error, "the poststop hooks did not run to their end");
            },
            () = given_up => tracing::warn!(id, "a poststop hook takes long, its end is not waited for"),
        }
    }

    /// What a hook reads (OCI runtime spec, "State").
    fn state(&self, status: ContainerState, pid: Option<i32>) -> State {
        let mut state = State::default();
        state
            .set_version(OCI_VERSION.to_owned())
            .set_id(self.id.clone())
            .set_status(status)
            .set_pid(pid)
            .set_bundle(self.bundle.clone())
            .set_annotations(self.annotations.clone());
        state
    }
}

impl Hook {
    /// Runs the hook in `directory`, the bundle, which is where runc's own working directory is.
    async fn run(&self, state: &State, directory: &Path, children: &Arc<Children>) -> Result<(), HookError> {
        let failed = |cause| HookError::Run {
            hook: self.name.clone(),
            path: self.path.clone(),
            cause,
        };
        let state = serde_json::to_vec(state).map_err(|error| failed(error.into()))?;
        // A file, so that nothing waits for a hook that does not read.
        let input = memory::sealed("state", &state).map_err(failed)?;
        let (reader, writer) = io::pipe().map_err(failed)?;
        let reader = Receiver::from_owned_fd(reader.into()).map_err(failed)?;
        let mut command = Command::new(&self.path);
        if let Some((name, rest)) = self.args.split_first() {
            command.arg0(name).args(rest);
        }
        command.env_clear();
        match &self.env {
            Some(env) => command.envs(env.iter().map(|(name, value)| (name, value))),
            None => command.env("PATH", env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into())),
        };
        // containerd may remove the bundle before or while this runs: by its fd it is entered all the same.
        let bundle = File::open(directory).ok();
        if let Some(bundle) = &bundle {
            command.current_dir(format!("/proc/self/fd/{}", bundle.as_raw_fd()));
        }
        limit_open_files(&mut command);
        command
            .stdin(Stdio::from(input))
            .stdout(Stdio::from(writer.try_clone().map_err(failed)?))
            .stderr(Stdio::from(writer))
            .kill_on_drop(true);
        let (mut child, _watched) = children.spawn(&mut command).map_err(failed)?;
        // Our copies of the pipe's end for writing.
        drop(command);
        let mut output = Tail::default();
        let ended = wait(&mut child, reader, &mut output);
        let status = match self.timeout {
            None => ended.await.map_err(failed)?,
            Some(timeout) => match tokio::time::timeout(timeout, ended).await {
                Ok(status) => status.map_err(failed)?,
                Err(_) => {
                    child.kill().await.map_err(failed)?;
                    return Err(HookError::TimedOut {
                        hook: self.name.clone(),
                        path: self.path.clone(),
                        timeout,
                    });
                }
            },
        };
        if status.success() {
            return Ok(());
        }
        Err(HookError::Failed {
            hook: self.name.clone(),
            path: self.path.clone(),
            status,
            output: String::from_utf8_lossy(&output.0).trim().to_owned(),
        })
    }
}

/// The last bytes of a hook's output.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        self.0.drain(..self.0.len().saturating_sub(SHOWN_OUTPUT));
    }
}

/// Waits for the end of `child`, whose output arrives at `reader`. A daemon that it leaves behind may hold the pipe: what
/// that writes later goes nowhere.
async fn wait(child: &mut Child, mut reader: Receiver, output: &mut Tail) -> io::Result<ExitStatus> {
    /// What a pipe holds by default (pipe(7)), in bytes.
    const PIPE_SIZE: usize = 64 * 1024;
    let mut buffer = [0; SHOWN_OUTPUT];
    let mut open = true;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            read = reader.read(&mut buffer), if open => match read {
                Ok(0) | Err(_) => open = false,
                Ok(read) => output.add(&buffer[..read]),
            },
        }
    };
    // Not by the event loop, which may not have heard yet of what was written last.
    let mut drained = 0;
    while open && drained < PIPE_SIZE {
        match rustix::io::read(&reader, &mut buffer) {
            Ok(0) | Err(_) => open = false,
            Ok(read) => {
                output.add(&buffer[..read]);
                drained += read;
            }
        }
    }
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(lists: &str) -> Result<Hooks, PlanError> {
        let json = format!(r#"{{"ociVersion":"1.1.0","hooks":{{{lists}}},"annotations":{{"k":"v"}}}}"#);
        hooks(&serde_json::from_str(&json).unwrap(), "c1", Path::new("/nonexistent"))
    }

    /// Hooks of one list, each a script of the shell.
    fn shell(list: &str, scripts: &[(&str, &str)]) -> Hooks {
        let hook = |(script, more): &(&str, &str)| {
            format!(
                r#"{{"path":"/bin/sh","args":["hook","-c",{}]{more}}}"#,
                serde_json::json!(script)
            )
        };
        let hooks: Vec<String> = scripts.iter().map(hook).collect();
        planned(&format!(r#""{list}":[{}]"#, hooks.join(","))).unwrap()
    }

    #[test]
    fn hooks_of_the_container_and_malformed_ones_are_refused_by_name() {
        let hook = r#"{"path":"/bin/true"}"#;
        for (lists, words) in [
            (
                format!(r#""createContainer":[{hook}]"#),
                ["hooks.createContainer", "createRuntime"],
            ),
            (
                format!(r#""startContainer":[{hook}]"#),
                ["hooks.startContainer", "createRuntime"],
            ),
            (
                format!(r#""poststop":[{hook},{{"path":"true"}}]"#),
                ["poststop #1 path true", "absolute"],
            ),
            (
                r#""prestart":[{"path":"/a","timeout":0}]"#.to_owned(),
                ["prestart #0 timeout 0", "greater"],
            ),
            (
                r#""poststart":[{"path":"/a","timeout":-1}]"#.to_owned(),
                ["poststart #0 timeout -1", "greater"],
            ),
            (
                r#""createRuntime":[{"path":"/a","env":["X"]}]"#.to_owned(),
                ["createRuntime #0 env #0", "NAME=VALUE"],
            ),
        ] {
            let error = planned(&lists).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{lists}: {error}");
        }
        assert_eq!(planned(r#""createContainer":[],"poststop":null"#).unwrap().create, []);
    }

    #[tokio::test]
    async fn a_hook_reads_the_state_and_has_the_arguments_and_the_environment_it_asks_for() {
        let folder = tempfile::tempdir().unwrap();
        let script = r#"cat >"$TO"; echo "$0 $X $HOME" >>"$TO""#;
        let env = format!(
            r#","env":["TO={}","X=1","PATH=/bin:/usr/bin"]"#,
            folder.path().join("out").display()
        );
        shell("prestart", &[(script, &env)])
            .create(7, &Arc::default())
            .await
            .unwrap();
        let said = std::fs::read_to_string(folder.path().join("out")).unwrap();
        let expected = r#"{"ociVersion":"1.3.0","id":"c1","status":"creating","pid":7,"bundle":"/nonexistent","annotations":{"k":"v"}}"#;
        assert_eq!(said, format!("{expected}hook 1 \n"));
    }

    #[tokio::test]
    async fn the_first_hook_that_fails_is_the_last_and_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark").display().to_string();
        let hooks = shell(
            "createRuntime",
            &[("echo broken >&2; exit 3", ""), (&format!("touch {mark}"), "")],
        );
        let error = hooks.create(1, &Arc::default()).await.unwrap_err().to_string();
        assert!(
            error.contains("createRuntime #0") && error.contains("exit status: 3") && error.contains("broken"),
            "{error}"
        );
        assert!(!Path::new(&mark).exists());
    }

    #[tokio::test]
    async fn a_hook_is_killed_at_its_timeout() {
        let hooks = shell("poststart", &[("exec sleep 1000", r#","timeout":1"#)]);
        let error = hooks.create(1, &Arc::default()).await.unwrap_err().to_string();
        assert!(
            error.contains("poststart #0") && error.contains("timeout of 1 s"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn after_a_poststop_hook_that_fails_the_others_run() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark").display().to_string();
        shell("poststop", &[("exit 1", ""), (&format!("cat >{mark}"), "")])
            .poststop(&Arc::default())
            .await;
        let state = std::fs::read_to_string(mark).unwrap();
        assert!(
            state.contains(r#""status":"stopped""#) && !state.contains("pid"),
            "{state}"
        );
    }

    #[tokio::test]
    async fn a_poststop_hook_that_hangs_is_not_waited_for_once_the_container_is_given_up() {
        let hooks = shell("poststop", &[("exec sleep 1000", "")]);
        let children = Arc::default();
        let ran = hooks.poststop_until(&children, std::future::ready(()));
        tokio::time::timeout(Duration::from_secs(10), ran).await.unwrap();
    }

    #[tokio::test]
    async fn a_daemon_that_a_hook_leaves_behind_delays_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let script = format!("sleep 20 & echo $! >{}", file.display());
        let hooks = shell("prestart", &[(&script, "")]);
        let ran = tokio::time::timeout(Duration::from_secs(5), hooks.create(1, &Arc::default())).await;
        let pid: i32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        ran.expect("the daemon holds the output and is not waited for").unwrap();
    }

    /// The output that the error of a hook has whose script fails.
    async fn output_of_failed(script: &str) -> String {
        let error = shell("prestart", &[(script, "")])
            .create(1, &Arc::default())
            .await
            .unwrap_err();
        match error {
            HookError::Failed { output, .. } => output,
            other => panic!("{other}"),
        }
    }

    #[tokio::test]
    async fn a_failed_hooks_error_has_the_end_of_its_output() {
        let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; echo the end; exit 1";
        let output = output_of_failed(script).await;
        assert!(
            output.len() <= SHOWN_OUTPUT && output.ends_with("line 19999\nthe end"),
            "{output}"
        );
    }

    #[tokio::test]
    async fn a_hook_without_env_has_path_alone() {
        let script = "env | grep -v -e ^PWD= -e ^SHLVL= -e ^_= -e ^OLDPWD= >&2; exit 1";
        let output = output_of_failed(script).await;
        let path = env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned());
        assert_eq!(output, format!("PATH={path}"));
    }
}
