//! Between two requests of a thread: the last one's instance is dropped and the next one's is made while nobody waits for
//! it.
//!
//! A fresh instance for each request costs a few microseconds before the answer and as many after it. On a thread that is
//! not busy all the time both happen once the answer is on its way.

use std::pin::{Pin, pin};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep};
use wasmtime::Store;

use super::instances::{IDLE, Instances, Made, Place};
use crate::guest::context::Component as State;

/// What one thread has beside the instances that answer.
#[derive(Default)]
pub struct Spare {
    /// For the next request.
    made: Mutex<Option<Made>>,
    /// Of the last one.
    used: Mutex<Option<(Store<State>, Place)>>,
    /// The next one is to be made.
    taken: Notify,
}

impl Spare {
    /// The instance that was made ahead, if there is one.
    pub fn take(&self) -> Option<Made> {
        self.taken.notify_one();
        // What the last one had of memory is free for the next.
        drop(lock(&self.used).take());
        lock(&self.made).take()
    }

    /// Drops an instance that has answered, but not now.
    pub fn leave(&self, store: Store<State>, place: Place) {
        let before = lock(&self.used).replace((store, place));
        self.taken.notify_one();
        drop(before);
    }
}

/// Keeps an instance ready on this thread, from its first request on and until nobody has asked for so long that instances
/// are dropped.
pub async fn keep(instances: Instances) {
    let spare = &instances.spare;
    let mut idle = pin!(sleep(IDLE));
    loop {
        spare.taken.notified().await;
        loop {
            // Behind everything that is ready to run by now, answers first of all.
            yield_now().await;
            drop(lock(&spare.used).take());
            if lock(&spare.made).is_none() && instances.have_room_for_spares() {
                // Who asks next is told why there is none.
                let made = instances.make().await.ok();
                *lock(&spare.made) = made.filter(|_| instances.have_room_for_spares());
            }
            if is_idle(&spare.taken, idle.as_mut(), IDLE).await {
                drop(lock(&spare.made).take());
                break;
            }
        }
    }
}

/// Waits until `asked` or until nobody has for so long; whether nobody has.
async fn is_idle(asked: &Notify, mut timer: Pin<&mut Sleep>, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        tokio::select! {
            biased;
            () = asked.notified() => return false,
            // Left as it was while that strikes too early: setting it costs each request.
            () = timer.as_mut() => match timer.deadline() >= deadline {
                true => return true,
                false => timer.as_mut().reset(deadline),
            },
        }
    }
}

fn lock<T>(part: &Mutex<T>) -> MutexGuard<'_, T> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_timer_that_was_set_for_an_earlier_request_strikes_for_none_later() {
        let (asked, mut timer) = (Notify::new(), pin!(sleep(Duration::ZERO)));
        let hour = Duration::from_secs(3600);
        let (idle, ()) = tokio::join!(is_idle(&asked, timer.as_mut(), hour), async {
            // It strikes meanwhile.
            sleep(Duration::from_millis(2)).await;
            asked.notify_one();
        });
        assert!(!idle);
        timer.set(sleep(Duration::ZERO));
        assert!(is_idle(&asked, timer.as_mut(), Duration::ZERO).await);
    }

    #[tokio::test]
    async fn who_is_asked_is_not_idle_even_when_the_time_is_up() {
        let (asked, timer) = (Notify::new(), pin!(sleep(Duration::ZERO)));
        asked.notify_one();
        assert!(!is_idle(&asked, timer, Duration::ZERO).await);
    }
}
