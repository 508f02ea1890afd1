//! The plan against a cluster in memory: an API server that knows versions, and agents that do as agents do.

mod conflicts;
mod deletion;
mod labels;
mod membership;
mod proof;
mod rollout;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeSpec, NodeStatus, Taint};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::{Resource, ResourceExt};
use serde_json::json;

use super::plan;
use crate::api::wasm_node::{Failure, Phase, Plan as AgentPlan, Proof, Step, WishedState};
use crate::api::{WasmNode, WasmNodeStatus, WasmRuntime, WasmRuntimeSpec, labels as names};
use crate::operator::heard::Heard;
use crate::operator::settings::Settings;
use crate::operator::view::{View, WasmPod};
use crate::operator::write::{LabelChange, Seen, Write};

/// A write met an object of another version.
#[derive(Debug, PartialEq)]
struct Outdated;

/// A cluster.
#[derive(Clone)]
struct World {
    now: Timestamp,
    since: Timestamp,
    heard: RefCell<Heard>,
    runtimes: BTreeMap<String, WasmRuntime>,
    nodes: BTreeMap<String, Node>,
    wasm_nodes: BTreeMap<String, WasmNode>,
    agents: BTreeMap<String, DaemonSet>,
    classes: BTreeMap<String, RuntimeClass>,
    pods: Vec<WasmPod>,
    unreadable: BTreeMap<String, String>,
    forbidden: Option<String>,
    taken: Vec<Timestamp>,
    version: u64,
    /// Nodes whose plans fail.
    broken: Vec<String>,
    /// The most permits that were ever held at once.
    most_permits: usize,
}

impl World {
    /// A cluster with this many workers and a runtime named `wasi`.
    fn with_workers(count: usize) -> World {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut world = World {
            now: start,
            since: start,
            heard: RefCell::default(),
            runtimes: BTreeMap::new(),
            nodes: BTreeMap::new(),
            wasm_nodes: BTreeMap::new(),
            agents: BTreeMap::new(),
            classes: BTreeMap::new(),
            pods: Vec::new(),
            unreadable: BTreeMap::new(),
            forbidden: None,
            taken: Vec::new(),
            version: 0,
            broken: Vec::new(),
            most_permits: 0,
        };
        for number in 0..count {
            world.add_node(&format!("worker-{number:02}"));
        }
        world.add_runtime("wasi", json!({}));
        world
    }

    fn add_node(&mut self, name: &str) {
        let ready = NodeCondition {
            type_: "Ready".to_owned(),
            status: "True".to_owned(),
            ..NodeCondition::default()
        };
        let node = Node {
            metadata: self.meta(name),
            spec: Some(NodeSpec::default()),
            status: Some(NodeStatus {
                conditions: Some(vec![ready]),
                ..NodeStatus::default()
            }),
        };
        self.nodes.insert(name.to_owned(), node);
    }

    /// A runtime whose handler and class are named as itself, with these fields beside or instead.
    fn add_runtime(&mut self, name: &str, fields: serde_json::Value) {
        let mut spec = json!({
            "handler": name,
            "runtimeClasses": [name],
            "shim": {"image": "registry/shim:1"},
        });
        for (key, value) in fields.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let spec: WasmRuntimeSpec = serde_json::from_value(spec).unwrap();
        let mut runtime = WasmRuntime::new(name, spec);
        runtime.metadata = self.meta(name);
        runtime.metadata.generation = Some(1);
        self.runtimes.insert(name.to_owned(), runtime);
    }

    fn meta(&mut self, name: &str) -> ObjectMeta {
        self.version += 1;
        ObjectMeta {
            name: Some(name.to_owned()),
            uid: Some(format!("uid-{}", self.version)),
            resource_version: Some(self.version.to_string()),
            // Later ones are younger.
            creation_timestamp: Some(Time(
                self.now + SignedDuration::from_millis(i64::try_from(self.version).unwrap()),
            )),
            ..ObjectMeta::default()
        }
    }

