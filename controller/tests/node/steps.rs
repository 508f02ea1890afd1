//! A plan as the agent makes it, and its steps as the agent takes them.

use std::path::PathBuf;

use kubewasi_controller::api::wasm_node::{Step, Wish};
use kubewasi_controller::node::host::{Containerd, Host};
use kubewasi_controller::node::journal::Journal;
use kubewasi_controller::node::observe::{ObserveError, observe, permissible};
use kubewasi_controller::node::plan::Planned;
use kubewasi_controller::node::work::{StepError, Work};
use serde_json::{Value, json};

use crate::containerd::Node;

/// What there is to do for a wish that is the usual one but for `changes`.
pub async fn plan(node: &Node, containerd: &Containerd, changes: Value) -> Planned {
    let wish = wish(changes);
    let planned = observe(&Host::itself(), containerd, &node.layout, &staging(node), &wish).await;
    planned.unwrap()
}

/// The same as the agent does it, who has reasons not to.
pub async fn try_plan(node: &Node, containerd: &Containerd, changes: Value) -> Result<Planned, ObserveError> {
    let wish = wish(changes);
    permissible(&Host::itself(), containerd, &node.layout, &staging(node), &wish).await
}

fn wish(changes: Value) -> Wish {
    let mut wish = json!({
        "state": "Installed",
        "handler": "wasi",
        "shimImage": "registry/shim:1",
        "containerdRestart": "Rolling",
    });
    let Value::Object(changes) = changes else {
        panic!("{changes}")
    };
    wish.as_object_mut().unwrap().extend(changes);
    serde_json::from_value(wish).unwrap()
}

/// Takes one step.
pub async fn step(node: &Node, containerd: &Containerd, step: Step, journal: &Journal) -> Result<(), StepError> {
    let work = Work {
        host: &Host::itself(),
        containerd,
        layout: &node.layout,
        staging: staging(node),
    };
    work.step(step, journal).await
}

fn staging(node: &Node) -> PathBuf {
    node.folder.join("staging")
}
