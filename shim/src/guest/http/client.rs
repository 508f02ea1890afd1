//! Whether anybody still waits for the answer to a request, and whether there is still an instance that makes it: what the
//! connection and the instance must learn of each other.

use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Context;

use futures_util::task::AtomicWaker;

use super::admission::Permit;
use super::ticker::{Ticker, Ticking};
use super::unread::Progress;

const WAITS: u8 = 0;
const SERVED: u8 = 1;
const LEFT: u8 = 2;
const FAILED: u8 = 3;

/// What is left of an instance that has failed. While it is there, whatever the guest has handed out can be read, and what
/// it has not ended does not end.
pub type Remains = Arc<dyn Any + Send + Sync>;

/// Who asked, as its instance sees it.
pub struct Client {
    state: AtomicU8,
    /// Its instance's, once it has one.
    count: OnceLock<Arc<Count>>,
    answer: AtomicWaker,
    /// How its answer is read.
    pub progress: Progress,
    held: Mutex<Held>,
}

/// What is held for a client until it is gone.
#[derive(Default)]
struct Held {
    _permit: Option<Permit>,
    remains: Option<Remains>,
}

/// The connection's end: whoever drops it before it is [`Presence::served`] has left.
pub struct Presence {
    client: Arc<Client>,
}

/// A client that waits, and its presence, which holds the request's permit.
pub fn arrives(permit: Permit) -> (Arc<Client>, Presence) {
    let client = Arc::new(Client {
        state: AtomicU8::new(WAITS),
        count: OnceLock::new(),
        answer: AtomicWaker::new(),
        progress: Progress::default(),
        held: Mutex::new(Held {
            _permit: Some(permit),
            remains: None,
        }),
    });
    let presence = Presence { client: client.clone() };
    (client, presence)
}

impl Presence {
    /// It has got the whole answer.
    pub fn served(self) {
        self.client.ends(SERVED);
    }

    /// Whose it is.
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// It asks for the next piece of its answer; false when it has waited too long with that, and counts as one that left.
    pub fn asks(&self) -> bool {
        let is_here = !self.client.progress.is_over();
        if is_here {
            self.client.progress.asks();
        }
        is_here
    }

    /// It has got a piece.
    pub fn takes(&self) {
        self.client.progress.takes();
    }

    /// Whether its instance has failed; else `cx` is woken when it does.
    pub fn poll_failed(&self, cx: &Context<'_>) -> bool {
        self.client.answer.register(cx.waker());
        self.client.state.load(Ordering::Acquire) == FAILED
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.client.leaves();
    }
}

impl Client {
    /// It is gone, and has left unless its answer was over before: nothing is held for it any more.
    pub fn leaves(&self) {
        self.ends(LEFT);
        self.progress.ends();
        let held = std::mem::take(&mut *self.held());
        // A whole instance may end here.
        drop(held);
    }

    /// It waits no more, for this reason, if it did until now.
    fn ends(&self, reason: u8) {
        let changed = self
            .state
            .compare_exchange(WAITS, reason, Ordering::AcqRel, Ordering::Acquire);
        if changed.is_ok()
            && let Some(count) = self.count.get()
        {
            count.ended(reason);
        }
    }

    fn waits(&self) -> bool {
        self.state.load(Ordering::Acquire) == WAITS
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many clients an instance has. They come and go on its own thread.
#[derive(Default)]
struct Count {
    waiting: AtomicUsize,
    left: AtomicUsize,
    /// It went on for too long after its answers.
    outlasted: AtomicBool,
    instance: AtomicWaker,
}

impl Count {
    fn ended(&self, reason: u8) {
        if reason == LEFT {
            self.left.fetch_add(1, Ordering::AcqRel);
        }
        let is_last = self.waiting.fetch_sub(1, Ordering::AcqRel) == 1;
        // One that has served everybody is not woken for that, which would cost each request: it looks for itself.
        if is_last && self.any_left() {
            self.instance.wake();
        }
    }

    fn any_left(&self) -> bool {
        self.left.load(Ordering::Acquire) > 0
    }
}

/// Whom an instance runs for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attendance {
    /// Somebody waits.
    Waiting,
    /// Everybody has got an answer.
    Served,
    /// Nobody waits any more, and one has left before.
    Abandoned,
}

/// The clients of one instance.
#[derive(Default)]
pub struct Clients {
    all: Mutex<Vec<Arc<Client>>>,
    count: Arc<Count>,
    /// While their instance runs.
    ticking: Mutex<Option<Ticking>>,
}

impl Clients {
    /// Their instance runs from now on, and `ticker` ticks for it.
    pub fn run(&self, ticker: &Ticker) {
        self.ticking().get_or_insert_with(|| ticker.tick());
    }

