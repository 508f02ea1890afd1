//! containerd that does not come back with our handler: the node is taken back, also while its agent is dead.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node as Object;
use kube::Api;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::node::{Node, difference};
use kubewasi_e2e::runtime::{self, SECOND};
use kubewasi_e2e::{release, wait};
use serde_json::json;

use crate::idle::{Idle, start_idle_on};

/// The unit that kills the agents.
const UNIT: &str = "kubewasi-e2e-kill";

/// Has containerd not start while its configuration has the second runtime's handler.
const BREAK: &str = r#"
mkdir -p /run/systemd/system/containerd.service.d
cd /run/systemd/system/containerd.service.d
echo '[Service]' >90-e2e.conf
echo 'ExecStartPre=/bin/sh -c "! grep -rqs wasi-second /etc/containerd"' >>90-e2e.conf
systemctl daemon-reload"#;

const MEND: &str = "rm /run/systemd/system/containerd.service.d/90-e2e.conf; systemctl daemon-reload";

/// From when the helper has begun until it has its verdict, no agent of the second runtime lives; the helper dies once.
const KILL: &str = r#"
folder=/opt/kubewasi/second
until [ -e $folder/progress.json ]; do sleep 0.05; done
systemctl kill --signal=KILL kubewasi-second.service && helper=killed
kills=0
until grep -q 'Committed\|Refused\|RolledBack' $folder/progress.json; do
    for agent in $(pgrep -f '^/kubewasi-node agent'); do
        if tr '\0' '\n' </proc/$agent/environ | grep -qx KUBEWASI_RUNTIME=second; then
            kill -KILL $agent && kills=$((kills + 1))
        fi
    done
    sleep 0.1
done
echo "$kills helper ${helper:-missed}, $(cat $folder/progress.json)""#;

#[tokio::test]
#[ignore = "minutes long: part of make e2e-full"]
async fn a_containerd_that_does_not_come_back_is_rolled_back_while_the_agent_is_dead() -> Result<()> {
    Namespace::with("rescue", async |namespace| {
        let cluster = &namespace.cluster;
        release::ready(cluster, json!({})).await?;
        let node = Node::first(namespace).await?;
        let idle = Idle::everywhere(namespace, release::RUNTIME).await?;
        let files = node.files_at_rest().await?;

        node.run(BREAK).await?;
        let rescued = rescued(namespace, &node, &idle, &files).await;
        node.run(MEND).await?;
        rescued?;

        // Somebody has looked, and the node is tried again.
        runtime::retry(cluster, SECOND).await?;
        runtime::settled(cluster, SECOND).await?;
        start_idle_on(namespace, &node.name, "of-second", SECOND).await?;
        namespace.kubectl(&["delete", "pod", "of-second"]).await?;
        runtime::delete(cluster, SECOND).await?;
        idle.live_on(namespace).await?;
        let left = difference(&files, &node.files().await?);
        ensure!(left.is_empty(), "{}: {left:#?}", node.name);
        Ok(())
    })
    .await
}

/// Installs a second runtime, and looks whether the node is as before although that failed.
async fn rescued(namespace: &Namespace, node: &Node<'_>, idle: &Idle, files: &BTreeSet<String>) -> Result<()> {
    let cluster = &namespace.cluster;
    node.start(UNIT, KILL).await?;
    runtime::apply_second(cluster, json!({})).await?;
    let message = runtime::needs_attention(cluster, SECOND, &node.name, "Failed").await?;
    eprintln!("{}: {message}", node.name);
    ensure!(
        message.starts_with("RestartContainerd, rolled back: containerd did not restart"),
        "{message}"
    );
    runtime::with_reason(cluster, SECOND, "Progressing", "RolloutHalted").await?;
    runtime::with_reason(cluster, SECOND, "Degraded", "NodesFailed").await?;

    let ended = node.ended(UNIT).await?;
    let (kills, progress) = ended.trim().split_once(' ').context("the killer says nothing")?;
    eprintln!("{}: agents killed: {kills}; {progress}", node.name);
    ensure!(kills != "0", "no agent was there to be killed");
    ensure!(
        progress.starts_with("helper killed") && progress.contains("RolledBack"),
        "{progress}"
    );

    let labelled = runtime::ready_nodes(cluster, SECOND).await?;
    ensure!(labelled.is_empty(), "labelled without a proof: {labelled:?}");
    wait::until(
        "the node to be ready",
        async || {
            let nodes = Api::<Object>::all(cluster.client.clone());
            Ok(nodes.get(&node.name).await?.status)
        },
        |status| {
            let mut conditions = status.iter().flat_map(|status| status.conditions.iter().flatten());
            conditions.any(|one| one.type_ == "Ready" && one.status == "True")
        },
    )
    .await?;
    idle.live_on(namespace).await?;
    let left = difference(files, &node.files().await?);
    let elsewhere: Vec<&String> = left
        .iter()
        .filter(|line| !line.contains("opt/kubewasi/second"))
        .collect();
    ensure!(elsewhere.is_empty(), "{}: {elsewhere:#?}", node.name);
    Ok(())
}
