//! Who reconciles, when several replicas run: the holder of a Lease.
//!
//! Leadership saves work; it is no lock. Clocks differ and requests are late, so each write is safe without it.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt};
use kube_lease_manager::{LeaseCreateMode, LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use tokio::sync::watch::Receiver;
use tokio::task::JoinHandle;

/// The name of the Lease, in the controller's namespace.
const LEASE: &str = "kubewasi-controller";

/// How often it is looked whether the Lease is there.
const LOOK: Duration = Duration::from_secs(10);

/// Why there is no place in the queue.
#[derive(Debug, thiserror::Error)]
pub enum LeadError {
    #[error(transparent)]
    Kube(#[from] kube::Error),
    #[error(transparent)]
    Manager(#[from] LeaseManagerError),
}

/// A place in the queue for the Lease; [`Place::leave`] gives it up.
pub struct Place {
    leading: Receiver<bool>,
    keeper: JoinHandle<()>,
    renewal: JoinHandle<Result<LeaseManager, LeaseManagerError>>,
}

impl Place {
    /// Queues for the Lease, under a name of this replica's own: its pod's.
    pub async fn take(client: Client, namespace: &str, identity: &str) -> Result<Place, LeadError> {
        let keeper = Keeper {
            leases: Api::namespaced(client.clone(), namespace),
            pods: Api::namespaced(client.clone(), namespace),
            pod: identity.to_owned(),
        };
        keeper.keep().await?;
        let manager = LeaseManagerBuilder::new(client, LEASE)
            .with_namespace(namespace)
            .with_identity(identity)
            .with_create_mode(LeaseCreateMode::UseExistent)
            // Two missed renewals and the lease is another's; a renewal is due 5 s before the end.
            .with_duration(15)
            .with_grace(5)
            .build()
            .await?;
        let (leading, renewal) = manager.watch().await;
        Ok(Place {
            leading,
            keeper: tokio::spawn(keeper.run()),
            renewal,
        })
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
        self.keeper.abort();
        drop(self.leading);
        match self.renewal.await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the lease was not released, and runs out"),
            Err(error) => tracing::warn!(%error, "the lease's renewal ended by itself"),
        }
    }
}

/// Makes the Lease, which its manager does not do while it runs: when somebody has deleted it, who leads would lead on, and
/// nobody could follow.
struct Keeper {
    leases: Api<Lease>,
    pods: Api<Pod>,
    pod: String,
}

impl Keeper {
    async fn run(self) {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Err(error) = self.keep().await {
                tracing::warn!(%error, "the lease cannot be looked for");
            }
        }
    }

    /// Makes the Lease unless it is there. The package brings one that goes with it; ours goes with what owns our pod.
    async fn keep(&self) -> Result<(), kube::Error> {
        if self.leases.get_opt(LEASE).await?.is_some() {
            return Ok(());
        }
        let pod = self.pods.get_opt(&self.pod).await?;
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(LEASE.to_owned()),
                owner_references: pod.map(|pod| owners(&pod)),
                ..ObjectMeta::default()
            },
            ..Lease::default()
        };
        match self.leases.create(&PostParams::default(), &lease).await {
            // Another replica was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            made => made.map(drop),
        }
    }
}

/// The owners of a pod, as those of something that none of them waits for.
fn owners(pod: &Pod) -> Vec<OwnerReference> {
    let mut owners = pod.owner_references().to_vec();
    for owner in &mut owners {
        (owner.controller, owner.block_owner_deletion) = (None, None);
    }
    owners
}
