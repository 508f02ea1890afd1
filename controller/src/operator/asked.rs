//! What a plan looks at and nobody watches: pods while something drains, and why a DaemonSet makes none.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use super::view::{View, WasmPod};

/// How many pods one answer has at most: a list of all would be the controller's largest piece of memory.
const PAGE: u32 = 500;

/// Completes a view with what is asked for only now.
pub async fn complete(client: &Client, view: &mut View) -> Result<(), kube::Error> {
    if view.is_draining() {
        view.pods = pods(client, view).await?;
    }
    view.forbidden = match view.agents.clone() {
        Some(agents) if lacks_pods(&agents) => forbidden(client, view, &agents).await?,
        _ => None,
    };
    Ok(())
}

/// Pods on a node, not ended, of the RuntimeClasses that lead to the runtime's handler. There is no selector for that.
async fn pods(client: &Client, view: &View) -> Result<Vec<WasmPod>, kube::Error> {
    let classes: BTreeSet<&str> = view.class_names().collect();
    let api: Api<Pod> = Api::all(client.clone());
    let running = "status.phase!=Succeeded,status.phase!=Failed,spec.nodeName!=";
    let mut page = ListParams::default().fields(running).limit(PAGE);
    let mut found = Vec::new();
    loop {
        let list = api.list(&page).await?;
        found.extend(list.items.iter().filter_map(|pod| wasm_pod(pod, &classes)));
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(found),
        }
    }
}

fn wasm_pod(pod: &Pod, classes: &BTreeSet<&str>) -> Option<WasmPod> {
    let spec = pod.spec.as_ref()?;
    let class = spec.runtime_class_name.clone()?;
    classes.contains(class.as_str()).then_some(())?;
    Some(WasmPod {
        namespace: pod.namespace()?,
        name: pod.name_any(),
        uid: pod.uid()?,
        node: spec.node_name.clone()?,
        class,
    })
}

/// Whether fewer agents were made than should be.
fn lacks_pods(agents: &DaemonSet) -> bool {
    agents
        .status
        .as_ref()
        .is_some_and(|status| status.current_number_scheduled < status.desired_number_scheduled)
}

/// What the DaemonSet's controller was told when it tried to make pods.
async fn forbidden(client: &Client, view: &View, agents: &DaemonSet) -> Result<Option<String>, kube::Error> {
    let about = format!(
        "involvedObject.kind=DaemonSet,involvedObject.uid={},reason=FailedCreate",
        agents.uid().unwrap_or_default()
    );
    let events: Api<Event> = Api::namespaced(client.clone(), &view.settings.namespace);
    let list = events.list(&ListParams::default().fields(&about)).await?;
    Ok(list
        .items
        .into_iter()
        .max_by_key(|event| event.last_timestamp.as_ref().map(|at| at.0))
        .and_then(|event| event.message))
}
