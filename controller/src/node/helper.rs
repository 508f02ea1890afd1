//! The helper on the host: this same program, in a unit of its own, with one order to carry out.

use std::path::Path;
use std::time::{Duration, Instant};

use super::host::Host;
use super::journal::{self, Lock, RecordError};
use super::layout::Layout;
use super::systemd::{Systemd, SystemdError};
use super::transaction::{self, Order, Progress, TransactionError};

/// How often the lock is asked for.
const ASK: Duration = Duration::from_millis(200);
/// How long a restart waits for jobs that were queued after the agent's check; containerd runs meanwhile.
const QUEUE: Duration = Duration::from_secs(120);

/// Why the helper ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Write(#[from] super::durable::WriteError),
    #[error(transparent)]
    Transaction(#[from] TransactionError),
    #[error("there is no order in {0}")]
    NoOrder(String),
}

/// Carries out the order in `folder`, a runtime's, and returns how that ended.
pub async fn run(folder: &Path) -> Result<Progress, HelperError> {
    let no_order = || HelperError::NoOrder(folder.display().to_string());
    let (base, runtime) = (folder.parent(), folder.file_name().and_then(|name| name.to_str()));
    let layout = Layout::new(base.ok_or_else(no_order)?, runtime.ok_or_else(no_order)?);
    // Two helpers, or a helper and an agent of another runtime, would see each other's changes as somebody else's.
    let _lock = loop {
        match Lock::try_take(&layout)? {
            Some(lock) => break lock,
            None => tokio::time::sleep(ASK).await,
        }
    };
    let order: Order = journal::read(&layout.order())?.ok_or_else(no_order)?;
    let root = Host::itself().root;
    let restart = async || restart(&root, &order.unit).await;
    Ok(transaction::run(&order, &layout.progress(), restart).await?)
}

/// Restarts a unit as soon as no other job would delay its start.
async fn restart(root: &Path, unit: &str) -> Result<(), SystemdError> {
    let patience = Instant::now() + QUEUE;
    loop {
        match Systemd::connect(root).await?.restart(unit).await {
            Err(SystemdError::Queued { .. }) if Instant::now() < patience => tokio::time::sleep(ASK).await,
            ended => return ended,
        }
    }
}
