//! Busy polling: a thread that has just answered looks for the next request for some microseconds before it sleeps.
//!
//! A cpu that has gone to sleep takes longer to wake than most answers take to make. How long a thread looks follows how
//! long it had to wait for the last requests, as KVM polls for a vcpu that halts: a request that came soon makes it look
//! longer for the next one, a request that came late, or one that came only when it had looked as long as it may, makes it
//! sleep at once. So a service that is asked less often than each tenth of a millisecond never looks. While it looks it gives
//! way; where that shows that others want the cpu, it sleeps: who sleeps is woken sooner than who gives way.

use std::cell::Cell;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use tokio::task::yield_now;

/// The longest that a thread looks.
const LONGEST: Duration = Duration::from_micros(100);

/// How long it looks first.
const FIRST: Duration = Duration::from_micros(25);

/// A request that came so soon may have been found; what waking took is in it.
const SOON: Duration = Duration::from_micros(150);

/// With more connections than these a thread is seldom idle, and then by turns with its clients.
const FEW: usize = 4;

/// Giving way takes longer only where others want the cpu.
const UNDISTURBED: Duration = Duration::from_micros(20);

/// A thread whose cpu others want, or that has looked in vain as long as it may, does not look for so long.
const REST: Duration = Duration::from_millis(100);

thread_local! {
    static POLLING: Cell<Option<Polling>> = const { Cell::new(None) };
}

/// How a thread looks that may.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Polling {
    /// For so long.
    window: Duration,
    /// Since when there is nothing else to do; `None` while there is.
    idle: Option<Instant>,
    /// Until when it does not.
    rests: Option<Instant>,
}

impl Polling {
    /// A request has come, by one of so many connections.
    fn asked(self, connections: usize, now: Instant) -> Polling {
        let Some(idle) = self.idle else { return self };
        let in_vain = self.window == LONGEST && now - idle >= LONGEST;
        let rests = match in_vain {
            true => Some(now + REST),
            false => self.rests.filter(|until| now < *until),
        };
        let window = match now - idle < SOON && rests.is_none() && connections <= FEW {
            true => (self.window * 2).clamp(FIRST, LONGEST),
            false => Duration::ZERO,
        };
        Polling {
            window,
            idle: None,
            rests,
        }
    }

    /// There is nothing to do.
    fn idle(self, now: Instant) -> Polling {
        Polling {
            idle: Some(self.idle.unwrap_or(now)),
            ..self
        }
    }

    /// Whether to look instead of to sleep.
    fn looks(&self, now: Instant) -> bool {
        self.idle.is_some_and(|idle| now - idle < self.window)
    }

    /// It gave way from `before` until `now`.
    fn gave_way(self, before: Instant, now: Instant) -> Polling {
        match now - before < UNDISTURBED {
            true => self,
            false => Polling {
                window: Duration::ZERO,
                rests: Some(now + REST),
                ..self
            },
        }
    }
}

/// From now on this thread may look before it sleeps.
pub fn allow() {
    POLLING.set(Some(Polling::default()));
}

/// A request has come to this thread, which has so many connections.
pub fn asked(connections: usize) {
    if let Some(polling) = POLLING.get()
        && polling.idle.is_some()
    {
        POLLING.set(Some(polling.asked(connections, Instant::now())));
    }
}

