//! A client of the node: leads containers through their lives, as the kubelet's runtime would, and enters what it sees.

use std::error::Error;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use containerd_client::tonic::Status;
use kubewasi_bench::client::{Client, Code, Streams};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::history::History;
use crate::ledger::{Account, Creation, Kind, Ledger, process_key};
use crate::life::{KILL, Life, NATIVE};
use crate::lines::{self, Seen};
use crate::node::Node;
use crate::spec::{Pod, process, spec};

/// The longest that a call may take, and that faults may keep it from being answered.
const LIMIT: Duration = Duration::from_secs(60);

/// The pause before a call is made again.
const AGAIN: Duration = Duration::from_millis(30);

/// SIGTERM (signal(7)).
const TERM: u32 = 15;

/// A client; all clients share what it holds.
#[derive(Clone)]
pub struct Tenant {
    pub node: Arc<Node>,
    pub client: Client,
    pub history: Arc<History>,
    pub ledger: Arc<Ledger>,
}

/// A process in a container.
struct Exec {
    id: String,
    /// Its name in the ledger.
    key: String,
    code: u32,
    /// Both of its calls were answered.
    sure: bool,
    waiter: JoinHandle<Result<Option<u32>>>,
}

/// A container while it lives.
struct Container<'a> {
    id: &'a str,
    program: &'a str,
    life: &'a Life,
    begun: Instant,
    streams: Streams,
    pid: u32,
}

