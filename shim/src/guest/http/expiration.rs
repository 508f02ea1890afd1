//! How long an instance lives, by its clients and by the places there are.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::Sleep;
use wasmtime_wasi_http::handler::{WorkerExpiration, WorkerStatus};

use super::client::{Attendance, Clients};
use super::idle::{Idler, Idlers};
use super::places::Places;

/// When an instance ends: at once when everybody has left, and some time after it has been idle or has answered. One that
/// is idle where the places beside those for requests are taken ends at once too, since another thread may need its place,
/// and so does one of too many.
///
/// While somebody waits, nothing ends it: a client has a deadline of its own, and leaves then. Whether somebody still
/// waits is looked at whenever it runs, and as often as it may go on for: it ends after twice that time at the latest.
pub struct Expiration {
    clients: Arc<Clients>,
    places: Places,
    idlers: Arc<Idlers>,
    /// While it is idle.
    idler: Option<Idler>,
    /// How long an instance is kept for the next request.
    idle: Duration,
    /// How long it may go on after its answers.
    after: Duration,
    /// Since when it is known to have gone on.
    served: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

impl Expiration {
    /// Of an instance that has these clients and is one of its thread's `idlers` between them.
    pub fn new(
        clients: Arc<Clients>,
        places: Places,
        idlers: Arc<Idlers>,
        idle: Duration,
        after: Duration,
    ) -> Expiration {
        Expiration {
            clients,
            places,
            idlers,
            idler: None,
            idle,
            after,
            served: None,
            timer: Box::pin(tokio::time::sleep(after)),
        }
    }

    /// Whether others are idle enough; it is, since this time.
    fn is_too_many(&mut self, since: Instant) -> bool {
        if let Some(idler) = &mut self.idler {
            return idler.ran(since);
        }
        self.idler = Some(Idler::new(self.idlers.clone(), since));
        false
    }

