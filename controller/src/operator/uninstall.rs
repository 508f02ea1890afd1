//! `kubewasi-controller uninstall`: deletes the WasmRuntimes and waits until their nodes are clean.
//!
//! The chart runs it before it deletes the controller, which does the work. It may be run again: what is deleted already
//! is only waited for.

use std::time::Duration;

use clap::Args;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client, ResourceExt};
use tokio::time::{Instant, sleep};

use crate::api::WasmRuntime;

/// How often is looked whether they are gone.
const PERIOD: Duration = Duration::from_secs(2);

/// The arguments of `uninstall`.
#[derive(Args, Debug)]
pub struct Uninstall {
    /// How long to wait, in seconds.
    #[arg(long, default_value_t = 300)]
    timeout: u64,
}

/// Why the uninstallation is not done.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    #[error("the API server: {0}")]
    Api(#[from] kube::Error),
    #[error("these are still there, run it again when they may go:\n{0}")]
    Blocked(String),
}

/// Deletes all WasmRuntimes and waits; fails with what holds them.
pub async fn uninstall(arguments: Uninstall) -> Result<(), UninstallError> {
    let client = Client::try_default().await?;
    uninstall_from(client, Duration::from_secs(arguments.timeout)).await
}

/// The same for a cluster that is already known.
pub async fn uninstall_from(client: Client, timeout: Duration) -> Result<(), UninstallError> {
    let api: Api<WasmRuntime> = Api::all(client);
    let deadline = Instant::now() + timeout;
    loop {
        let left = list(&api).await?;
        if left.is_empty() {
            return Ok(());
        }
        for runtime in left
            .iter()
            .filter(|runtime| runtime.metadata.deletion_timestamp.is_none())
        {
            tracing::info!(runtime = runtime.name_any(), "deleting");
            match api.delete(&runtime.name_any(), &DeleteParams::default()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error.into()),
            }
        }
        if Instant::now() >= deadline {
            let lines: Vec<String> = left.iter().map(blocked).collect();
            return Err(UninstallError::Blocked(lines.join("\n")));
        }
        sleep(PERIOD).await;
    }
}

/// All runtimes; none when not even their definition is there.
async fn list(api: &Api<WasmRuntime>) -> Result<Vec<WasmRuntime>, kube::Error> {
    match api.list(&ListParams::default()).await {
        Ok(list) => Ok(list.items),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn blocked(runtime: &WasmRuntime) -> String {
    let conditions = runtime.status.iter().flat_map(|status| &status.conditions);
    let why: Vec<&str> = conditions
        .filter(|condition| {
            condition.type_ == "Progressing" || (condition.type_ == "Degraded" && condition.status == "True")
        })
        .map(|condition| condition.message.as_str())
        .collect();
    let why = if why.is_empty() {
        "the controller has not looked at it; is it running?".to_owned()
    } else {
        why.join("; ")
    };
    format!("  WasmRuntime {}: {why}", runtime.name_any())
}