/// To be called by this thread's event loop before it sleeps; keeps it from that while it looks.
pub fn before_sleep() {
    let Some(polling) = POLLING.get() else { return };
    let before = Instant::now();
    let mut polling = polling.idle(before);
    if polling.looks(before) {
        std::thread::yield_now();
        let now = Instant::now();
        polling = polling.gave_way(before, now);
        if polling.looks(now) {
            // While somebody yields, tokio asks for events and does not wait for them.
            let _ = pin!(yield_now()).poll(&mut Context::from_waker(Waker::noop()));
        }
    }
    POLLING.set(Some(polling));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::runtime::Builder;

    /// After a request that came so long after the one before.
    fn asked_after(polling: Polling, gap: Duration) -> Polling {
        let now = Instant::now();
        polling.idle(now).asked(1, now + gap)
    }

    #[test]
    fn requests_that_come_soon_make_it_look_longer_and_one_that_is_late_ends_that() {
        let mut polling = Polling::default();
        let mut windows = Vec::new();
        for _ in 0..4 {
            polling = asked_after(polling, LONGEST / 2);
            windows.push(polling.window);
        }
        assert_eq!(windows, [FIRST, FIRST * 2, LONGEST, LONGEST]);
        assert_eq!(asked_after(polling, SOON).window, Duration::ZERO);
    }

    #[test]
    fn who_has_looked_in_vain_as_long_as_it_may_rests() {
        let looking = Polling {
            window: LONGEST,
            ..Polling::default()
        };
        assert_eq!(asked_after(looking, LONGEST * 9 / 10).window, LONGEST);
        let resting = asked_after(looking, LONGEST);
        assert!(resting.rests.is_some());
        assert_eq!(asked_after(resting, Duration::ZERO).window, Duration::ZERO);
    }

    #[test]
    fn a_thread_of_many_connections_sleeps() {
        let now = Instant::now();
        let window = |connections| Polling::default().idle(now).asked(connections, now).window;
        assert_eq!([window(FEW), window(FEW + 1)], [FIRST, Duration::ZERO]);
    }

    #[test]
    fn it_looks_for_its_window_since_it_is_idle_and_then_sleeps() {
        let now = Instant::now();
        let polling = asked_after(Polling::default(), Duration::ZERO).idle(now);
        assert!(polling.looks(now));
        let later = polling.idle(now + FIRST / 2);
        assert!(later.looks(now + FIRST / 2) && !later.looks(now + FIRST));
    }

    #[test]
    fn a_thread_that_nobody_has_asked_sleeps_at_once() {
        let now = Instant::now();
        assert!(!Polling::default().idle(now).looks(now));
    }

    #[test]
    fn who_had_to_give_way_sleeps_and_does_not_look_again_before_its_rest_is_over() {
        let now = Instant::now();
        let looking = asked_after(Polling::default(), Duration::ZERO).idle(now);
        assert_eq!(looking.gave_way(now, now + UNDISTURBED / 2), looking);
        let resting = looking.gave_way(now, now + UNDISTURBED);
        assert!(!resting.looks(now));
        let asked = resting.asked(1, now + UNDISTURBED);
        assert_eq!(asked.window, Duration::ZERO);
        let over = now + UNDISTURBED + REST;
        assert_eq!(asked.idle(over).asked(1, over).window, FIRST);
    }

    #[test]
    fn an_event_loop_goes_around_while_it_looks_and_hears_of_events() {
        // Asleep, it would go around once and wait for ever.
        const TURNS: usize = 20;
        let (sender, receiver) = UnixStream::pair().unwrap();
        receiver.set_nonblocking(true).unwrap();
        let turns = AtomicUsize::new(0);
        let event_loop = Builder::new_current_thread()
            .enable_all()
            .on_thread_park(move || {
                if turns.fetch_add(1, Ordering::Relaxed) == TURNS {
                    (&sender).write_all(b"event").unwrap();
                }
                // Again where whoever else runs here made it rest.
                let looking = Polling {
                    window: Duration::from_secs(3600),
                    ..Polling::default()
                };
                let mut rests = POLLING.get().is_some();
                while rests {
                    POLLING.set(Some(looking));
                    before_sleep();
                    rests = POLLING.get().is_some_and(|polling| polling.window.is_zero());
                }
            })
            .build()
            .unwrap();
        allow();
        event_loop.block_on(async {
            let receiver = tokio::net::UnixStream::from_std(receiver).unwrap();
            let heard = tokio::time::timeout(Duration::from_secs(60), receiver.readable());
            heard.await.unwrap().unwrap();
        });
    }
}