impl Tenant {
    /// Leads the container `id` through `life`, from its record to nothing; those in its pod too, hence the box. What a
    /// fault has done since `begun` is excused: to the sandbox of its pod, say.
    pub fn live<'a>(
        &'a self,
        id: &'a str,
        life: &'a Life,
        program: &'a str,
        pod: Option<Pod>,
        begun: Instant,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(self.live_through(id, life, program, pod, begun))
    }

    async fn live_through(&self, id: &str, life: &Life, program: &str, pod: Option<Pod>, begun: Instant) {
        self.ledger.open(id);
        let mut account = Account {
            codes: life.codes(),
            out_of_memory: *life == Life::OutOfMemory,
            ..Account::default()
        };
        if let Err(error) = self.lead(id, life, program, pod, begun, &mut account).await {
            self.ledger.wrong(id, format!("{life:?}, {program}: {error:#}"));
        }
        if let Err(error) = self.tidy(id) {
            self.ledger.wrong(id, error);
        }
        account.server_deaths = self.history.server_deaths(begun);
        self.ledger.enter(id, account);
    }

    async fn lead(
        &self,
        id: &str,
        life: &Life,
        program: &str,
        pod: Option<Pod>,
        begun: Instant,
        account: &mut Account,
    ) -> Result<()> {
        let mut wants = life.wants(program);
        wants.pod = match life {
            Life::Pod(_) => Some(Pod {
                sandbox: id.to_owned(),
                pid: None,
            }),
            _ => pod,
        };
        let spec = spec(&self.node.mark, id, &wants);
        let options = self.node.options();
        let declare = || self.client.declare(id, "io.containerd.wasi.v1", Some(&options), &spec);
        self.call("make the container", begun, &[Code::AlreadyExists], declare)
            .await?;

        let mut container = Container {
            id,
            program,
            life,
            begun,
            streams: self.streams(id, life)?,
            pid: 0,
        };
        let (deleted, gone) = watch::channel(false);
        let log = life.reader().map(|reader| {
            let path = PathBuf::from(&container.streams.stdout);
            tokio::spawn(async move { lines::read(&path, reader, gone).await })
        });
        account.creation = self.create(&mut container).await?;
        if account.creation == Creation::Done {
            self.run(&container, account).await?;
        }
        deleted.send_replace(true);
        if let Some(log) = log {
            if account.creation == Creation::Done {
                self.check_log(&container, account.started, log.await??)?;
            } else {
                log.abort();
            }
        }
        let forget = || self.client.forget(id);
        self.call("remove the container", begun, &[Code::NotFound], forget)
            .await
            .map(drop)
    }

    fn fifo(&self, id: &str, name: &str) -> PathBuf {
        self.node.fifos().join(format!("{id}.{name}"))
    }

    /// Removes what was made for a container.
    fn tidy(&self, id: &str) -> io::Result<()> {
        let fifos = ["in", "out"].map(|name| fs::remove_file(self.fifo(id, name)));
        let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        for removed in fifos.into_iter().chain([fs::remove_dir_all(self.node.snapshot(id))]) {
            removed.or_else(|error| if gone(&error) { Ok(()) } else { Err(error) })?;
        }
        Ok(())
    }

    /// Makes the fifos that `life` wants.
    fn streams(&self, id: &str, life: &Life) -> Result<Streams> {
        let fifo = |name: &str, wanted: bool| -> Result<String> {
            if !wanted {
                return Ok(String::new());
            }
            let path = self.fifo(id, name);
            mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
            Ok(path.display().to_string())
        };
        Ok(Streams {
            stdin: fifo("in", life.listens())?,
            stdout: fifo("out", life.reader().is_some())?,
            stderr: String::new(),
        })
    }

    /// Creates the task. One that a fault cut short is looked for: it may be there all the same.
    async fn create(&self, container: &mut Container<'_>) -> Result<Creation> {
        let id = container.id;
        let rootfs = vec![self.node.rootfs(id)?];
        let created = timeout(LIMIT, self.client.create(id, rootfs, &container.streams)).await;
        let refused = match created.map_err(|_| anyhow!("Create gave no answer in {LIMIT:?}"))? {
            Ok(pid) => {
                container.pid = pid;
                return Ok(Creation::Done);
            }
            Err(status) => status,
        };
        if !self.history.excuses_create(container.begun) {
            bail!("Create failed: {refused}");
        }
        let cut = refused.source().is_some();
        let exists = || async {
            match self.client.state(id).await {
                Err(status) if status.code() == Code::NotFound => Ok(false),
                state => state.map(|_| true),
            }
        };
        let found = self.call("ask for the task", container.begun, &[], exists).await?;
        Ok(match found {
            Some(true) => Creation::Done,
            _ if cut => Creation::Unsure,
            _ => Creation::Refused,
        })
    }

    /// From the created task to the deleted one.
    async fn run(&self, container: &Container<'_>, account: &mut Account) -> Result<()> {
        let id = container.id;
        // Of one that is deleted before its start nobody waits for the end.
        let starts = container.pid == 0 || *container.life != Life::Unstarted;
        let waiter = starts.then(|| tokio::spawn(self.clone().wait(id.to_owned(), String::new(), container.begun)));
        // Without a pid its Create was cut short: nobody wants it any more.
        if container.pid == 0 {
            self.kill(container, KILL).await?;
            account.codes.push(128 + KILL);
        } else if *container.life != Life::Unstarted {
            let start = || self.client.start(id, "");
            let done = [Code::NotFound, Code::FailedPrecondition];
            let started = self.call("start", container.begun, &done, start).await?;
            account.started = started.is_some();
            if account.started {
                self.act(container).await?;
            } else {
                // A fault kept it from starting, or from saying so: clients kill what they could not start.
                self.kill(container, KILL).await?;
                account.codes.push(128 + KILL);
            }
        }
        account.waited = match waiter {
            Some(waiter) => timeout(LIMIT, waiter)
                .await
                .map_err(|_| anyhow!("no end in {LIMIT:?}"))???,
            None => None,
        };
        let asked = Instant::now();
        let delete = || self.client.delete(id);
        account.deleted = self.call("delete", container.begun, &[Code::NotFound], delete).await?;
        account.delete_unsure = account.deleted.is_none() && self.history.cuts_call(asked);
        Ok(())
    }

    async fn kill(&self, container: &Container<'_>, signal: u32) -> Result<()> {
        let kill = || self.client.kill(container.id, signal, false);
        let killed = self.call("kill", container.begun, &[Code::NotFound], kill).await;
        killed.map(drop)
    }

    /// What is done to a container that runs.
    async fn act(&self, container: &Container<'_>) -> Result<()> {
        match container.life {
            Life::Exit(_)
            | Life::Trap
            | Life::Lines(..)
            | Life::OutOfMemory
            | Life::Full
            | Life::Unstarted
            | Life::Alone => Ok(()),
            Life::Flood(after, _) => {
                sleep(*after).await;
                self.kill(container, KILL).await
            }
            Life::Signal { signal, after, .. } => {
                sleep(*after).await;
                self.kill(container, *signal).await
            }
            Life::Echo(count) => self.speak(container, *count).await,
            Life::Deaf => {
                let mut spoken = Ok(());
                if let Ok(input) = pipe::OpenOptions::new().open_sender(&container.streams.stdin) {
                    let line = lines::text(0, 1);
                    while spoken.is_ok() {
                        spoken = input.try_write(&line).map(drop);
                    }
                }
                self.kill(container, TERM).await
            }
            Life::Paused(long) => {
                let done = [Code::NotFound, Code::FailedPrecondition];
                let pause = || self.client.pause(container.id);
                self.call("pause", container.begun, &done, pause).await?;
                sleep(*long).await;
                let resume = || self.client.resume(container.id);
                self.call("resume", container.begun, &done, resume).await?;
                self.kill(container, KILL).await
            }
            Life::Execs(count) => {
                let mut execs = Vec::new();
                for number in 0..*count {
                    let command = format!("exit-with-code {number}");
                    execs.push(self.begin_exec(container, number, &command, u32::from(number)).await?);
                }
                for exec in execs {
                    self.end_exec(container, exec).await?;
                }
                // One that goes with its container.
                let last = self.begin_exec(container, *count, "idle", 128 + KILL).await?;
                self.kill(container, KILL).await?;
                self.end_exec(container, last).await
            }
            Life::Pod(members) => {
                let mut living = JoinSet::new();
                for (index, member) in members.iter().enumerate() {
                    let (tenant, member, begun) = (self.clone(), member.clone(), container.begun);
                    let pod = Pod {
                        sandbox: container.id.to_owned(),
                        pid: Some(container.pid),
                    };
                    living.spawn(async move {
                        let id = format!("{}-{index}", pod.sandbox);
                        tenant.live(&id, &member.life, member.program, Some(pod), begun).await;
                    });
                }
                living.join_all().await;
                self.kill(container, KILL).await
            }
        }
    }

    /// Registers and starts a process of the container, which is to end with `code`.
    async fn begin_exec(&self, container: &Container<'_>, number: u8, command: &str, code: u32) -> Result<Exec> {
        let (id, exec_id) = (container.id, format!("e{number}"));
        let key = process_key(id, &exec_id);
        self.ledger.open(&key);
        let process = process(container.program, command);
        let exec = || self.client.exec(id, &exec_id, &process);
        let added = self
            .call("exec", container.begun, &[Code::NotFound, Code::AlreadyExists], exec)
            .await?;
        let waiter = tokio::spawn(self.clone().wait(id.to_owned(), exec_id.clone(), container.begun));
        let start = || self.client.start(id, &exec_id);
        let done = [Code::NotFound, Code::FailedPrecondition];
        let excused = || match container.program {
            NATIVE => self.history.excuses_native_exec(container.begun),
            _ => self.history.excuses_call(container.begun),
        };
        let started = self.call_unless("start a process", excused, &done, start).await?;
        Ok(Exec {
            id: exec_id,
            key,
            code,
            sure: added.is_some() && started.is_some(),
            waiter,
        })
    }

    /// Waits for the end of a process and deletes it.
    async fn end_exec(&self, container: &Container<'_>, exec: Exec) -> Result<()> {
        let mut account = Account {
            kind: Kind::Process,
            // One whose calls a fault has cut short may have run, or not.
            creation: if exec.sure { Creation::Done } else { Creation::Unsure },
            started: exec.sure,
            codes: vec![exec.code],
            ..Account::default()
        };
        if exec.sure {
            account.waited = timeout(LIMIT, exec.waiter)
                .await
                .map_err(|_| anyhow!("no end in {LIMIT:?}"))???;
        } else {
            exec.waiter.abort();
        }
        let delete = || self.client.delete_exec(container.id, &exec.id);
        let done = [Code::NotFound, Code::FailedPrecondition];
        account.deleted = self.call("delete a process", container.begun, &done, delete).await?;
        if !exec.sure {
            // Deleted before its end, it has the code of none.
            account.deleted = None;
        }
        account.server_deaths = self.history.server_deaths(container.begun);
        self.ledger.enter(&exec.key, account);
        Ok(())
    }

    /// Writes lines into the container's stdin, and ends it.
    async fn speak(&self, container: &Container<'_>, count: u64) -> Result<()> {
        let spoken = async {
            let mut input = pipe::OpenOptions::new().open_sender(&container.streams.stdin)?;
            input.write_all(&lines::text(0, count)).await
        };
        let spoken = timeout(LIMIT, spoken)
            .await
            .map_err(|_| anyhow!("its stdin was not read in {LIMIT:?}"))?;
        if spoken.is_err() && self.history.server_deaths(container.begun) == 0 {
            spoken.context("cannot write its stdin")?;
        }
        let close = || self.client.close_stdin(container.id);
        self.call("end stdin", container.begun, &[Code::NotFound], close)
            .await
            .map(drop)
    }

    fn check_log(&self, container: &Container<'_>, started: bool, seen: Seen) -> Result<()> {
        let (count, whole) = container.life.log();
        let undisturbed = self.history.server_deaths(container.begun) == 0 && started;
        match seen.verdict(count, whole && undisturbed) {
            Some(wrong) => bail!(wrong),
            None => Ok(()),
        }
    }

    /// The exit code from Wait, of the container or of a process of it; `None` when its server was killed and the answer with it.
    async fn wait(self, id: String, exec_id: String, begun: Instant) -> Result<Option<u32>> {
        loop {
            let since = Instant::now();
            match self.client.wait(&id, &exec_id).await {
                Ok(code) => return Ok(Some(code)),
                Err(_) if self.history.server_deaths(begun) > 0 => return Ok(None),
                Err(status) if status.source().is_some() || self.history.excuses_call(since) => sleep(AGAIN).await,
                Err(status) => bail!("Wait failed: {status}"),
            }
        }
    }

    /// Makes a call until it is answered: what a fault excuses, and whatever containerd's absence cuts short, is tried
    /// again. `None` when the answer is one of `done`, which a first try may have brought about.
    async fn call<T, F: Future<Output = Result<T, Status>>>(
        &self,
        what: &str,
        begun: Instant,
        done: &[Code],
        make: impl Fn() -> F,
    ) -> Result<Option<T>> {
        self.call_unless(what, || self.history.excuses_call(begun), done, make)
            .await
    }

    /// As [`Self::call`], for a call whose failures are excused as it is said.
    async fn call_unless<T, F: Future<Output = Result<T, Status>>>(
        &self,
        what: &str,
        excused: impl Fn() -> bool,
        done: &[Code],
        make: impl Fn() -> F,
    ) -> Result<Option<T>> {
        let since = Instant::now();
        loop {
            let answer = timeout(LIMIT, make())
                .await
                .map_err(|_| anyhow!("{what}: no answer in {LIMIT:?}"))?;
            let status = match answer {
                Ok(answer) => return Ok(Some(answer)),
                Err(status) => status,
            };
            let excused = status.source().is_some() || excused();
            if !excused || since.elapsed() > LIMIT {
                bail!("{what}: {status}");
            }
            if done.contains(&status.code()) {
                return Ok(None);
            }
            sleep(AGAIN).await;
        }
    }
}
