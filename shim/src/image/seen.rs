//! Which manifests the server has seen in each namespace, also of images that are gone by now.
//!
//! Where containerd records the config of a container's image alone, a manifest that was removed in the meantime may
//! have been the one.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::manifest::Manifest;
use super::record::Time;

/// The maximum size of all manifests that are kept, in bytes. One takes a few hundred.
const MAX_BYTES: usize = 16 << 20;

/// The maximum size of a manifest, in bytes, with which the titles of its layers are kept.
const MAX_MANIFEST_BYTES: usize = 16 << 10;

#[derive(Default)]
pub struct Seen {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Namespaces and manifests, the oldest first.
    manifests: VecDeque<(String, Manifest)>,
    bytes: usize,
    /// Since when no image has come and gone unseen; `None` while that is not known.
    since: Option<Time>,
}

impl Seen {
    /// Adds manifests of an image in `namespace`; the oldest are dropped when there are too many.
    pub fn add(&self, namespace: &str, manifests: &[Manifest]) {
        let mut state = self.state();
        for manifest in manifests {
            // Read again, it may have its config by now.
            state.remove(|of, known| of == namespace && known.digest == manifest.digest);
            let mut manifest = manifest.clone();
            if manifest.weight() > MAX_MANIFEST_BYTES {
                manifest.wasm.iter_mut().for_each(|layer| layer.title = None);
            }
            state.bytes += manifest.weight();
            state.manifests.push_back((namespace.to_owned(), manifest));
            while state.bytes > MAX_BYTES && state.remove_oldest() {}
        }
    }

    /// The manifests of `namespace` with this config.
    pub fn with_config(&self, namespace: &str, config: &str) -> Vec<Manifest> {
        let state = self.state();
        let all = state.manifests.iter();
        all.filter(|(of, manifest)| of == namespace && manifest.config == config)
            .map(|(_, manifest)| manifest.clone())
            .collect()
    }

    /// From `since` on every image is seen, or none any more.
    pub fn all_since(&self, since: Option<Time>) {
        self.state().since = since;
    }

    /// Whether every image that has been there since `time` has been seen.
    pub fn has_seen_all_since(&self, time: Time) -> bool {
        self.state().since.is_some_and(|since| since <= time)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change leaves a list that is true, so one that a panic interrupted still is.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remove(&mut self, is_meant: impl Fn(&str, &Manifest) -> bool) {
        let bytes = &mut self.bytes;
        self.manifests.retain(|(namespace, manifest)| {
            let removed = is_meant(namespace, manifest);
            if removed {
                *bytes -= manifest.weight();
            }
            !removed
        });
    }

    /// Whether there was one.
    fn remove_oldest(&mut self) -> bool {
        let oldest = self.manifests.pop_front();
        self.bytes -= oldest.as_ref().map_or(0, |(_, manifest)| manifest.weight());
        oldest.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::manifest::Commitment;

    fn manifest(number: usize) -> Manifest {
        Manifest {
            digest: format!("sha256:{number}"),
            config: "sha256:c".to_owned(),
            for_wasm: true,
            chain: String::new(),
            commitment: Commitment::None,
            wasm: Vec::new(),
            unknown: Vec::new(),
        }
    }

    #[test]
    fn a_manifest_is_known_by_its_config_in_its_namespace_alone() {
        let seen = Seen::default();
        seen.add("k8s.io", &[manifest(1), manifest(2), manifest(1)]);
        assert_eq!(seen.with_config("k8s.io", "sha256:c"), [manifest(2), manifest(1)]);
        assert_eq!(seen.with_config("default", "sha256:c"), []);
        assert_eq!(seen.with_config("k8s.io", "sha256:d"), []);
    }

    #[test]
    fn the_oldest_manifests_are_dropped_when_there_are_too_many() {
        let seen = Seen::default();
        let long = |number| Manifest {
            unknown: vec!["t".repeat(MAX_BYTES / 4)],
            ..manifest(number)
        };
        (0..9).for_each(|number| seen.add("n", &[long(number)]));
        assert_eq!(seen.with_config("n", "sha256:c"), [long(6), long(7), long(8)]);
    }

    #[test]
    fn what_was_there_before_the_watch_began_may_have_gone_unseen() {
        let seen = Seen::default();
        assert!(!seen.has_seen_all_since((5, 0)));
        seen.all_since(Some((5, 0)));
        assert!(seen.has_seen_all_since((5, 0)) && !seen.has_seen_all_since((4, 9)));
        seen.all_since(None);
        assert!(!seen.has_seen_all_since((5, 0)));
    }
}
