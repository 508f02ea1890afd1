//! What the agent has seen work, and not work any more: a proof and what speaks against it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::api::wasm_node::{Disproof, DisproofReason, Proof};

use super::host::{Containerd, Host, HostError};
use super::journal::{self, Kept, RecordError};
use super::layout::Layout;
use super::proof::{Facts, now};
use super::shim;
use super::smoke;

/// How often a node is proven anew, give or take [`JITTER`].
pub const PROVE: Duration = Duration::from_secs(300);
/// A tenth of [`PROVE`]: the nodes of a cluster do not prove themselves at once.
const JITTER: u64 = 30;

/// Why nothing was seen.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// What was last seen of one runtime on one node.
#[derive(Debug)]
pub struct Evidence {
    pub proof: Option<Proof>,
    pub disproof: Option<Disproof>,
    /// When the module is to run next.
    due: Instant,
}

impl Default for Evidence {
    fn default() -> Evidence {
        Evidence {
            proof: None,
            disproof: None,
            due: Instant::now(),
        }
    }
}

impl Evidence {
    /// Learns what an earlier agent proved, which holds while its facts do.
    pub fn learn(&mut self, proof: Option<&Proof>) {
        if self.proof.is_none() {
            self.proof = proof.cloned();
        }
    }

    /// Has the module run at the next look.
    pub fn expire(&mut self) {
        self.due = Instant::now();
    }

    /// Forgets a runtime that is gone.
    pub fn forget(&mut self) {
        (self.proof, self.disproof) = (None, None);
    }

    /// Keeps a proof only while its facts hold on a host with this containerd.
    ///
    /// # Errors
    ///
    /// When the facts cannot be read.
    pub fn review(&mut self, host: &Host, containerd: &Containerd, layout: &Layout) -> Result<(), HostError> {
        let facts = Facts::look(host, containerd, layout)?;
        self.proof = self.proof.take().filter(|proof| facts.hold(proof));
        Ok(())
    }

    /// The same where containerd or its configuration cannot be told, by what can be: the module cannot run then.
    ///
    /// # Errors
    ///
    /// When the facts cannot be read.
    pub async fn review_rest(&mut self, host: &Host, layout: &Layout, pod_uid: Option<&str>) -> Result<(), HostError> {
        if let Some(proof) = &self.proof
            && !Facts::rest(host, layout, proof, pod_uid).await?.hold(proof)
        {
            self.proof = None;
        }
        Ok(())
    }

    /// Has the module run by `handler` when that is due, or when a fact has changed since. `wish` is the one that the host
    /// fulfils; without it, that is the one that was last installed.
    ///
    /// # Errors
    ///
    /// When the facts or the records cannot be read: nothing was seen then.
    pub async fn look(
        &mut self,
        host: &Host,
        containerd: &Containerd,
        layout: &Layout,
        handler: &str,
        wish: Option<&str>,
    ) -> Result<(), EvidenceError> {
        let wish = match wish {
            Some(wish) => wish.to_owned(),
            None => match journal::read::<Kept>(&layout.kept())? {
                Some(kept) => kept.wish,
                // Nothing was ever installed here.
                None => return Ok(self.review(host, containerd, layout)?),
            },
        };
        let facts = Facts::look(host, containerd, layout)?;
        let holds = self
            .proof
            .as_ref()
            .is_some_and(|proof| facts.hold(proof) && proof.wish == wish);
        if holds && self.disproof.is_none() && Instant::now() < self.due {
            return Ok(());
        }
        match seen(host, containerd, layout, handler).await {
            Ok(version) => {
                self.proof = Some(facts.prove(wish, version, self.proof.as_ref()));
                self.disproof = None;
                self.due = Instant::now() + jittered();
            }
            Err((reason, message)) => {
                tracing::warn!(message, "the node is not proven");
                if !holds {
                    self.proof = None;
                }
                let before = self.disproof.take().filter(|disproof| disproof.reason == reason);
                self.disproof = Some(Disproof {
                    reason,
                    message,
                    times: before.as_ref().map_or(1, |before| before.times.saturating_add(1)),
                    since: before.map_or_else(now, |before| before.since),
                });
            }
        }
        Ok(())
    }
}

/// Runs the module by our handler, and asks the shim for its version.
async fn seen(
    host: &Host,
    containerd: &Containerd,
    layout: &Layout,
    handler: &str,
) -> Result<String, (DisproofReason, String)> {
    let health = &containerd.health;
    if !health.handlers.contains_key(handler) {
        let message = format!("the running containerd does not list the handler {handler:?}");
        return Err((DisproofReason::HandlerGone, message));
    }
    // Another shim may well run the module; it proves nothing of ours.
    if !health.leads_to(handler, &layout.stable()) {
        let stable = layout.stable();
        let message = format!(
            "the running containerd's handler {handler:?} does not lead to {}",
            stable.display()
        );
        return Err((DisproofReason::HandlerGone, message));
    }
    let failed = |message| (DisproofReason::SmokeFailed, message);
    smoke::run(&host.path(&containerd.socket), layout, health, handler)
        .await
        .map_err(|error| failed(error.to_string()))?;
    shim::version(layout).await.map_err(|error| failed(error.to_string()))
}

/// The time until the next proof; the clock's nanoseconds are random enough for that.
fn jittered() -> Duration {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH);
    let random = nanos.map_or(0, |now| u64::from(now.subsec_nanos())) % (2 * JITTER);
    PROVE - Duration::from_secs(JITTER) + Duration::from_secs(random)
}
