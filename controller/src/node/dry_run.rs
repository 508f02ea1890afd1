//! `kubewasi-node agent --dry-run`: the plan that would be reported.

use kube::{Api, Client};

use crate::api::WasmNode;

use super::agent::{AgentError, Identity, selection};
use super::changes::Changes;
use super::host::Host;
use super::layout::Layout;
use super::observe::permissible;
use super::plan::Planned;

/// Plans for the wish of the API server, and returns the plan with its change of configuration; nothing is changed.
pub async fn dry_run(identity: &Identity, host: &Host, layout: &Layout, client: Client) -> Result<Planned, AgentError> {
    let selection = selection(identity);
    let list = kube::api::ListParams {
        label_selector: selection.label_selector,
        field_selector: selection.field_selector,
        ..kube::api::ListParams::default()
    };
    let found = Api::<WasmNode>::all(client).list(&list).await?;
    let node = found.items.into_iter().next().ok_or_else(|| AgentError::NoWish {
        runtime: identity.runtime.clone(),
        node: identity.node.clone(),
    })?;
    let containerd = host.containerd(Some(&identity.pod_uid)).await?;
    let planned = permissible(host, &containerd, layout, &identity.staging, &node.spec.wish).await?;
    Ok(planned.numbered(Changes::read(layout)?.begun))
}