    fn pass(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    fn view(&self, runtime: &str) -> View {
        let arcs = |map: &BTreeMap<String, Node>| {
            map.iter()
                .map(|(name, o)| (name.clone(), Arc::new(o.clone())))
                .collect()
        };
        let mut heard = self.heard.borrow_mut();
        heard.listen(self.now, self.wasm_nodes.values());
        let mut view = View {
            now: self.now,
            since: self.since,
            runtime: Arc::new(self.runtimes[runtime].clone()),
            runtimes: self.runtimes.values().cloned().map(Arc::new).collect(),
            nodes: arcs(&self.nodes),
            wasm_nodes: self
                .wasm_nodes
                .values()
                .filter(|wasm_node| wasm_node.spec.runtime == runtime)
                .map(|wasm_node| (wasm_node.spec.node_name.clone(), Arc::new(wasm_node.clone())))
                .collect(),
            heard: self
                .wasm_nodes
                .values()
                .filter(|wasm_node| wasm_node.spec.runtime == runtime)
                .filter_map(|wasm_node| Some((wasm_node.spec.node_name.clone(), heard.last(wasm_node)?)))
                .collect(),
            unreadable: self.unreadable.clone(),
            agents: self.agents.get(runtime).cloned().map(Arc::new),
            classes: self
                .classes
                .iter()
                .map(|(name, o)| (name.clone(), Arc::new(o.clone())))
                .collect(),
            pods: Vec::new(),
            forbidden: self.forbidden.clone(),
            taken: self.taken.clone(),
            settings: Arc::new(Settings {
                namespace: "kubewasi".to_owned(),
                agent_image: "registry/agent:1".to_owned(),
                agent_pull_policy: "IfNotPresent".to_owned(),
                agent_pull_secrets: Vec::new(),
                agent_service_account: "kubewasi-agent".to_owned(),
            }),
        };
        // As the controller does, which lists pods only then.
        if view.is_draining() {
            let classes: Vec<String> = view.class_names().map(str::to_owned).collect();
            view.pods = self
                .pods
                .iter()
                .filter(|pod| classes.contains(&pod.class))
                .cloned()
                .collect();
        }
        view
    }

    /// Plans and performs all of it; answers the kinds of the writes.
    fn reconcile(&mut self, runtime: &str) -> Vec<&'static str> {
        if !self.runtimes.contains_key(runtime) {
            return Vec::new();
        }
        let plan = plan(&self.view(runtime));
        for write in &plan.writes {
            self.write(write)
                .unwrap_or_else(|Outdated| panic!("{write:?} is outdated in its own plan"));
        }
        plan.writes.iter().map(Write::kind).collect()
    }

    /// As [`World::reconcile`], but the controller is killed after its first write of `kind`, once.
    fn reconcile_killed_once(&mut self, kind: &str, killed: &mut bool) {
        for write in plan(&self.view("wasi")).writes {
            self.write(&write).unwrap();
            if write.kind() == kind && !*killed {
                *killed = true;
                break;
            }
        }
    }

    /// Lets controller and agents act in turn until neither has anything to do.
    fn settle(&mut self) {
        for _ in 0..500 {
            let mut still = true;
            for runtime in self.runtimes.keys().cloned().collect::<Vec<_>>() {
                still &= self.reconcile(&runtime).is_empty();
            }
            still &= !self.agents_act();
            if still {
                return;
            }
        }
        panic!("the cluster does not come to rest");
    }

    fn write(&mut self, write: &Write) -> Result<(), Outdated> {
        match write {
            Write::AddFinalizer { runtime, finalizers } | Write::RemoveFinalizer { runtime, finalizers } => {
                let finalizers = finalizers.clone();
                change(&mut self.runtimes, &mut self.version, runtime, |object| {
                    object.metadata.finalizers = Some(finalizers);
                })?;
                self.runtimes.retain(|_, runtime| {
                    runtime.metadata.deletion_timestamp.is_none() || !runtime.finalizers().is_empty()
                });
            }
            Write::UpdateStatus { runtime, status } => {
                change(&mut self.runtimes, &mut self.version, runtime, |object| {
                    object.status = Some(status.as_ref().clone());
                })?;
            }
            Write::ApplyAgents(wanted) => {
                let runtime = wanted.labels()[names::RUNTIME].clone();
                let mut object = wanted.as_ref().clone();
                let old = self.agents.get(&runtime);
                let same = old.is_some_and(|old| old.spec == object.spec);
                let generation = old.and_then(|old| old.metadata.generation).unwrap_or(0) + i64::from(!same);
                object.metadata.uid = Some(format!("agents-of-{runtime}"));
                object.metadata.generation = Some(generation);
                object.status = Some(DaemonSetStatus {
                    observed_generation: Some(generation),
                    ..DaemonSetStatus::default()
                });
                self.agents.insert(runtime, object);
            }
            Write::DeleteAgents(seen) => self.agents.retain(|_, object| object.uid().as_ref() != Some(&seen.uid)),
            Write::CreateRuntimeClass(class) => {
                if self.classes.contains_key(&class.name_any()) {
                    return Err(Outdated);
                }
                let mut class = class.as_ref().clone();
                let meta = self.meta(&class.name_any());
                class.metadata.uid = meta.uid;
                class.metadata.resource_version = meta.resource_version;
                self.classes.insert(class.name_any(), class);
            }
            Write::ApplyRuntimeClass(class) => {
                self.classes.insert(class.name_any(), class.as_ref().clone());
            }
            Write::DeleteRuntimeClass(seen) => {
                self.classes.remove(&seen.name);
            }
            Write::CreateWasmNode(wasm_node) => {
                if self.wasm_nodes.contains_key(&wasm_node.name_any()) {
                    return Err(Outdated);
                }
                let mut wasm_node = wasm_node.as_ref().clone();
                let meta = self.meta(&wasm_node.name_any());
                wasm_node.metadata.uid = meta.uid;
                wasm_node.metadata.resource_version = meta.resource_version;
                wasm_node.metadata.creation_timestamp = Some(Time(self.now));
                self.wasm_nodes.insert(wasm_node.name_any(), wasm_node);
            }
            Write::ChangeWish { wasm_node, wish } => {
                change(&mut self.wasm_nodes, &mut self.version, wasm_node, |object| {
                    object.spec.wish = wish.as_ref().clone();
                })?;
            }
            Write::GrantPermit { wasm_node, permit } => {
                change(&mut self.wasm_nodes, &mut self.version, wasm_node, |object| {
                    object.spec.permit = Some(permit.clone());
                })?;
            }
            Write::WithdrawPermit { wasm_node } => {
                change(&mut self.wasm_nodes, &mut self.version, wasm_node, |object| {
                    object.spec.permit = None
                })?;
            }
            Write::DeleteWasmNode(seen) => {
                self.wasm_nodes.remove(&seen.name);
            }
            Write::RequestAgent { node, labels }
            | Write::ReleaseAgent { node, labels }
            | Write::SetReady { node, labels } => {
                self.label(node, labels)?;
            }
            Write::TakeReady { node, labels, .. } => {
                self.label(node, labels)?;
                self.taken.push(self.now);
            }
            Write::RemoveStartupTaint { node, taints } => {
                change(&mut self.nodes, &mut self.version, node, |object| {
                    object.spec.get_or_insert_default().taints = Some(taints.clone());
                })?;
            }
            Write::EvictPod(pod) => self.pods.retain(|other| other != pod),
        }
        let permits = self
            .wasm_nodes
            .values()
            .filter(|wasm_node| wasm_node.spec.permit.is_some())
            .count();
        self.most_permits = self.most_permits.max(permits);
        Ok(())
    }

