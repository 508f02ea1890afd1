//! How long making instances takes, as the service itself sees it: from nothing to a guest that can be called.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Durations are told apart by microseconds up to a millisecond; what is longer counts as that.
const SLOTS: usize = 1001;

/// The durations of all instantiations since the service began.
pub struct Instantiations([AtomicU64; SLOTS]);

impl Instantiations {
    pub fn new() -> Instantiations {
        Instantiations([const { AtomicU64::new(0) }; SLOTS])
    }

    /// Another one.
    pub fn add(&self, took: Duration) {
        let slot = usize::try_from(took.as_micros()).unwrap_or(usize::MAX);
        self.0[slot.min(SLOTS - 1)].fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|slot| slot.load(Ordering::Relaxed)).sum()
    }

    /// So many microseconds were enough for so many of a hundred.
    fn share(&self, hundredths: u64) -> usize {
        let mut left = (self.count() * hundredths).div_ceil(100);
        let enough = self.0.iter().position(|slot| {
            left = left.saturating_sub(slot.load(Ordering::Relaxed));
            left == 0
        });
        enough.unwrap_or(SLOTS - 1)
    }
}

/// `12345 instances were made, the median in 21 us and 99 of 100 in 55 us`.
impl fmt::Display for Instantiations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} instances were made, the median in {} us and 99 of 100 in {} us",
            self.count(),
            self.share(50),
            self.share(99)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_the_99th_are_told_in_microseconds_up_to_a_millisecond() {
        let instantiations = Instantiations::new();
        for microseconds in 1..=99 {
            instantiations.add(Duration::from_micros(microseconds));
        }
        instantiations.add(Duration::from_secs(5));
        let text = instantiations.to_string();
        assert_eq!(
            text,
            "100 instances were made, the median in 50 us and 99 of 100 in 99 us"
        );
        instantiations.add(Duration::from_secs(5));
        assert_eq!(instantiations.share(100), 1000);
        assert_eq!(Instantiations::new().share(50), 0);
    }
}
