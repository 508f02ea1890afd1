//! A node that goes in the middle of a rollout, and comes back as a new one.

use std::time::Duration;

use anyhow::{Result, ensure};
use kubewasi_e2e::namespace::{Namespace, images};
use kubewasi_e2e::node::Node;
use kubewasi_e2e::{release, runtime, wait};
use serde_json::{Value, json};

use crate::idle::start_idle_on;

/// What new nodes come with, so that no pod is there before the runtime is.
const TAINT: &str = "kubewasi.dev/starting";

/// Keeps the agent in the middle until the node's object is gone, and has the kubelet make a new one a minute later.
const LEAVE: &str = r#"
exec 9>/opt/kubewasi/lock
flock 9
server=$(sed -n 's#^ *server: ##p' /etc/kubernetes/kubelet.conf)
code() {
    curl --silent --max-time 5 --output /dev/null --write-out '%{http_code}' --cacert /etc/kubernetes/pki/ca.crt \
        --cert /var/lib/kubelet/pki/kubelet-client-current.pem "$server/api/v1/nodes/$NODE"
}
until [ "$(code)" = 404 ]; do sleep 0.2; done
exec 9>&-
sleep 60
systemctl restart kubelet"#;

/// The minute, and what a new node needs.
const PATIENCE: Duration = Duration::from_secs(240);

#[tokio::test]
#[ignore = "minutes long: part of make e2e-full"]
async fn a_node_that_goes_in_the_middle_holds_nobody_up_and_is_made_ready_when_it_comes_back() -> Result<()> {
    Namespace::with("membership", async |namespace| {
        let cluster = &namespace.cluster;
        release::ready(cluster, json!({"startupTaint": TAINT})).await?;
        let node = Node::first(namespace).await?;
        ensure!(
            !node.is_control_plane,
            "without a second node there is nobody to hold up"
        );
        node.start("kubewasi-e2e-leave", &LEAVE.replace("$NODE", &node.name))
            .await?;
        let next = format!("{}/shim-next:e2e", images());
        release::apply(cluster, json!({"startupTaint": TAINT, "shim": {"image": next}})).await?;
        wait::until(
            &format!("the agent of {} to be in the middle", node.name),
            async || runtime::nodes(cluster, release::RUNTIME).await,
            |nodes| nodes[&node.name]["status"]["phase"] == "Working",
        )
        .await?;

        cluster.output_of_kubectl(&["delete", "node", &node.name]).await?;
        wait::until(
            "the other nodes to have the new shim",
            async || {
                let runtime = runtime::get(cluster, "wasmruntime", release::RUNTIME).await?;
                Ok((runtime, runtime::nodes(cluster, release::RUNTIME).await?))
            },
            |(runtime, nodes)| runtime::is_settled(runtime) && !nodes.contains_key(&node.name),
        )
        .await?;

        let get = ["get", "node", &node.name, "--ignore-not-found", "--output", "name"];
        let back = async || cluster.output_of_kubectl(&get).await;
        wait::until("the node to be back", back, |name| !name.is_empty()).await?;
        let taint = format!("{TAINT}=:NoSchedule");
        cluster
            .output_of_kubectl(&["taint", "--overwrite", "node", &node.name, &taint])
            .await?;
        wait::until_within(
            PATIENCE,
            "the new node to be proven and to lose its taint",
            async || {
                let ready = runtime::ready_nodes(cluster, release::RUNTIME).await?;
                let node = runtime::get(cluster, "node", &node.name).await?;
                Ok((ready, node["spec"]["taints"].clone()))
            },
            |(ready, taints)| ready.contains(&node.name) && !has_taint(taints),
        )
        .await?;
        runtime::settled(cluster, release::RUNTIME).await?;
        start_idle_on(namespace, &node.name, "guest", release::RUNTIME).await?;
        node.ended("kubewasi-e2e-leave").await.map(drop)
    })
    .await
}

fn has_taint(taints: &Value) -> bool {
    taints
        .as_array()
        .is_some_and(|taints| taints.iter().any(|taint| taint["key"] == TAINT))
}
