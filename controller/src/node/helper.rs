//! The helper on the host: this same program, in a unit of its own, with one order to carry out.

use std::path::Path;
use std::time::Duration;

use super::host::Host;
use super::journal::{self, Lock, RecordError};
use super::layout::Layout;
use super::systemd::Systemd;
use super::transaction::{self, Order, Progress, TransactionError};

/// How often the lock is asked for.
const ASK: Duration = Duration::from_millis(200);

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
    let restart = async || Systemd::connect(&root).await?.restart(&order.unit).await;
    Ok(transaction::run(&order, &layout.progress(), restart).await?)
}
