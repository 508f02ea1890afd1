//! How many idle instances one thread keeps.
//!
//! A request wakes the instance that has been idle longest; requests that come together wake one each, and the first that
//! runs answers them all where it waits for nothing. The others have run in vain, and with each of them a store and a
//! memory went through the cpu's caches. So who is woken in vain time and again ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// So often in a row one is woken in vain before it is one too many.
const IN_VAIN: u32 = 16;

/// As many are kept: where nobody is left to wait for the next request while one answers, a new one is made for it.
const KEPT: usize = 2;

/// Those of one thread.
#[derive(Default)]
pub struct Idlers(AtomicUsize);

/// An instance that is idle.
pub struct Idler {
    all: Arc<Idlers>,
    since: Instant,
    woken: u32,
}

impl Idler {
    /// One more, since this time.
    pub fn new(all: Arc<Idlers>, since: Instant) -> Idler {
        all.0.fetch_add(1, Ordering::Relaxed);
        Idler { all, since, woken: 0 }
    }

    /// It has run and is idle again, since this time; whether it is one too many.
    pub fn ran(&mut self, since: Instant) -> bool {
        if self.since != since {
            (self.since, self.woken) = (since, 0);
            return false;
        }
        self.woken += 1;
        self.woken >= IN_VAIN && self.all.0.load(Ordering::Relaxed) > KEPT
    }
}

impl Drop for Idler {
    fn drop(&mut self) {
        self.all.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Whether it is one too many after it ran so often in vain.
    fn is_too_many(idler: &mut Idler, ran: u32) -> bool {
        let since = idler.since;
        (0..ran).fold(false, |_, _| idler.ran(since))
    }

    #[test]
    fn of_those_that_are_woken_in_vain_time_and_again_two_are_kept() {
        let all = Arc::<Idlers>::default();
        let now = Instant::now();
        let mut idlers: Vec<_> = (0..KEPT + 2).map(|_| Idler::new(all.clone(), now)).collect();
        while let Some(ends) = idlers.iter_mut().position(|idler| is_too_many(idler, IN_VAIN)) {
            idlers.remove(ends);
        }
        assert_eq!(idlers.len(), KEPT);
    }

    #[test]
    fn one_that_got_a_request_in_between_is_not_too_many() {
        let all = Arc::<Idlers>::default();
        let now = Instant::now();
        let _others: Vec<_> = (0..KEPT).map(|_| Idler::new(all.clone(), now)).collect();
        let mut idler = Idler::new(all, now);
        assert!(!is_too_many(&mut idler, IN_VAIN - 1));
        assert!(!idler.ran(now + Duration::from_millis(1)));
        assert!(!is_too_many(&mut idler, IN_VAIN - 1));
        assert!(is_too_many(&mut idler, 1));
    }
}
