//! `kubewasi-controller run`: definitions, health, leadership, and then the reconciliation.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::sleep;

use super::definitions::{self, DefinitionError};
use super::lead::{LeadError, Place};
use super::reconcile;
use super::serve::{Health, serve};
use super::settings::Settings;

/// How long a reconciliation may go on after SIGTERM, well below the 30 s that a pod has. One that is cut off is begun again
/// by the next leader: each of its writes can be repeated.
const GRACE: Duration = Duration::from_secs(10);

/// The arguments of `run`.
#[derive(Args, Debug)]
pub struct Run {
    #[command(flatten)]
    settings: Settings,
    /// Where /metrics, /healthz and /readyz are served.
    #[arg(long, env = "KUBEWASI_LISTEN", default_value = "[::]:8080")]
    listen: SocketAddr,
    /// The name of this replica in the lease.
    #[arg(long, env = "POD_NAME", default_value = "kubewasi-controller")]
    identity: String,
}

/// Why the controller ends.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("no way to the API server: {0}")]
    Config(#[from] kube::Error),
    #[error(transparent)]
    Definitions(#[from] DefinitionError),
    #[error("the lease: {0}")]
    Lease(#[from] LeadError),
    #[error("{address}: {source}")]
    Serve {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("signals cannot be handled: {0}")]
    Signal(std::io::Error),
    /// Another replica took over; this one starts anew, with nothing remembered.
    #[error("leadership was lost")]
    LostLeadership,
}

/// Runs until a signal, or until leadership is lost.
pub async fn run(arguments: Run) -> Result<(), RunError> {
    let client = Client::try_default().await?;
    let health = Health::default();
    let address = arguments.listen;
    let endpoints = serve(address, health.clone());
    let work = work(client, arguments, health);
    tokio::select! {
        served = endpoints => served.map_err(|source| RunError::Serve { address, source }),
        worked = work => worked,
    }
}

async fn work(client: Client, arguments: Run, health: Health) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signal)?;
    definitions::apply(&client).await?;
    let mut place = Place::take(client.clone(), &arguments.settings.namespace, &arguments.identity).await?;
    health.ready.store(true, Ordering::Relaxed);
    tracing::info!(identity = arguments.identity, "waiting for the lease");
    let leads = tokio::select! {
        leads = place.gained() => leads,
        _ = terminate.recv() => false,
    };
    if !leads {
        place.leave().await;
        return Ok(());
    }
    health.metrics.leads();
    tracing::info!(identity = arguments.identity, "leading");
    // The signal of above, and no other listener: one that registers only now would miss a signal that is there already.
    let told = Arc::new(Notify::new());
    let tell = told.clone();
    let end = async move {
        terminate.recv().await;
        tell.notify_one();
    };
    let grace_over = async {
        told.notified().await;
        sleep(GRACE).await;
    };
    let ended = tokio::select! {
        // Ends by itself, after the write that it is at.
        () = reconcile::run(client, arguments.settings, health.metrics, end) => Ok(()),
        // It waits for watches that are not current yet, and takes nothing from them any more.
        () = grace_over => Ok(()),
        () = place.lost() => Err(RunError::LostLeadership),
    };
    place.leave().await;
    ended
}
