//! Answers that nobody reads on: they are held only so long.
//!
//! A client of HTTP/2 says itself how much may be sent to it. hyper keeps a piece of a body until there is room, and asks
//! for no other meanwhile: the body does not run, and TCP sees a client that is alive. So a thread looks at its readers from
//! time to time. Over HTTP/1.1 the connection's `TCP_USER_TIMEOUT` is enough.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use super::client::Client;

/// In so many looks a reader must have taken something.
const LOOKS: u32 = 12;

/// It waits for the next piece.
const ASKS: u32 = u32::MAX - 1;

/// It reads no more.
const GONE: u32 = u32::MAX;

/// Who has gone is forgotten at the next look, or when so many have come, and as many as are there.
const FEW: usize = 64;

/// How a reader gets on: how often it was looked at since it took the last piece, unless it waits for one.
#[derive(Default)]
pub struct Progress(AtomicU32);

impl Progress {
    /// It asks for the next piece.
    pub fn asks(&self) {
        self.0.store(ASKS, Ordering::Relaxed);
    }

    /// It has got one.
    pub fn takes(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// It reads no more.
    pub fn ends(&self) {
        self.0.store(GONE, Ordering::Relaxed);
    }

    pub fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed) == GONE
    }

    /// Looks at it; how often it was found with the same piece, `None` once it reads no more.
    fn look(&self) -> Option<u32> {
        let counted = |looks| (looks < ASKS).then(|| looks + 1);
        match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted) {
            Ok(looks) => Some(looks + 1),
            Err(ASKS) => Some(0),
            Err(_) => None,
        }
    }
}

/// The readers of one thread.
pub struct Readers {
    all: Mutex<Vec<Arc<Client>>>,
    /// The first of them.
    came: Notify,
    every: Duration,
}

impl Readers {
    /// Each may keep a piece about so long before it asks for another.
    pub fn new(patience: Duration) -> Readers {
        Readers {
            all: Mutex::default(),
            came: Notify::new(),
            every: patience / LOOKS,
        }
    }

    /// Another one.
    pub fn add(&self, client: Arc<Client>) {
        let mut all = self.all();
        if all.is_empty() {
            self.came.notify_one();
        }
        if all.len() == all.capacity() {
            all.retain(|client| !client.progress.is_over());
            let as_many = all.len().max(FEW);
            all.reserve(as_many);
        }
        all.push(client);
    }

    /// Looks at them for ever, and sleeps while there is none.
    pub async fn watch(&self) {
        loop {
            if self.all().is_empty() {
                self.came.notified().await;
            }
            sleep(self.every).await;
            self.look();
        }
    }

    /// Looks once: for who has taken nothing in so many looks nothing is held any more.
    pub fn look(&self) {
        let mut idle = Vec::new();
        self.all().retain(|client| match client.progress.look() {
            Some(looks) if looks < LOOKS => true,
            Some(_) => {
                idle.push(client.clone());
                false
            }
            None => false,
        });
        for client in idle {
            client.leaves();
        }
    }

    fn all(&self) -> MutexGuard<'_, Vec<Arc<Client>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub mod tests {
    use super::super::admission::Admission;
    use super::super::client::arrives;
    use super::*;
    use futures_util::FutureExt as _;
    use tokio::time::timeout;

    /// As many looks as a reader may be found with the same piece.
    pub fn look_in_vain(readers: &Readers) {
        for _ in 0..LOOKS {
            readers.look();
        }
    }

    #[test]
    fn a_place_is_taken_from_who_takes_nothing_and_from_nobody_who_takes_or_asks() {
        let (admission, readers) = (Admission::new(1, 0), Readers::new(Duration::ZERO));
        let permit = admission.enter().now_or_never().unwrap().unwrap();
        let (client, presence) = arrives(permit);
        readers.add(client);
        let is_free = || admission.enter().now_or_never().unwrap().is_some();
        for _ in 0..LOOKS * 2 {
            readers.look();
            presence.takes();
        }
        assert!(presence.asks());
        look_in_vain(&readers);
        assert!(!is_free(), "its guest is slow");
        presence.takes();
        for _ in 1..LOOKS {
            readers.look();
        }
        assert!(!is_free());
        readers.look();
        assert!(is_free() && !presence.asks() && readers.all().is_empty());
    }

    #[test]
    fn who_has_gone_is_not_kept() {
        let (admission, readers) = (Admission::new(1, 0), Readers::new(Duration::ZERO));
        for _ in 0..FEW * 10 {
            let permit = admission.enter().now_or_never().unwrap().unwrap();
            let (client, presence) = arrives(permit);
            readers.add(client);
            presence.served();
        }
        assert!(readers.all().len() <= FEW, "{}", readers.all().len());
        readers.look();
        assert!(readers.all().is_empty());
    }

    #[tokio::test]
    async fn readers_are_watched_from_the_first_on_and_again_after_the_last() {
        let (admission, readers) = (Admission::new(1, 1), Readers::new(Duration::from_millis(LOOKS.into())));
        let come = async {
            let mut forgotten = Vec::new();
            for _ in 0..3 {
                let permit = timeout(Duration::from_secs(20), admission.enter()).await;
                let (client, presence) = arrives(permit.unwrap().unwrap());
                readers.add(client);
                forgotten.push(presence);
            }
        };
        tokio::select! {
            () = readers.watch() => {}
            () = come => {}
        }
    }
}