    /// Another one.
    pub fn add(&self, client: Arc<Client>) {
        self.count.waiting.fetch_add(1, Ordering::AcqRel);
        let _ = client.count.set(self.count.clone());
        if !client.waits() {
            self.count.ended(client.state.load(Ordering::Acquire));
            return;
        }
        let mut all = self.all();
        all.retain(|client| client.waits());
        all.push(client);
    }

    /// Their instance has failed: who waits for the rest of an answer gets what there is in its remains.
    pub fn fail(&self, remains: &Remains) {
        for client in self.all().iter().filter(|client| client.waits()) {
            client.held().remains = Some(remains.clone());
            client.ends(FAILED);
            client.answer.wake();
        }
    }

    /// Whether one has left before it was served. Nothing can be taken back from an instance, so what was begun for that
    /// one may still run.
    pub fn any_left(&self) -> bool {
        self.count.any_left()
    }

    /// Their instance is ended because it went on for too long after its answers.
    pub fn are_outlasted(&self) {
        self.count.outlasted.store(true, Ordering::Release);
    }

    /// Whether their instance was ended because it went on for too long after its answers.
    pub fn were_outlasted(&self) -> bool {
        self.count.outlasted.load(Ordering::Acquire)
    }

    /// Whom their instance runs for; `cx` is woken when it is abandoned.
    pub fn poll_attendance(&self, cx: &Context<'_>) -> Attendance {
        self.count.instance.register(cx.waker());
        match self.count.waiting.load(Ordering::Acquire) {
            0 if self.any_left() => Attendance::Abandoned,
            0 => Attendance::Served,
            _ => Attendance::Waiting,
        }
    }

    /// Their instance does nothing before the next one comes.
    pub fn rest(&self) {
        drop(self.ticking().take());
    }

    fn ticking(&self) -> MutexGuard<'_, Option<Ticking>> {
        self.ticking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> MutexGuard<'_, Vec<Arc<Client>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::guest::http::admission::Admission;
    use futures_util::FutureExt as _;
    use std::task::Waker;

    pub fn arrived() -> (Arc<Client>, Presence) {
        let permit = Admission::new(1, 0).enter().now_or_never().unwrap().unwrap();
        arrives(permit)
    }

    fn is_abandoned(clients: &Clients) -> bool {
        clients.poll_attendance(&Context::from_waker(Waker::noop())) == Attendance::Abandoned
    }

    #[test]
    fn an_instance_is_abandoned_when_one_has_left_and_nobody_waits() {
        let clients = Clients::default();
        let [(first, left), (second, served)] = [arrived(), arrived()];
        clients.add(first);
        clients.add(second);
        assert!(!clients.any_left() && !is_abandoned(&clients));
        drop(left);
        assert!(clients.any_left() && !is_abandoned(&clients), "the second waits");
        served.served();
        assert!(is_abandoned(&clients));
    }

    #[test]
    fn an_instance_that_has_served_everybody_is_not_abandoned_and_who_left_before_it_came_is_known() {
        let clients = Clients::default();
        let (client, presence) = arrived();
        clients.add(client);
        presence.served();
        assert!(!is_abandoned(&clients));
        let (client, presence) = arrived();
        drop(presence);
        clients.add(client);
        assert!(is_abandoned(&clients));
    }

    #[test]
    fn remains_are_kept_for_who_waits_until_the_last_has_gone() {
        let clients = Clients::default();
        let [(first, served), (second, waits), (third, other)] = [arrived(), arrived(), arrived()];
        for client in [first, second, third] {
            clients.add(client);
        }
        served.served();
        let remains: Remains = Arc::new(());
        clients.fail(&remains);
        assert_eq!(Arc::strong_count(&remains), 3);
        let cx = Context::from_waker(Waker::noop());
        assert!(waits.poll_failed(&cx));
        drop(other);
        waits.served();
        assert_eq!(Arc::strong_count(&remains), 1);
    }
}
