//! What is watched, and kept in memory: all that a plan looks at but pods.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{Stream, StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::store::{Writer, WriterDropped};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::heard::Heard;
use super::plan::agents;
use super::settings::Settings;
use super::unreadable::{Complaint, Unreadable};
use super::view::{View, WasmPod};
use crate::api::{WasmNode, WasmRuntime, labels};

/// The stores that watches fill.
pub struct Stores {
    pub runtimes: Store<WasmRuntime>,
    nodes: Store<Node>,
    wasm_nodes: Store<WasmNode>,
    daemon_sets: Store<DaemonSet>,
    classes: Store<RuntimeClass>,
    unreadable: Unreadable,
    heard: Mutex<Heard>,
    since: Since,
}

/// Since when every watch has been current.
#[derive(Clone)]
struct Since(Arc<Mutex<Timestamp>>);

impl Since {
    fn now() -> Since {
        Since(Arc::new(Mutex::new(Timestamp::now())))
    }

    /// A watch broke: what was not heard until now may have been said.
    fn restart(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Timestamp::now();
    }

    fn get(&self) -> Timestamp {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Changes of the watched objects, for who reconciles. Nothing is stored until they are polled.
pub struct Changes {
    pub runtimes: Changed<WasmRuntime>,
    pub nodes: Changed<Node>,
    pub wasm_nodes: Changed<WasmNode>,
    pub daemon_sets: Changed<DaemonSet>,
    pub classes: Changed<RuntimeClass>,
}

type Changed<K> = Pin<Box<dyn Stream<Item = Result<K, watcher::Error>> + Send>>;

/// Prepares all watches; `told` hears of objects that cannot be read.
pub fn all(client: &Client, settings: &Settings, told: &mpsc::UnboundedSender<Complaint>) -> (Stores, Changes) {
    let since = Since::now();
    let agents = watcher::Config::default().labels(labels::RUNTIME);
    let namespaced = Api::<DaemonSet>::namespaced(client.clone(), &settings.namespace);
    let unreadable = Unreadable::new(told.clone());
    let unreadable_runtimes = Unreadable::new(told.clone());
    let (runtimes, runtime_changes) = watch_ours(Api::all(client.clone()), &since, &unreadable_runtimes);
    let (nodes, node_changes) = watch(Api::all(client.clone()), watcher::Config::default(), &since, prune);
    let (wasm_nodes, wasm_node_changes) = watch_ours(Api::all(client.clone()), &since, &unreadable);
    let (daemon_sets, daemon_set_changes) = watch(namespaced, agents, &since, |_| {});
    let (classes, class_changes) = watch(Api::all(client.clone()), watcher::Config::default(), &since, |_| {});
    (
        Stores {
            runtimes,
            nodes,
            wasm_nodes,
            daemon_sets,
            classes,
            unreadable,
            heard: Mutex::default(),
            since,
        },
        Changes {
            runtimes: runtime_changes,
            nodes: node_changes,
            wasm_nodes: wasm_node_changes,
            daemon_sets: daemon_set_changes,
            classes: class_changes,
        },
    )
}

fn watch<K>(api: Api<K>, config: watcher::Config, since: &Since, prune: fn(&mut K)) -> (Store<K>, Changed<K>)
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let changes = keep(watcher(api, config), writer, since, prune);
    (store, changes)
}

/// The same for what others may write in our kinds: one object that cannot be read leaves the store without itself, not
/// empty.
fn watch_ours<K>(api: Api<DeserializeGuard<K>>, since: &Since, unreadable: &Unreadable) -> (Store<K>, Changed<K>)
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let (filled, unreadable) = (store.clone(), unreadable.clone());
    let readable = watcher(api, watcher::Config::default()).filter_map(move |event| {
        std::future::ready(match event {
            Ok(event) => unreadable.part(event, &filled).map(Ok),
            Err(error) => Some(Err(error)),
        })
    });
    let changes = keep(readable, writer, since, |_| {});
    (store, changes)
}

fn keep<K>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
    writer: Writer<K>,
    since: &Since,
    prune: fn(&mut K),
) -> Changed<K>
where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    let since = since.clone();
    events
        .modify(move |object: &mut K| {
            object.managed_fields_mut().clear();
            prune(object);
        })
        .backoff(Patience::default())
        .reflect(writer)
        .touched_objects()
        .inspect_err(move |error| {
            since.restart();
            tracing::warn!(%error, kind = %K::kind(&()), "a watch broke and is begun again");
        })
        // It has waited for itself: whoever heard of the error would have every other watch wait as well.
        .filter(|change| std::future::ready(change.is_ok()))
        .boxed()
}

/// How long a watch that broke waits before it is begun again: a second, and twice as long each time, up to eight.
#[derive(Default)]
struct Patience(u32);

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = Duration::from_secs(1 << self.0);
        self.0 = (self.0 + 1).min(3);
        Some(wait)
    }
}

impl Backoff for Patience {
    fn reset(&mut self) {
        self.0 = 0;
    }
}

/// Half of a node in memory is its images, which nobody here asks for.
fn prune(node: &mut Node) {
    if let Some(status) = &mut node.status {
        let conditions = status.conditions.take();
        *status = k8s_openapi::api::core::v1::NodeStatus {
            conditions,
            ..Default::default()
        };
    }
    node.annotations_mut().clear();
}

impl Stores {
    /// Waits until each store has been filled once.
    pub async fn synced(&self) -> Result<(), WriterDropped> {
        self.runtimes.wait_until_ready().await?;
        self.nodes.wait_until_ready().await?;
        self.wasm_nodes.wait_until_ready().await?;
        self.daemon_sets.wait_until_ready().await?;
        self.classes.wait_until_ready().await
    }

    /// What a plan for the runtime looks at, pods aside.
    pub fn view(&self, runtime: Arc<WasmRuntime>, taken: Vec<Timestamp>, settings: Arc<Settings>) -> View {
        let name = runtime.name_any();
        let agents = ObjectRef::new(&agents::name(&name)).within(&settings.namespace);
        let now = Timestamp::now();
        let all = self.wasm_nodes.state();
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.listen(now, all.iter().map(Arc::as_ref));
        let wasm_nodes: BTreeMap<String, Arc<WasmNode>> = all
            .into_iter()
            .filter(|wasm_node| wasm_node.spec.runtime == name)
            .map(|wasm_node| (wasm_node.spec.node_name.clone(), wasm_node))
            .collect();
        View {
            now,
            since: self.since.get(),
            runtimes: self.runtimes.state(),
            nodes: by_name(&self.nodes),
            heard: wasm_nodes
                .iter()
                .filter_map(|(node, wasm_node)| Some((node.clone(), heard.last(wasm_node)?)))
                .collect(),
            wasm_nodes,
            unreadable: self.unreadable.of(&name),
            agents: self.daemon_sets.get(&agents),
            classes: by_name(&self.classes),
            pods: Vec::<WasmPod>::new(),
            forbidden: None,
            taken,
            settings,
            runtime,
        }
    }
}

/// References to everything in a store.
pub fn refs(store: &Store<WasmRuntime>) -> Vec<ObjectRef<WasmRuntime>> {
    store
        .state()
        .iter()
        .map(|runtime| ObjectRef::from_obj(runtime.as_ref()))
        .collect()
}

fn by_name<K>(store: &Store<K>) -> BTreeMap<String, Arc<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store
        .state()
        .into_iter()
        .map(|object| (object.name_any(), object))
        .collect()
}
