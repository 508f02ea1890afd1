//! Whether anybody still waits for the answer to a request: what the connection knows and the instance must learn.

use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use tokio::time::Sleep;
use wasmtime_wasi_http::handler::{WorkerExpiration, WorkerStatus};

use super::admission::Permit;

const WAITS: u8 = 0;
const SERVED: u8 = 1;
const LEFT: u8 = 2;

/// Who asked, as its instance sees it.
pub struct Client {
    state: AtomicU8,
    instance: AtomicWaker,
}

/// The connection's end: whoever drops it before it is [`Presence::served`] has left.
pub struct Presence {
    client: Arc<Client>,
    _permit: Permit,
}

/// A client that waits, and its presence, which holds the request's permit.
pub fn arrives(permit: Permit) -> (Arc<Client>, Presence) {
    let client = Arc::new(Client {
        state: AtomicU8::new(WAITS),
        instance: AtomicWaker::new(),
    });
    let presence = Presence {
        client: client.clone(),
        _permit: permit,
    };
    (client, presence)
}

impl Presence {
    /// It has got the whole answer.
    pub fn served(self) {
        self.client.state.store(SERVED, Ordering::Release);
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let _ = self
            .client
            .state
            .compare_exchange(WAITS, LEFT, Ordering::AcqRel, Ordering::Acquire);
        self.client.instance.wake();
    }
}

/// The clients of one instance.
#[derive(Default)]
pub struct Clients(Mutex<Vec<Arc<Client>>>);

impl Clients {
    /// Another one.
    pub fn add(&self, client: Arc<Client>) {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|client| client.state.load(Ordering::Acquire) != SERVED);
        clients.push(client);
    }

    /// Whether one has left before it was served. Nothing can be taken back from an instance, so what was begun for that
    /// one may still run.
    pub fn any_left(&self) -> bool {
        let clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        clients
            .iter()
            .any(|client| client.state.load(Ordering::Acquire) == LEFT)
    }

    /// Whether nobody waits any more, but one had left; else `cx` is woken when one leaves.
    fn poll_abandoned(&self, cx: &Context<'_>) -> bool {
        let clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = false;
        for client in clients.iter() {
            client.instance.register(cx.waker());
            match client.state.load(Ordering::Acquire) {
                WAITS => return false,
                state => left |= state == LEFT,
            }
        }
        left
    }
}

/// When an instance ends: at once when everybody has left, and some time after it has been idle or has answered.
pub struct Expiration {
    clients: Arc<Clients>,
    /// How long an instance is kept for the next request.
    idle: Duration,
    /// How long it may go on after its answers.
    after: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Expiration {
    pub fn new(clients: Arc<Clients>, idle: Duration, after: Duration) -> Expiration {
        Expiration {
            clients,
            idle,
            after,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
        }
    }
}

impl WorkerExpiration for Expiration {
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>, status: WorkerStatus, start: Instant) -> Poll<()> {
        let longest = match status {
            WorkerStatus::Requests | WorkerStatus::PostReturn if self.clients.poll_abandoned(cx) => {
                return Poll::Ready(());
            }
            // The client's own deadline counts.
            WorkerStatus::Requests => return Poll::Pending,
            WorkerStatus::PostReturn => self.after,
            WorkerStatus::Idle => self.idle,
        };
        let deadline = start + longest;
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
