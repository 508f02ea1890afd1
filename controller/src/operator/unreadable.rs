//! Objects that are there and cannot be read: each is left alone, told of by an event, and no other waits for it.
//!
//! The schemas refuse what the types cannot read; an older or newer build, or a definition that somebody changed, may
//! have let it in.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::core::DeserializeGuard;
use kube::core::error_boundary::InvalidObject;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};
use tokio::sync::mpsc;

use crate::api::labels;

/// An object, and why it cannot be read.
pub type Complaint = (ObjectReference, String);

/// Those of one kind.
#[derive(Clone)]
pub struct Unreadable {
    lists: Arc<Mutex<Lists>>,
    /// Takes each as it is found.
    told: mpsc::UnboundedSender<Complaint>,
}

#[derive(Default)]
struct Lists {
    known: BTreeMap<String, Found>,
    /// What a watch that begins anew has found so far.
    listed: BTreeMap<String, Found>,
}

#[derive(Clone)]
struct Found {
    runtime: Option<String>,
    why: String,
}

impl Unreadable {
    /// None yet; `told` is to hear of them.
    pub fn new(told: mpsc::UnboundedSender<Complaint>) -> Unreadable {
        Unreadable {
            lists: Arc::default(),
            told,
        }
    }

    /// Passes on what can be read, for who fills `store`, and keeps a list of the rest.
    pub fn part<K>(&self, event: Event<DeserializeGuard<K>>, store: &Store<K>) -> Option<Event<K>>
    where
        K: Resource<DynamicType = ()> + Clone + 'static,
    {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Init => {
                lists.listed.clear();
                Some(Event::Init)
            }
            Event::InitApply(DeserializeGuard(Ok(object))) => Some(Event::InitApply(object)),
            Event::InitApply(DeserializeGuard(Err(invalid))) => {
                let (name, found) = self.found::<K>(invalid);
                lists.listed.insert(name, found);
                None
            }
            Event::InitDone => {
                lists.known = std::mem::take(&mut lists.listed);
                Some(Event::InitDone)
            }
            Event::Apply(DeserializeGuard(Ok(object))) => {
                lists.known.remove(&object.name_any());
                Some(Event::Apply(object))
            }
            Event::Apply(DeserializeGuard(Err(invalid))) => {
                let (name, found) = self.found::<K>(invalid);
                lists.known.insert(name.clone(), found);
                // What it was before it is no more.
                let last = store.get(&ObjectRef::new(&name))?;
                Some(Event::Delete(K::clone(&last)))
            }
            Event::Delete(DeserializeGuard(object)) => {
                let name = match &object {
                    Ok(object) => object.name_any(),
                    Err(invalid) => invalid.metadata.name.clone().unwrap_or_default(),
                };
                lists.known.remove(&name);
                object.ok().map(Event::Delete)
            }
        }
    }

    /// The names of those that are a runtime's, and why they cannot be read.
    pub fn of(&self, runtime: &str) -> BTreeMap<String, String> {
        let lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        let of_runtime = |found: &&Found| found.runtime.as_deref() == Some(runtime);
        lists
            .known
            .iter()
            .filter(|(_, found)| of_runtime(found))
            .map(|(name, found)| (name.clone(), found.why.clone()))
            .collect()
    }

    fn found<K: Resource<DynamicType = ()>>(&self, invalid: InvalidObject) -> (String, Found) {
        let InvalidObject { error: why, metadata } = invalid;
        let name = metadata.name.unwrap_or_default();
        tracing::error!(kind = %K::kind(&()), name, why, "an object cannot be read, and is left alone");
        let about = ObjectReference {
            api_version: Some(K::api_version(&()).into_owned()),
            kind: Some(K::kind(&()).into_owned()),
            name: Some(name.clone()),
            uid: metadata.uid,
            ..ObjectReference::default()
        };
        // Nobody hears it while the process ends.
        let _ = self.told.send((about, why.clone()));
        let runtime = metadata.labels.and_then(|mut labels| labels.remove(labels::RUNTIME));
        (name, Found { runtime, why })
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::reflector;
    use serde_json::{Value, json};

    use super::*;
    use crate::api::WasmNode;

    fn guarded(node: &str, sandboxes: Value) -> DeserializeGuard<WasmNode> {
        serde_json::from_value(json!({
            "metadata": {"name": format!("wasi.{node}"), "labels": {labels::RUNTIME: "wasi"}},
            "spec": {
                "nodeName": node,
                "runtime": "wasi",
                "wish": {"state": "Installed", "handler": "wasi", "shimImage": "shim:1", "containerdRestart": "Rolling"},
            },
            "status": {"sandboxes": sandboxes},
        }))
        .unwrap()
    }

    #[test]
    fn what_cannot_be_read_is_listed_and_hides_nothing_else() {
        let (told, mut complaints) = mpsc::unbounded_channel();
        let unreadable = Unreadable::new(told);
        let (store, mut writer) = reflector::store::<WasmNode>();
        let mut pass = |event| {
            if let Some(event) = unreadable.part(event, &store) {
                writer.apply_watcher_event(&event);
            }
            let stored: Vec<String> = store
                .state()
                .iter()
                .map(|object| object.spec.node_name.clone())
                .collect();
            let listed: Vec<String> = unreadable.of("wasi").into_keys().collect();
            (stored, listed)
        };
        let wrong = || json!(5_000_000_000_u64);
        let some = |name: &str| vec![name.to_owned()];
        pass(Event::Init);
        pass(Event::InitApply(guarded("a", json!(1))));
        pass(Event::InitApply(guarded("b", wrong())));
        assert_eq!(pass(Event::InitDone), (some("a"), some("wasi.b")));
        // They change places.
        pass(Event::Apply(guarded("b", json!(1))));
        assert_eq!(pass(Event::Apply(guarded("a", wrong()))), (some("b"), some("wasi.a")));
        // A new list replaces the old one when it is whole.
        pass(Event::Init);
        assert_eq!(
            pass(Event::InitApply(guarded("b", json!(2)))),
            (some("b"), some("wasi.a"))
        );
        pass(Event::InitApply(guarded("a", wrong())));
        assert_eq!(pass(Event::InitDone), (some("b"), some("wasi.a")));
        assert_eq!(pass(Event::Delete(guarded("a", wrong()))), (some("b"), vec![]));
        assert!(unreadable.of("other").is_empty());
        let (about, why) = complaints.try_recv().unwrap();
        assert_eq!(
            (about.kind.as_deref(), about.name.as_deref()),
            (Some("WasmNode"), Some("wasi.b"))
        );
        assert!(why.contains("5000000000"), "{why}");
    }
}
