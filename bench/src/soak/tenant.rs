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
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::history::History;
use crate::ledger::{Account, Creation, Ledger};
use crate::life::{KILL, Life};
use crate::lines::{self, Seen};
use crate::node::Node;
use crate::spec::{Pod, spec};

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

/// A container while it lives.
struct Container<'a> {
    id: &'a str,
    life: &'a Life,
    begun: Instant,
    streams: Streams,
    pid: u32,
}

impl Tenant {
    /// Leads the container `id` through `life`, from its record to nothing; those in its pod too, hence the box.
    pub fn live<'a>(
        &'a self,
        id: &'a str,
        life: &'a Life,
        world: &'a str,
        pod: Option<Pod>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(self.live_through(id, life, world, pod))
    }

    async fn live_through(&self, id: &str, life: &Life, world: &str, pod: Option<Pod>) {
        self.ledger.open(id);
        let begun = Instant::now();
        let mut account = Account {
            codes: life.codes(),
            out_of_memory: *life == Life::OutOfMemory,
            ..Account::default()
        };
        if let Err(error) = self.lead(id, life, world, pod, begun, &mut account).await {
            self.ledger.wrong(id, format!("{life:?}, {world}: {error:#}"));
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
        world: &str,
        pod: Option<Pod>,
        begun: Instant,
        account: &mut Account,
    ) -> Result<()> {
        let mut wants = life.wants(world);
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
                self.check_log(&container, log.await??)?;
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
        let since = Instant::now();
        let rootfs = vec![self.node.rootfs(id)?];
        let created = timeout(LIMIT, self.client.create(id, rootfs, &container.streams)).await;
        let refused = match created.map_err(|_| anyhow!("Create gave no answer in {LIMIT:?}"))? {
            Ok(pid) => {
                container.pid = pid;
                return Ok(Creation::Done);
            }
            Err(status) => status,
        };
        if !self.history.excuses_create(since) {
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
        let waiter = starts.then(|| tokio::spawn(self.clone().wait(id.to_owned(), container.begun)));
        // Without a pid its Create was cut short: nobody wants it any more.
        if container.pid == 0 {
            self.kill(container, KILL).await?;
            account.codes.push(128 + KILL);
        } else if *container.life != Life::Unstarted {
            let start = || self.client.start(id);
            let done = [Code::NotFound, Code::FailedPrecondition];
            self.call("start", container.begun, &done, start).await?;
            account.started = true;
            self.act(container).await?;
        }
        account.waited = match waiter {
            Some(waiter) => timeout(LIMIT, waiter)
                .await
                .map_err(|_| anyhow!("no end in {LIMIT:?}"))???,
            None => None,
        };
        let delete = || self.client.delete(id);
        account.deleted = self.call("delete", container.begun, &[Code::NotFound], delete).await?;
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
            Life::Exit(_) | Life::Trap | Life::Lines(..) | Life::OutOfMemory | Life::Unstarted | Life::Alone => Ok(()),
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
            Life::Pod(members) => {
                let mut living = JoinSet::new();
                for (index, member) in members.iter().enumerate() {
                    let (tenant, member) = (self.clone(), member.clone());
                    let pod = Pod {
                        sandbox: container.id.to_owned(),
                        pid: Some(container.pid),
                    };
                    living.spawn(async move {
                        let id = format!("{}-{index}", pod.sandbox);
                        let world = crate::life::WORLDS[index % crate::life::WORLDS.len()];
                        tenant.live(&id, &member, world, Some(pod)).await;
                    });
                }
                living.join_all().await;
                self.kill(container, KILL).await
            }
        }
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

    fn check_log(&self, container: &Container<'_>, seen: Seen) -> Result<()> {
        let (count, whole) = container.life.log();
        let undisturbed = self.history.server_deaths(container.begun) == 0 && container.pid != 0;
        match seen.verdict(count, whole && undisturbed) {
            Some(wrong) => bail!(wrong),
            None => Ok(()),
        }
    }

    /// The container's exit code from Wait; `None` when its server was killed and the answer with it.
    async fn wait(self, id: String, begun: Instant) -> Result<Option<u32>> {
        loop {
            let since = Instant::now();
            match self.client.wait(&id).await {
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
        let since = Instant::now();
        loop {
            let answer = timeout(LIMIT, make())
                .await
                .map_err(|_| anyhow!("{what}: no answer in {LIMIT:?}"))?;
            let status = match answer {
                Ok(answer) => return Ok(Some(answer)),
                Err(status) => status,
            };
            let excused = status.source().is_some() || self.history.excuses_call(begun);
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
