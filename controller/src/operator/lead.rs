//! Who reconciles, when several replicas run: the holder of a Lease.
//!
//! Leadership saves work; it is no lock. Clocks differ and requests are late, so each write is safe without it.

use kube::Client;
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use tokio::sync::watch::Receiver;
use tokio::task::JoinHandle;

/// The name of the Lease, in the controller's namespace.
const LEASE: &str = "kubewasi-controller";

/// A place in the queue for the Lease; [`Place::leave`] gives it up.
pub struct Place {
    leading: Receiver<bool>,
    renewal: JoinHandle<Result<LeaseManager, LeaseManagerError>>,
}

impl Place {
    /// Queues for the Lease, under a name of this replica's own.
    pub async fn take(client: Client, namespace: &str, identity: &str) -> Result<Place, LeaseManagerError> {
        let manager = LeaseManagerBuilder::new(client, LEASE)
            .with_namespace(namespace)
            .with_identity(identity)
            // Two missed renewals and the lease is another's; a renewal is due 5 s before the end.
            .with_duration(15)
            .with_grace(5)
            .build()
            .await?;
        let (leading, renewal) = manager.watch().await;
        Ok(Place { leading, renewal })
    }

    /// Waits for leadership; false when the renewal ended first.
    pub async fn gained(&mut self) -> bool {
        self.leading.wait_for(|leading| *leading).await.is_ok()
    }

    /// Waits until leadership is lost.
    pub async fn lost(&mut self) {
        // An error means that the renewal ended, which is a loss too.
        let _ = self.leading.wait_for(|leading| !*leading).await;
    }

    /// Lets the next one lead at once.
    pub async fn leave(self) {
        drop(self.leading);
        match self.renewal.await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the lease was not released, and runs out"),
            Err(error) => tracing::warn!(%error, "the lease's renewal ended by itself"),
        }
    }
}
