//! Agents that die in the middle: whoever comes next goes on, and nothing is lost.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kubewasi_e2e::cluster::Cluster;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::node::{Node, difference};
use kubewasi_e2e::{release, runtime, wait, workload};
use serde_json::json;

use crate::idle::start_idle;

/// The steps of an installation, as a plan has them.
const STEPS: [&str; 6] = [
    "StageShim",
    "WriteOptions",
    "SwitchShim",
    "WriteConfig",
    "RestartContainerd",
    "Prove",
];

/// Those of a removal.
const REMOVAL: [&str; 3] = ["RemoveConfig", "RestartContainerd", "RemoveShim"];

#[tokio::test]
#[ignore = "minutes long: part of make e2e-full"]
async fn an_agent_that_is_killed_after_any_step_is_followed_by_one_that_goes_on() -> Result<()> {
    Namespace::with("killed", async |namespace| {
        let cluster = &namespace.cluster;
        for step in STEPS {
            release::absent(cluster).await?;
            release::apply(cluster, json!({"rollout": {"paused": true, "maxUnavailable": "100%"}})).await?;
            fault(namespace, &format!("KUBEWASI_FAULT_AFTER={step}")).await?;
            release::apply(cluster, json!({"rollout": {"maxUnavailable": "100%"}})).await?;
            wait::until(
                &format!("an agent to die after {step}"),
                async || agents(namespace).await,
                |agents| agents.iter().any(|agent| workload::restarts(agent, "agent") > 0),
            )
            .await?;
            fault(namespace, "KUBEWASI_FAULT_AFTER-").await?;
            runtime::settled(cluster, release::RUNTIME).await?;
            let pod = format!("after-{}", step.to_lowercase());
            start_idle(namespace, &pod, release::RUNTIME).await?;
            namespace.kubectl(&["delete", "pod", &pod]).await?;
            eprintln!("killed after {step}: converged");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "minutes long: part of make e2e-full"]
async fn an_agent_that_is_killed_after_any_step_of_a_removal_leaves_a_clean_node_all_the_same() -> Result<()> {
    Namespace::with("killed-removing", async |namespace| {
        let cluster = &namespace.cluster;
        let nodes = Node::all(namespace).await?;
        release::absent(cluster).await?;
        let mut before = Vec::new();
        for node in &nodes {
            before.push(node.files().await?);
        }
        for step in REMOVAL {
            release::ready(cluster, json!({"rollout": {"maxUnavailable": "100%"}})).await?;
            fault(namespace, &format!("KUBEWASI_FAULT_AFTER={step}")).await?;
            let delete = ["delete", "wasmruntime", release::RUNTIME, "--wait=false"];
            cluster.output_of_kubectl(&delete).await?;
            wait::until(
                &format!("an agent to die after {step}"),
                async || agents(namespace).await,
                |agents| agents.iter().any(|agent| workload::restarts(agent, "agent") > 0),
            )
            .await?;
            // After the last step there may be none left to mend; were they not mended, the runtime would stay.
            let mended = set(cluster, &daemon_set(), "KUBEWASI_FAULT_AFTER-").await;
            let deleted = runtime::delete(cluster, release::RUNTIME).await;
            deleted.with_context(|| format!("{step}; mending the agents: {mended:?}"))?;
            for (node, before) in nodes.iter().zip(&before) {
                let left = difference(before, &node.files().await?);
                ensure!(left.is_empty(), "{}, killed after {step}: {left:#?}", node.name);
            }
            eprintln!("killed after {step} of the removal: clean");
            // The next one makes its WasmRuntime anew.
            release::absent(cluster).await?;
        }
        Ok(())
    })
    .await
}

/// Sets or unsets a variable of the agents, beside what the controller applies, and waits until all have it.
async fn fault(namespace: &Namespace, variable: &str) -> Result<()> {
    let (cluster, daemon_set) = (&namespace.cluster, daemon_set());
    let there = ["--namespace", release::NAME, "wait", "--for=create", &daemon_set];
    cluster.output_of_kubectl(&there).await?;
    set(cluster, &daemon_set, variable).await?;
    let rolled = [
        "--namespace",
        release::NAME,
        "rollout",
        "status",
        &daemon_set,
        "--timeout=120s",
    ];
    cluster.output_of_kubectl(&rolled).await?;
    Ok(())
}

fn daemon_set() -> String {
    format!("daemonset/kubewasi-agent-{}", release::RUNTIME)
}

async fn set(cluster: &Cluster, daemon_set: &str, variable: &str) -> Result<()> {
    let set = ["--namespace", release::NAME, "set", "env", daemon_set, variable];
    cluster.output_of_kubectl(&set).await.map(drop)
}

async fn agents(namespace: &Namespace) -> Result<Vec<Pod>> {
    let api: Api<Pod> = Api::namespaced(namespace.cluster.client.clone(), release::NAME);
    let selector = format!("kubewasi.dev/runtime={}", release::RUNTIME);
    Ok(api.list(&ListParams::default().labels(&selector)).await?.items)
}
