//! How many requests are answered at the same time, and how many wait for their turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The right to be answered, for as long as it lives.
pub struct Permit(#[expect(dead_code, reason = "held, never read")] OwnedSemaphorePermit);

/// Lets requests in, in the order they came.
pub struct Admission {
    places: Arc<Semaphore>,
    queued: AtomicUsize,
    /// So many wait at most.
    queue: usize,
}

impl Admission {
    pub fn new(concurrent: usize, queue: usize) -> Admission {
        Admission {
            places: Arc::new(Semaphore::new(concurrent)),
            queued: AtomicUsize::new(0),
            queue,
        }
    }

    /// Waits for a place; `None` at once when as many wait as may.
    pub async fn enter(&self) -> Option<Permit> {
        if let Ok(permit) = self.places.clone().try_acquire_owned() {
            return Some(Permit(permit));
        }
        let _queued = Queued::new(&self.queued, self.queue)?;
        // Never closed.
        self.places.clone().acquire_owned().await.ok().map(Permit)
    }
}

/// A place in the queue; given back also when whoever waits goes away.
struct Queued<'a>(&'a AtomicUsize);

impl<'a> Queued<'a> {
    fn new(count: &'a AtomicUsize, most: usize) -> Option<Queued<'a>> {
        let queued = Queued(count);
        // Counted before it is judged, so that two do not take the last place; dropped when it was none.
        (count.fetch_add(1, Ordering::Relaxed) < most).then_some(queued)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use std::pin::pin;

    #[test]
    fn one_is_let_in_one_waits_and_the_third_is_told_at_once() {
        let admission = Admission::new(1, 1);
        let first = admission.enter().now_or_never().unwrap();
        assert!(first.is_some());
        let mut second = pin!(admission.enter());
        assert!(second.as_mut().now_or_never().is_none(), "it waits");
        assert!(admission.enter().now_or_never().unwrap().is_none(), "the queue is full");
        drop(first);
        assert!(second.now_or_never().unwrap().is_some());
    }

    #[test]
    fn who_goes_away_from_the_queue_leaves_a_place_in_it() {
        let admission = Admission::new(1, 1);
        let _first = admission.enter().now_or_never().unwrap();
        for _ in 0..3 {
            assert!(admission.enter().now_or_never().is_none(), "it waits");
        }
    }
}