    fn label(&mut self, node: &Seen, labels: &LabelChange) -> Result<(), Outdated> {
        change(&mut self.nodes, &mut self.version, node, |object| {
            for (key, value) in labels {
                match value {
                    Some(value) => object.labels_mut().insert(key.clone(), value.clone()),
                    None => object.labels_mut().remove(key),
                };
            }
        })
    }

    /// Lets each agent take one step; answers whether one did.
    fn agents_act(&mut self) -> bool {
        let mut acted = false;
        for name in self.wasm_nodes.keys().cloned().collect::<Vec<_>>() {
            let wasm_node = &self.wasm_nodes[&name];
            let node = wasm_node.spec.node_name.clone();
            let wanted = self
                .nodes
                .get(&node)
                .is_some_and(|node| node.labels().contains_key(&names::agent(&wasm_node.spec.runtime)));
            if !wanted {
                continue;
            }
            let status = self.report(wasm_node, &node);
            if wasm_node.status.as_ref() != Some(&status) {
                self.set_report(&name, |report| *report = status);
                acted = true;
            }
        }
        acted
    }

    /// What an agent reports next.
    fn report(&self, wasm_node: &WasmNode, node: &str) -> WasmNodeStatus {
        let wish = &wasm_node.spec.wish;
        let hash = wish.hash();
        let mut status = wasm_node.status.clone().unwrap_or_default();
        let done = status.observed_wish.as_ref() == Some(&hash)
            && status.plan.is_none()
            && matches!(status.phase, Some(Phase::Ready | Phase::Removed));
        if done || status.phase == Some(Phase::Refused) {
            return status;
        }
        status.observed_wish = Some(hash.clone());
        status.reported_at.get_or_insert(Time(self.now));
        let steps = match wish.state {
            WishedState::Installed => vec![Step::StageShim, Step::WriteConfig, Step::RestartContainerd, Step::Prove],
            WishedState::Removed => vec![Step::RemoveConfig, Step::RestartContainerd, Step::RemoveShim],
        };
        let plan = AgentPlan {
            hash: format!("plan-{hash}"),
            steps,
        };
        let permit = wasm_node.spec.permit.as_ref().filter(|permit| permit.plan == plan.hash);
        match permit {
            None => {
                let failed = status.failure.is_some() && status.phase == Some(Phase::Failed);
                status.phase = Some(if failed { Phase::Failed } else { Phase::Waiting });
                status.plan = Some(plan);
            }
            Some(permit)
                if status
                    .failure
                    .as_ref()
                    .is_some_and(|failure| failure.attempt == permit.attempt) => {}
            Some(_) if status.phase != Some(Phase::Working) => {
                status.phase = Some(Phase::Working);
                status.step = Some(Step::StageShim);
                status.plan = Some(plan);
            }
            Some(permit) if self.broken.iter().any(|broken| broken == node) => {
                status.phase = Some(Phase::Failed);
                status.failure = Some(Failure {
                    attempt: permit.attempt.clone(),
                    plan: permit.plan.clone(),
                    step: Step::RestartContainerd,
                    message: "containerd does not come back".to_owned(),
                    rolled_back: true,
                    at: Time(self.now),
                });
            }
            Some(_) => {
                status.plan = None;
                status.step = None;
                (status.failure, status.disproof) = (None, None);
                status.reported_at = Some(Time(self.now));
                status.sandboxes = Some(0);
                let removed = wish.state == WishedState::Removed;
                status.phase = Some(if removed { Phase::Removed } else { Phase::Ready });
                status.proof = (!removed).then(|| self.proof(&hash));
            }
        }
        status
    }

