//! What a service counts of itself, in memory that it shares with the server: fixed places, no text.
//!
//! The guest's process counts; whoever reads believes nothing of it but numbers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use hyper::StatusCode;

/// The upper ends of the latency histogram's buckets, in microseconds: Prometheus' defaults, and finer ones before them,
/// since an instance takes less than a millisecond.
const BOUNDS: [u64; 14] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 10_000_000,
];

/// The statuses there may be (RFC 9110, 15).
const FIRST: u16 = 100;
const STATUSES: usize = 500;

/// As nginx has it: the client left before there was an answer.
pub const LEFT: u16 = 499;

// Where each counter is.
const IN_FLIGHT: usize = STATUSES;
const INSTANCES: usize = STATUSES + 1;
const INSTANTIATED: usize = STATUSES + 2;
const MICROSECONDS: usize = STATUSES + 3;
const BUCKETS: usize = STATUSES + 4;

/// So many there are; the last bucket has no end.
pub const COUNTERS: usize = BUCKETS + BOUNDS.len() + 1;

/// What one counter may say: more is no count, and sums of all that are there do not overflow.
const MOST: u64 = 1 << 53;

/// The counters of this process.
#[derive(Clone, Copy)]
pub struct Figures(&'static [AtomicU64]);

impl Figures {
    /// Counts in `counters`, which are [`COUNTERS`].
    pub fn new(counters: &'static [AtomicU64]) -> Figures {
        Figures(counters)
    }

    /// A request has come.
    pub fn request(self) -> Request {
        self.add(IN_FLIGHT, 1);
        Request {
            figures: self,
            begun: Instant::now(),
            status: LEFT,
        }
    }

    /// An instance was made; it lives as long as what is returned.
    pub fn instance(self) -> Living {
        self.add(INSTANTIATED, 1);
        self.add(INSTANCES, 1);
        Living(self)
    }

    /// What is counted now.
    pub fn now(self) -> Snapshot {
        let counters: Vec<u64> = self.0.iter().map(|counter| counter.load(Ordering::Relaxed)).collect();
        Snapshot::of(&counters)
    }

    fn add(self, place: usize, count: u64) {
        if let Some(counter) = self.0.get(place) {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }

    fn take(self, place: usize) {
        if let Some(counter) = self.0.get(place) {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A request in flight, counted under its status when its answer is over.
pub struct Request {
    figures: Figures,
    begun: Instant,
    status: u16,
}

impl Request {
    /// The answer's status.
    pub fn answered(&mut self, status: StatusCode) {
        self.status = status.as_u16();
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let microseconds = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(MOST);
        let bucket = BOUNDS.partition_point(|bound| *bound < microseconds);
        self.figures.add(BUCKETS + bucket, 1);
        self.figures.add(MICROSECONDS, microseconds);
        if let Some(place) = usize::from(self.status).checked_sub(usize::from(FIRST)) {
            self.figures.add(place.min(STATUSES - 1), 1);
        }
        self.figures.take(IN_FLIGHT);
    }
}

/// An instance, counted for as long as this lives.
pub struct Living(Figures);

impl Drop for Living {
    fn drop(&mut self) {
        self.0.take(INSTANCES);
    }
}

/// What a service has counted at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// How many requests were answered with each status that there was.
    pub requests: Vec<(u16, u64)>,
    pub in_flight: u64,
    pub instances: u64,
    pub instantiated: u64,
    /// What all requests took together.
    pub seconds: f64,
    /// How many requests took at most so many seconds, and longer than the bucket before.
    pub buckets: Vec<(f64, u64)>,
}

impl Snapshot {
    /// Reads `counters`, whatever they hold.
    pub fn of(counters: &[u64]) -> Snapshot {
        let count = |place: usize| match counters.get(place) {
            Some(&count) if count <= MOST => count,
            _ => 0,
        };
        let ends = BOUNDS.iter().map(|bound| *bound as f64 / 1e6).chain([f64::MAX]);
        Snapshot {
            requests: (FIRST..)
                .zip((0..STATUSES).map(count))
                .filter(|(_, count)| *count > 0)
                .collect(),
            in_flight: count(IN_FLIGHT),
            instances: count(INSTANCES),
            instantiated: count(INSTANTIATED),
            seconds: count(MICROSECONDS) as f64 / 1e6,
            buckets: ends.zip((BUCKETS..).map(count)).collect(),
        }
    }

    /// How many requests the histogram has.
    pub fn answered(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Counters that nobody shares.
    pub fn figures() -> Figures {
        Figures::new(Vec::leak((0..COUNTERS).map(|_| AtomicU64::new(0)).collect()))
    }

    #[test]
    fn a_request_is_in_flight_until_its_answer_is_over_and_then_counted_under_its_status() {
        let figures = figures();
        let (mut first, second) = (figures.request(), figures.request());
        first.answered(StatusCode::NOT_FOUND);
        assert_eq!((figures.now().in_flight, figures.now().requests), (2, vec![]));
        drop(first);
        assert_eq!((figures.now().in_flight, figures.now().requests), (1, vec![(404, 1)]));
        drop(second);
        let now = figures.now();
        assert_eq!(
            (now.in_flight, now.requests.as_slice()),
            (0, [(404, 1), (499, 1)].as_slice())
        );
        assert_eq!((now.answered(), now.buckets.len()), (2, BOUNDS.len() + 1));
    }

    #[test]
    fn an_instance_counts_while_it_lives_and_was_made_for_ever() {
        let figures = figures();
        let (one, other) = (figures.instance(), figures.instance());
        drop(one);
        assert_eq!((figures.now().instances, figures.now().instantiated), (1, 2));
        drop(other);
        assert_eq!((figures.now().instances, figures.now().instantiated), (0, 2));
    }

    #[test]
    fn a_request_is_in_the_bucket_of_its_latency() {
        let figures = figures();
        let mut request = figures.request();
        request.begun -= std::time::Duration::from_millis(30);
        drop(request);
        let now = figures.now();
        assert!(now.seconds >= 0.03, "{now:?}");
        let bucket = now.buckets.iter().find(|(_, count)| *count > 0);
        assert!(bucket.is_some_and(|(end, _)| *end >= 0.05), "{now:?}");
    }

    #[test]
    fn what_is_no_count_is_read_as_none_and_sums_do_not_overflow() {
        let hostile = Snapshot::of(&[u64::MAX; COUNTERS]);
        assert_eq!(
            (hostile.in_flight, hostile.answered(), hostile.requests.len()),
            (0, 0, 0)
        );
        let large = Snapshot::of(&[MOST; COUNTERS]);
        assert_eq!(large.answered(), MOST * (BOUNDS.len() as u64 + 1));
        assert_eq!(Snapshot::of(&[]), Snapshot::of(&[0; COUNTERS]));
    }
}
