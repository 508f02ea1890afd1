//! Wears a node out, for `make soak`: many clients, many lives, many faults, and at the end nothing lost and nothing left.
//!
//! ```text
//! plan (pure) ──> faults ──> node <── tenants <── life (pure)
//!                   │         │          │
//!                   v         v events   v what they saw
//!                history ──> ledger ── verdict (pure) ──> soak: 9120 lifecycles, 61 faults, 0 lost, 0 leaked
//! ```

mod events;
mod faults;
mod gate;
mod history;
mod ledger;
mod life;
mod lines;
mod node;
mod plan;
mod spec;
mod steady;
mod tenant;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use kubewasi_testbed::machine::{self, Machine};
use rustix::process::Signal;
use tokio::sync::RwLock;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::events::Listener;
use crate::faults::Faults;
use crate::gate::Gate;
use crate::history::History;
use crate::ledger::Ledger;
use crate::life::{Life, WORLDS};
use crate::node::Node;
use crate::plan::Plan;
use crate::steady::{Size, Slack, Steady};
use crate::tenant::Tenant;

const USAGE: &str = "usage: kubewasi-soak faults MINUTES SEED SHIM CONTAINERD GUESTS\n       \
    kubewasi-soak lifecycles COUNT SEED SHIM CONTAINERD GUESTS\n\
    SHIM is the binary under test, CONTAINERD the folder of containerd's binaries, GUESTS the one of the probes";

/// How many clients there are at once.
const CLIENTS: u64 = 32;

/// After how many faults all clients pause, for the node to be looked at.
const LOOK: usize = 4;

/// How long containerd may take to tell what it has to tell once all clients are done.
const TELL: Duration = Duration::from_secs(20);

/// How long the node may take to be as it was: a server waits half a minute for a container whose Create never came.
const SETTLE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [mode, amount, seed, shim, containerd, guests] = args.as_slice() else {
        bail!(USAGE);
    };
    let amount = amount.parse().context(USAGE)?;
    let seed = seed.parse().context(USAGE)?;
    let node = Node::new(Path::new(shim), Path::new(containerd), Path::new(guests))?;
    let mark = node.mark.clone();
    let before = Machine::look(&mark);
    let soak = Soak::start(node).await?;
    let done = match mode.as_str() {
        "faults" => soak.faults(Duration::from_secs(60 * amount), seed).await,
        "lifecycles" => soak.lifecycles(amount, seed).await,
        _ => bail!(USAGE),
    };
    let left = soak.finish(&mark, &before).await?;
    done?;
    let (lost, leaked) = (soak.tenant.ledger.lost(), left.len());
    println!(
        "soak: {} lifecycles, {} faults, {lost} lost, {leaked} leaked",
        soak.tenant.ledger.lives(),
        soak.tenant.history.count()
    );
    Ok(ExitCode::from(u8::from(lost + leaked > 0)))
}

struct Soak {
    tenant: Tenant,
    faults: Faults,
    /// Held by every client for one life; whoever holds it alone has a node without containers.
    quiet: Arc<RwLock<()>>,
}

impl Soak {
    async fn start(node: Node) -> Result<Soak> {
        let gate = Gate::new(node.endpoint())?;
        node.start(&gate).await?;
        let client = node.connect().await?;
        let node = Arc::new(node);
        let ledger: Arc<Ledger> = Arc::default();
        let history: Arc<History> = Arc::default();
        let events = Listener::start(client.clone(), ledger.clone());
        events.ready().await;
        gate.open().await;
        Ok(Soak {
            tenant: Tenant {
                node: node.clone(),
                client,
                history: history.clone(),
                ledger: ledger.clone(),
            },
            faults: Faults {
                node,
                gate,
                events,
                history,
                ledger,
            },
            quiet: Arc::default(),
        })
    }