    fn proof(&self, wish: &str) -> Proof {
        Proof {
            wish: wish.to_owned(),
            boot_id: "boot".to_owned(),
            containerd_started: Time(self.now),
            config_hash: "config".to_owned(),
            shim_digest: "digest".to_owned(),
            shim_version: "0.1.0".to_owned(),
            proven_at: Time(self.now),
        }
    }

    /// Changes an agent's report by hand.
    fn set_report(&mut self, wasm_node: &str, edit: impl FnOnce(&mut WasmNodeStatus)) {
        self.version += 1;
        let wasm_node = self.wasm_nodes.get_mut(wasm_node).unwrap();
        wasm_node.metadata.resource_version = Some(self.version.to_string());
        edit(wasm_node.status.get_or_insert_default());
    }

    /// Lets every agent prove its node again, now.
    fn everyone_reports(&mut self) {
        let now = Time(self.now);
        for name in self.wasm_nodes.keys().cloned().collect::<Vec<_>>() {
            let now = now.clone();
            self.set_report(&name, |report| report.reported_at = Some(now));
        }
    }

    /// Changes a runtime's spec, as `kubectl edit` does.
    fn edit(&mut self, runtime: &str, edit: impl FnOnce(&mut WasmRuntimeSpec)) {
        self.version += 1;
        let runtime = self.runtimes.get_mut(runtime).unwrap();
        edit(&mut runtime.spec);
        let generation = runtime.metadata.generation.unwrap() + 1;
        runtime.metadata.generation = Some(generation);
        runtime.metadata.resource_version = Some(self.version.to_string());
    }

    fn delete(&mut self, runtime: &str) {
        let now = Time(self.now);
        self.edit(runtime, |_| {});
        self.runtimes.get_mut(runtime).unwrap().metadata.deletion_timestamp = Some(now);
    }

    fn add_pod(&mut self, name: &str, node: &str) {
        self.pods.push(WasmPod {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            uid: name.to_owned(),
            node: node.to_owned(),
            class: "wasi".to_owned(),
        });
    }

    fn taint(&mut self, node: &str, key: &str) {
        let taint = Taint {
            key: key.to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
        let spec = self.nodes.get_mut(node).unwrap().spec.get_or_insert_default();
        spec.taints.get_or_insert_default().push(taint);
    }

    /// Nodes that pods of the runtime can be scheduled to.
    fn ready(&self, runtime: &str) -> Vec<&str> {
        self.nodes
            .iter()
            .filter(|(_, node)| {
                node.labels()
                    .get(&names::ready(runtime))
                    .is_some_and(|value| value == names::READY)
            })
            .map(|(name, _)| name.as_str())
            .collect()
    }

    /// Nodes whose agent holds a permit.
    fn permits(&self) -> Vec<&str> {
        self.wasm_nodes
            .values()
            .filter(|wasm_node| wasm_node.spec.permit.is_some())
            .map(|wasm_node| wasm_node.spec.node_name.as_str())
            .collect()
    }

    /// The reason and the message of a condition.
    fn condition(&self, runtime: &str, type_: &str) -> (String, String) {
        let status = self.runtimes[runtime].status.as_ref().unwrap();
        let condition = status
            .conditions
            .iter()
            .find(|condition| condition.type_ == type_)
            .unwrap();
        (condition.reason.clone(), condition.message.clone())
    }
}

fn change<K: Resource<DynamicType = ()>>(
    objects: &mut BTreeMap<String, K>,
    version: &mut u64,
    seen: &Seen,
    edit: impl FnOnce(&mut K),
) -> Result<(), Outdated> {
    let object = objects.get_mut(&seen.name).ok_or(Outdated)?;
    if object.meta().uid.as_ref() != Some(&seen.uid) || object.meta().resource_version.as_ref() != Some(&seen.version) {
        return Err(Outdated);
    }
    *version += 1;
    object.meta_mut().resource_version = Some(version.to_string());
    edit(object);
    Ok(())
}
