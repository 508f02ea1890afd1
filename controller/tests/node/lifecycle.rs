//! An installation and its removal, planned and carried out as the agent does.

use std::fs;
use std::path::Path;

use kubewasi_controller::api::wasm_node::Step;
use kubewasi_controller::node::host::HostError;
use kubewasi_controller::node::journal::Written;
use kubewasi_controller::node::observe::ObserveError;
use kubewasi_controller::node::transaction::Progress;
use serde_json::{Value, json};

use crate::containerd::{Node, permitted};
use crate::steps::{step, try_plan};

/// How a plan ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    Done,
    /// Nothing was touched; the reason, and what the administrator reads.
    Refused(&'static str, String),
    /// The plan was begun.
    Failed(String),
}

impl Ended {
    /// What the administrator reads of a host that is left alone for `reason`.
    #[track_caller]
    pub fn refused(&self, reason: &str) -> &str {
        match self {
            Ended::Refused(found, message) if *found == reason => message,
            other => panic!("not refused as {reason}: {other:?}"),
        }
    }
}

/// Installs the handler, and has a module run by it.
pub async fn install(node: &Node) -> Ended {
    carry_out(node, json!({"state": "Installed"}), true).await
}

/// Installs the handler, and runs no module.
pub async fn install_unproven(node: &Node) -> Ended {
    carry_out(node, json!({"state": "Installed"}), false).await
}

/// Installs what a wish with these `changes` asks for, and runs no module.
pub async fn install_as(node: &Node, changes: Value) -> Ended {
    carry_out(node, changes, false).await
}

/// Takes the handler away.
pub async fn uninstall(node: &Node) -> Ended {
    carry_out(node, json!({"state": "Removed"}), false).await
}

/// Expects files to have these bytes.
#[track_caller]
pub fn expect_bytes(before: &[(impl AsRef<Path>, Vec<u8>)], context: &str) {
    for (path, bytes) in before {
        let now = fs::read(path.as_ref()).unwrap_or_default();
        assert_eq!(
            String::from_utf8_lossy(&now),
            String::from_utf8_lossy(bytes),
            "{context}: {}",
            path.as_ref().display()
        );
        assert_eq!(&now, bytes, "{context}: {}", path.as_ref().display());
    }
}

async fn carry_out(node: &Node, changes: Value, proves: bool) -> Ended {
    let removes = changes["state"] == "Removed";
    let containerd = match node.try_running().await {
        Ok(containerd) => containerd,
        Err(HostError::Refused(refusal)) => return Ended::Refused(refusal.reason, refusal.message),
        Err(error) => panic!("{error}"),
    };
    let planned = match try_plan(node, &containerd, changes).await {
        Ok(planned) => planned,
        Err(ObserveError::Refused(refusal)) => return Ended::Refused(refusal.reason, refusal.message),
        Err(error) => panic!("{error}"),
    };
    let restarts = planned.has(Step::RestartContainerd);
    if let Some(change) = &planned.change {
        Written::add(&node.layout, change).unwrap();
    }
    if restarts || planned.change.is_some() {
        let mut order = match planned.change.clone() {
            Some(change) => node.order(change, planned.installs).await,
            None => panic!("a restart alone"),
        };
        order.restart = restarts;
        match node.transact(&order).await {
            Progress::Committed => node.forget(),
            ended => {
                node.forget();
                return Ended::Failed(format!("{ended:?}"));
            }
        }
    }
    if proves && planned.has(Step::Prove) {
        let containerd = node.running().await;
        let journal = permitted(node, planned);
        if let Err(error) = step(node, &containerd, Step::Prove, &journal).await {
            return Ended::Failed(error.to_string());
        }
    } else if removes {
        for record in [node.layout.kept(), node.layout.written()] {
            let _ = fs::remove_file(record);
        }
    }
    Ended::Done
}
