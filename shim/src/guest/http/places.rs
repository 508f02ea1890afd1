//! The places of the pool of instances, and whether one may be held for nothing.

use std::sync::Arc;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Places for instances, all threads' together.
#[derive(Clone)]
pub struct Places {
    free: Arc<Semaphore>,
    /// As many are for requests alone: what may come at the same time.
    requests: usize,
}

impl Places {
    /// So many, of which so many are for requests.
    pub fn new(all: usize, requests: usize) -> Places {
        Places {
            free: Arc::new(Semaphore::new(all)),
            requests,
        }
    }

    /// Waits for one.
    pub async fn take(&self) -> Result<OwnedSemaphorePermit, AcquireError> {
        self.free.clone().acquire_owned().await
    }

    /// How many are free beside those for requests; `None` when some of those are taken too.
    pub fn beside_requests(&self) -> Option<usize> {
        self.free.available_permits().checked_sub(self.requests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[test]
    fn as_many_places_as_requests_may_come_are_for_them_alone() {
        let places = Places::new(4, 2);
        let mut taken = Vec::new();
        let mut beside = vec![places.beside_requests()];
        while let Some(place) = places.take().now_or_never() {
            taken.push(place.unwrap());
            beside.push(places.beside_requests());
        }
        assert_eq!(beside, [Some(2), Some(1), Some(0), None, None]);
    }
}
