//! The epoch: a thread that advances it while guests run, so that one that spins gives way to others.
//!
//! An instance that waits for its next request needs no epoch: a service that is asked once a second, as by a readiness
//! probe, is not to wake a cpu a hundred times.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use wasmtime::Engine;

/// So long a guest runs at a stretch, at most twice that.
const TICK: Duration = Duration::from_millis(10);

/// So many ticks without a guest that runs, and the thread sleeps: to wake it costs who asks more often than that.
const LINGERS: u32 = 10;

/// Advances an engine's epoch.
pub struct Ticker {
    thread: Thread,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    running: AtomicUsize,
    asleep: AtomicBool,
}

/// A guest runs for as long as this lives.
pub struct Ticking(Arc<State>);

impl Ticker {
    /// Starts the thread, which ends with the process.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(engine: Engine) -> std::io::Result<Ticker> {
        let state = Arc::new(State::default());
        let ticked = state.clone();
        let handle = thread::Builder::new()
            .name("epoch".to_owned())
            .spawn(move || tick(&engine, &ticked))?;
        Ok(Ticker {
            thread: handle.thread().clone(),
            state,
        })
    }

    /// How many guests run.
    #[cfg(test)]
    pub fn running(&self) -> usize {
        self.state.running.load(Ordering::SeqCst)
    }

    /// Ticks from now on.
    pub fn tick(&self) -> Ticking {
        self.state.running.fetch_add(1, Ordering::SeqCst);
        if self.state.asleep.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
        Ticking(self.state.clone())
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

fn tick(engine: &Engine, state: &State) {
    let mut idle = 0;
    loop {
        thread::sleep(TICK);
        engine.increment_epoch();
        idle = match state.running.load(Ordering::SeqCst) {
            0 => idle + 1,
            _ => 0,
        };
        if idle >= LINGERS {
            state.asleep.store(true, Ordering::SeqCst);
            // Whoever came before that store is seen here; whoever came after it wakes this thread.
            while state.running.load(Ordering::SeqCst) == 0 {
                thread::park();
            }
            state.asleep.store(false, Ordering::SeqCst);
            idle = 0;
        }
    }
}
