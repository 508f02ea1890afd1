//! How much of what its answers' bodies have handed out a connection has written.
//!
//! A body that breaks off ends its connection, and hyper writes nothing more then: what came before would be lost with
//! it. So a broken body says so once the connection has written that.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// What a connection and the bodies of its answers know of each other.
#[derive(Default)]
pub struct Sent(Mutex<State>);

#[derive(Default)]
struct State {
    /// So many pieces were handed out, heads among them.
    handed: u64,
    /// So many of them are written.
    written: u64,
    /// Bodies that broke off and wait.
    waiting: Vec<Waker>,
}

impl Sent {
    /// Another piece is handed out; its number.
    pub fn hand_out(&self) -> u64 {
        let mut state = self.state();
        state.handed += 1;
        state.handed
    }

    /// Everything that was handed out is written.
    pub fn all_written(&self) {
        let mut state = self.state();
        state.written = state.handed;
        for waker in state.waiting.drain(..) {
            waker.wake();
        }
    }

    /// Waits until the piece of this number is written.
    pub fn poll_written(&self, cx: &Context<'_>, piece: u64) -> Poll<()> {
        let mut state = self.state();
        if state.written >= piece {
            return Poll::Ready(());
        }
        state.waiting.push(cx.waker().clone());
        Poll::Pending
    }

    /// Whether a body waits for what it has handed out.
    pub fn is_awaited(&self) -> bool {
        !self.state().waiting.is_empty()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    /// How often it was woken.
    #[derive(Default)]
    pub struct Woken(pub AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_body_waits_for_what_it_handed_out_and_for_nothing_of_others() {
        let (sent, woken) = (Sent::default(), Arc::new(Woken::default()));
        let waker = woken.clone().into();
        let cx = Context::from_waker(&waker);
        let first = sent.hand_out();
        assert!(sent.poll_written(&cx, first).is_pending());
        assert!(sent.is_awaited());
        sent.all_written();
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(!sent.is_awaited());
        let second = sent.hand_out();
        assert!(sent.poll_written(&cx, first).is_ready());
        assert!(sent.poll_written(&cx, second).is_pending());
    }
}