    /// Wakes `cx` for another look.
    fn look_again(&mut self, cx: &mut Context<'_>) {
        while self.timer.as_mut().poll(cx).is_ready() {
            let next = Instant::now() + self.after;
            self.timer.as_mut().reset(next.into());
        }
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        loop {
            // Left as it is while it strikes too early: most states end long before their deadline, and setting the
            // timer costs each of them.
            if self.timer.deadline() > deadline.into() {
                self.timer.as_mut().reset(deadline.into());
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(deadline.into());
        }
    }
}

impl WorkerExpiration for Expiration {
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>, status: WorkerStatus, start: Instant) -> Poll<()> {
        if status == WorkerStatus::Idle {
            self.served = None;
            self.clients.rest();
            if self.places.beside_requests().is_none() || self.is_too_many(start) {
                return Poll::Ready(());
            }
            let deadline = start + self.idle;
            return self.poll_deadline(cx, deadline);
        }
        self.idler = None;
        match self.clients.poll_attendance(cx) {
            Attendance::Abandoned => Poll::Ready(()),
            Attendance::Waiting => {
                self.served = None;
                self.look_again(cx);
                Poll::Pending
            }
            Attendance::Served => {
                // One may have come and gone since the last look.
                let served = start.max(*self.served.get_or_insert_with(Instant::now));
                let deadline = served + self.after;
                ready!(self.poll_deadline(cx, deadline));
                self.clients.are_outlasted();
                Poll::Ready(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::{Presence, tests::arrived};
    use super::super::sent::tests::Woken;
    use super::super::ticker::Ticker;
    use super::*;
    use std::future::poll_fn;
    use std::sync::atomic::Ordering;
    use std::task::Waker;

    /// Of one that has these clients and all the room it wants.
    fn expiration(clients: &Arc<Clients>, idle: Duration, after: Duration) -> Pin<Box<Expiration>> {
        let places = Places::new(1, 0);
        Box::pin(Expiration::new(clients.clone(), places, Arc::default(), idle, after))
    }

    #[tokio::test]
    async fn the_epoch_ticks_for_an_instance_while_it_runs_and_not_while_it_is_idle() {
        let ticker = Ticker::start(wasmtime::Engine::default()).unwrap();
        let clients = Arc::<Clients>::default();
        let hour = Duration::from_secs(3600);
        let mut expiration = expiration(&clients, hour, hour);
        let mut look = |status| {
            let mut cx = Context::from_waker(Waker::noop());
            assert!(expiration.as_mut().poll(&mut cx, status, Instant::now()).is_pending());
            ticker.running()
        };
        for _ in 0..2 {
            assert_eq!(look(WorkerStatus::Idle), 0);
            let (client, presence) = arrived();
            clients.run(&ticker);
            clients.add(client);
            assert_eq!(look(WorkerStatus::Requests), 1);
            presence.served();
            assert_eq!(look(WorkerStatus::PostReturn), 1, "it may go on");
        }
        assert_eq!(look(WorkerStatus::Idle), 0);
    }

    #[tokio::test]
    async fn an_instance_may_go_on_for_some_time_and_that_begins_when_its_last_client_is_known_to_be_served() {
        for status in [WorkerStatus::Requests, WorkerStatus::PostReturn] {
            let clients = Arc::<Clients>::default();
            let [(first, one), (second, other)] = [arrived(), arrived()];
            clients.add(first);
            clients.add(second);
            let [hour, moment] = [Duration::from_secs(3600), Duration::from_millis(1)];
            let [mut patient, mut strict] = [hour, moment].map(|after| expiration(&clients, Duration::ZERO, after));
            let start = Instant::now();
            let mut cx = Context::from_waker(Waker::noop());
            one.served();
            // Longer than it may go on, and than the timer's steps are.
            tokio::time::sleep(Duration::from_millis(5)).await;
            assert!(
                strict.as_mut().poll(&mut cx, status, start).is_pending(),
                "{status:?}: the second waits"
            );
            other.served();
            assert!(patient.as_mut().poll(&mut cx, status, start).is_pending(), "{status:?}");
            assert!(!clients.were_outlasted(), "{status:?}");
            poll_fn(|cx| strict.as_mut().poll(cx, status, start)).await;
            assert!(clients.were_outlasted(), "{status:?}");
        }
    }

    #[tokio::test]
    async fn an_idle_instance_is_kept_while_requests_have_places_enough_and_else_ends_at_once() {
        let hour = Duration::from_secs(3600);
        // One of two places is for requests, and each is an instance's.
        let places = Places::new(2, 1);
        let mut taken = Vec::new();
        for is_kept in [true, false] {
            taken.push(places.take().await.unwrap());
            let mut expiration = Box::pin(Expiration::new(
                Arc::default(),
                places.clone(),
                Arc::default(),
                hour,
                hour,
            ));
            let mut cx = Context::from_waker(Waker::noop());
            let idle = expiration.as_mut().poll(&mut cx, WorkerStatus::Idle, Instant::now());
            assert_eq!(idle.is_pending(), is_kept);
        }
    }

    #[tokio::test]
    async fn of_instances_that_are_woken_in_vain_some_end_and_one_that_answers_does_not() {
        let hour = Duration::from_secs(3600);
        let (idlers, start) = (Arc::<Idlers>::default(), Instant::now());
        let mut living: Vec<_> = (0..8)
            .map(|_| {
                let clients = Arc::<Clients>::default();
                let (places, idlers) = (Places::new(1, 0), idlers.clone());
                let expiration = Expiration::new(clients.clone(), places, idlers, hour, hour);
                (clients, Box::pin(expiration), WorkerStatus::Idle)
            })
            .collect();
        let (client, _presence) = arrived();
        living[0].0.add(client);
        living[0].2 = WorkerStatus::Requests;
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..100 {
            living.retain_mut(|(_, expiration, status)| expiration.as_mut().poll(&mut cx, *status, start).is_pending());
        }
        assert_eq!(living.len(), 3, "it and two that are idle");
        assert_eq!(living[0].2, WorkerStatus::Requests);
    }

    #[tokio::test]
    async fn an_instance_is_woken_by_a_client_that_leaves_and_not_by_one_that_is_served() {
        let hour = Duration::from_secs(3600);
        type Ends = fn(Presence);
        for (ends, wakes) in [(Presence::served as Ends, 0), (drop, 1)] {
            let (clients, woken) = (Arc::<Clients>::default(), Arc::<Woken>::default());
            let waker = Waker::from(woken.clone());
            let mut expiration = expiration(&clients, hour, hour);
            let (client, presence) = arrived();
            clients.add(client);
            let mut cx = Context::from_waker(&waker);
            let now = Instant::now();
            assert!(
                expiration
                    .as_mut()
                    .poll(&mut cx, WorkerStatus::Requests, now)
                    .is_pending()
            );
            ends(presence);
            assert_eq!(woken.0.load(Ordering::Relaxed), wakes);
        }
    }

    #[tokio::test]
    async fn an_instance_that_nothing_wakes_sees_by_itself_that_its_client_was_served() {
        let clients = Arc::<Clients>::default();
        let moment = Duration::from_millis(1);
        let mut expiration = expiration(&clients, moment, moment);
        let (client, presence) = arrived();
        clients.add(client);
        let start = Instant::now();
        let ended = poll_fn(|cx| expiration.as_mut().poll(cx, WorkerStatus::PostReturn, start));
        let served = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            presence.served();
        };
        tokio::join!(ended, served);
        assert!(clients.were_outlasted());
    }
}