    /// Lets clients live and faults happen, for `long`.
    async fn faults(&self, long: Duration, seed: u64) -> Result<()> {
        println!("soak: {CLIENTS} clients for {long:?}, seed {seed}");
        let since = Instant::now();
        let mut clients = self.clients(seed, move |_| since.elapsed() < long, Life::draw);
        let mut steady = Steady::default();
        for (number, (pause, fault)) in Plan::new(seed).enumerate() {
            sleep(pause).await;
            if since.elapsed() > long {
                break;
            }
            println!("soak: {:4} s: {fault}", since.elapsed().as_secs());
            self.faults.inject(fault).await.with_context(|| fault.to_string())?;
            if number % LOOK == LOOK - 1 {
                let _quiet = self.quiet.write().await;
                self.balance().await;
                for grown in steady.look(&self.tenant.node.servers()).await {
                    self.tenant.ledger.wrong("steady", grown);
                }
                println!(
                    "soak: {:4} s: {} lifecycles so far",
                    since.elapsed().as_secs(),
                    self.tenant.ledger.lives()
                );
            }
        }
        while clients.join_next().await.transpose()?.is_some() {}
        self.balance().await;
        Ok(())
    }

    /// Lets `count` containers live, and compares the server at the end with what it was after the first tenth.
    async fn lifecycles(&self, count: u64, seed: u64) -> Result<()> {
        println!("soak: {count} lifecycles by {CLIENTS} clients, seed {seed}");
        let mut first = None;
        for part in [count / 10, count - count / 10] {
            let left = AtomicU64::new(part);
            let more = move |_: u64| {
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                    .is_ok()
            };
            let mut clients = self.clients(seed, more, Life::brief);
            while clients.join_next().await.transpose()?.is_some() {}
            self.balance().await;
            let servers = self.tenant.node.servers();
            let [server] = servers[..] else {
                bail!("one server was to hold all containers, not {servers:?}");
            };
            let size = Size::of(server)?;
            println!(
                "soak: server {server} after {} lifecycles: {} KiB PSS, {} descriptors",
                self.tenant.ledger.lives(),
                size.memory,
                size.files
            );
            let (before, was) = *first.get_or_insert((server, size));
            if before != server {
                bail!("the server {before} has ended, {server} is another");
            }
            if let Some(grown) = size.growth(&was, Slack::default(), |size| size.memory) {
                self.tenant
                    .ledger
                    .wrong("steady", format!("server {server} has grown: {grown}"));
            }
        }
        Ok(())
    }

    /// Clients that begin lives as long as `more` says so of their number.
    fn clients(
        &self,
        seed: u64,
        more: impl Fn(u64) -> bool + Send + Sync + 'static,
        draw: fn(&mut Rng) -> Life,
    ) -> JoinSet<()> {
        let more = Arc::new(more);
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let (tenant, quiet, more) = (self.tenant.clone(), self.quiet.clone(), more.clone());
            let part = tenant.ledger.lives();
            clients.spawn(async move {
                let mut rng = Rng::with_seed(seed ^ (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                let mut life = 0;
                while more(number) {
                    let _living = quiet.read().await;
                    let world = WORLDS[rng.usize(0..WORLDS.len())];
                    tenant
                        .live(
                            &format!("c{part}-{number}-{life}"),
                            &draw(&mut rng),
                            world,
                            None,
                            std::time::Instant::now(),
                        )
                        .await;
                    life += 1;
                }
            });
        }
        clients
    }

    /// Waits until all is told that is to be told, and balances the accounts; no client has a container.
    async fn balance(&self) {
        let since = Instant::now();
        while !self.tenant.ledger.complete() && since.elapsed() < TELL {
            sleep(Duration::from_millis(20)).await;
        }
        // One that is told twice is told soon.
        sleep(Duration::from_millis(300)).await;
        self.tenant.ledger.balance();
    }

    /// Ends the node; returns what was left on the machine.
    async fn finish(&self, mark: &str, before: &Machine) -> Result<Vec<String>> {
        let since = Instant::now();
        let look = || {
            let mut left = Machine::look(mark).since(before);
            // A bundle that containerd had begun to remove, when it was ended, has a dot before its name and is containerd's.
            let hidden = format!("{mark}/.");
            left.retain(|what| !what.contains(&hidden));
            left
        };
        let mut left = look();
        while !left.is_empty() && since.elapsed() < SETTLE {
            sleep(Duration::from_millis(100)).await;
            left = look();
        }
        for what in &left {
            eprintln!("soak: LEAKED {what}");
        }
        self.tenant.node.end(Signal::TERM)?;
        if left.is_empty() && self.tenant.ledger.lost() == 0 {
            self.tenant.node.remove()?;
            // The cgroups' common parent.
            machine::sweep(mark, before);
        } else {
            eprintln!(
                "soak: containerd's log and all else is kept in {}",
                self.tenant.node.folder.display()
            );
        }
        Ok(left)
    }
}
