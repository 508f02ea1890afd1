//! All containers of the server, and whether it has any reason to stay.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::container::Container;
use super::error::TaskError;
use crate::bootstrap::sinks::Key;

/// How long a container that `start` announced is waited for.
pub const RESERVATION: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Held {
    containers: HashMap<Key, Arc<Container>>,
    /// Until when announced containers are waited for.
    reserved: HashMap<Key, Instant>,
    /// The server is about to end: nothing new is taken.
    closed: bool,
}

/// The containers, by namespace and id.
pub struct Containers {
    held: Mutex<Held>,
    changed: watch::Sender<()>,
}

/// Whether the server may end.
#[derive(Debug, PartialEq, Eq)]
pub enum Need {
    /// It has containers.
    Containers,
    /// It has none, but one is announced until then.
    Announced(Instant),
    None,
}

impl Containers {
    /// Holds nothing but a place for the container that the server is started for, until `first`.
    pub fn new(first: Instant) -> Containers {
        let held = Held {
            reserved: HashMap::from([(Key::default(), first)]),
            ..Held::default()
        };
        Containers {
            held: Mutex::new(held),
            changed: watch::Sender::new(()),
        }
    }

    /// Announces a container; `false` when the server is about to end.
    pub fn reserve(&self, key: Key, until: Instant) -> bool {
        let mut held = self.lock();
        if held.closed {
            return false;
        }
        held.reserved.remove(&Key::default());
        held.reserved.insert(key, until);
        drop(held);
        self.changed.send_replace(());
        true
    }

    /// Takes a container in; its place is no longer reserved.
    pub fn insert(&self, container: &Arc<Container>) -> Result<(), TaskError> {
        let key = container.key();
        let mut held = self.lock();
        if held.closed {
            return Err(TaskError::ShuttingDown);
        }
        if held.containers.contains_key(&key) {
            return Err(TaskError::Exists {
                namespace: key.0,
                id: key.1,
            });
        }
        held.reserved.remove(&key);
        held.containers.insert(key, container.clone());
        drop(held);
        self.changed.send_replace(());
        Ok(())
    }

    pub fn get(&self, namespace: &str, id: &str) -> Result<Arc<Container>, TaskError> {
        self.find(&(namespace.to_owned(), id.to_owned()))
            .ok_or_else(|| TaskError::NoContainer {
                namespace: namespace.to_owned(),
                id: id.to_owned(),
            })
    }

    pub fn find(&self, key: &Key) -> Option<Arc<Container>> {
        self.lock().containers.get(key).cloned()
    }

    /// Forgets this very container, not another that has its id by now.
    pub fn remove(&self, container: &Arc<Container>) {
        let key = container.key();
        let mut held = self.lock();
        if held
            .containers
            .get(&key)
            .is_some_and(|present| Arc::ptr_eq(present, container))
        {
            held.containers.remove(&key);
        }
        drop(held);
        self.changed.send_replace(());
    }

    pub fn all(&self) -> Vec<Arc<Container>> {
        self.lock().containers.values().cloned().collect()
    }

    /// How many containers there are, and how many are announced.
    pub fn count(&self) -> (usize, usize) {
        let held = self.lock();
        (held.containers.len(), held.reserved.len())
    }

    /// Forgets the announcements that were not kept by `now` and returns them.
    pub fn expire(&self, now: Instant) -> Vec<Key> {
        let mut held = self.lock();
        let expired: Vec<Key> = held
            .reserved
            .iter()
            .filter(|(_, until)| **until <= now)
            .map(|(key, _)| key.clone())
            .collect();
        for key in &expired {
            held.reserved.remove(key);
        }
        expired
    }

    /// Why the server has to stay.
    pub fn need(&self) -> Need {
        self.lock().need()
    }

    /// Takes nothing new from now on, if there is no need to stay.
    pub fn close_if_unneeded(&self) -> bool {
        let mut held = self.lock();
        held.closed = held.need() == Need::None;
        held.closed
    }

    /// Takes nothing new from now on.
    pub fn close(&self) {
        self.lock().closed = true;
    }

    /// Sees every change of what is held.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // A panic between two of these statements leaves usable maps.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn need(&self) -> Need {
        if !self.containers.is_empty() {
            return Need::Containers;
        }
        self.reserved
            .values()
            .max()
            .map_or(Need::None, |until| Need::Announced(*until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::events::Facts;

    fn container(id: &str) -> Arc<Container> {
        Arc::new(Container::new(Facts {
            namespace: "n".into(),
            id: id.into(),
            ..Facts::default()
        }))
    }

    fn key(id: &str) -> Key {
        ("n".into(), id.into())
    }

    #[test]
    fn a_new_server_waits_for_the_container_it_was_started_for() {
        let (now, soon) = (Instant::now(), Instant::now() + RESERVATION);
        let containers = Containers::new(soon);
        assert_eq!(containers.need(), Need::Announced(soon));
        assert!(containers.expire(now).is_empty());
        containers.expire(soon);
        assert_eq!(containers.need(), Need::None);
    }

    #[test]
    fn a_reservation_holds_the_server_until_its_create_and_the_container_until_its_delete() {
        let soon = Instant::now() + RESERVATION;
        let containers = Containers::new(soon);
        assert!(containers.reserve(key("a"), soon));
        assert_eq!(containers.count(), (0, 1));
        let a = container("a");
        containers.insert(&a).unwrap();
        assert_eq!((containers.count(), containers.need()), ((1, 0), Need::Containers));
        assert!(!containers.close_if_unneeded());
        containers.remove(&a);
        assert_eq!(containers.need(), Need::None);
        assert!(containers.close_if_unneeded());
        assert!(!containers.reserve(key("b"), soon));
        assert!(matches!(containers.insert(&a), Err(TaskError::ShuttingDown)));
    }

    #[test]
    fn one_id_is_taken_once_a_namespace() {
        let containers = Containers::new(Instant::now());
        let a = container("a");
        containers.insert(&a).unwrap();
        let again = container("a");
        assert!(matches!(containers.insert(&again), Err(TaskError::Exists { .. })));
        let elsewhere = Arc::new(Container::new(Facts {
            namespace: "m".into(),
            id: "a".into(),
            ..Facts::default()
        }));
        containers.insert(&elsewhere).unwrap();
        containers.remove(&again);
        assert!(Arc::ptr_eq(&containers.get("n", "a").unwrap(), &a));
        assert!(matches!(containers.get("n", "b"), Err(TaskError::NoContainer { .. })));
    }
}
