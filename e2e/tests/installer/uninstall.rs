//! What an installation takes and what its removal leaves.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::Result;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::node::{Node, difference};
use kubewasi_e2e::wait::until;
use kubewasi_e2e::{release, runtime, workload};
use serde_json::json;

use crate::idle::start_idle;

#[tokio::test]
async fn an_installation_runs_wasm_pods_and_its_removal_leaves_the_crds_alone() -> Result<()> {
    Namespace::with("install", async |namespace| {
        let cluster = &namespace.cluster;
        release::absent(cluster).await?;
        let nodes = Node::all(namespace).await?;
        let (files, labels) = (files(&nodes).await?, runtime::labels_and_taints(cluster).await?);

        let start = Instant::now();
        release::apply(cluster, json!({})).await?;
        // Pods that name a class are refused before it is there.
        let class = format!("runtimeclass/{}", release::RUNTIME);
        cluster
            .output_of_kubectl(&["wait", "--for=create", &class, "--timeout=60s"])
            .await?;
        start_idle(namespace, "first", release::RUNTIME).await?;
        eprintln!(
            "helm install to the first wasm pod ready: {:.1} s",
            start.elapsed().as_secs_f64()
        );
        runtime::settled(cluster, release::RUNTIME).await?;
        eprintln!(
            "helm install to all {} nodes ready: {:.1} s",
            nodes.len(),
            start.elapsed().as_secs_f64()
        );
        let memory = release::controller_metrics(cluster, "resident_memory_bytes").await?;
        assert_eq!(memory.len(), 1, "{memory:?}");
        eprintln!("controller: {}", memory[0]);
        let tested = release::test(cluster).await?;
        assert!(tested.contains("Hello from WAT"), "{tested}");
        let ready = runtime::labels_and_taints(cluster).await?;
        for (node, labels) in &ready {
            assert!(
                labels.contains(r#""runtime.kubewasi.dev/wasi":"ready""#),
                "{node}: {labels}"
            );
        }

        namespace.kubectl(&["delete", "pod", "first"]).await?;
        let start = Instant::now();
        release::uninstall(cluster).await?;
        eprintln!("helm uninstall: {:.1} s", start.elapsed().as_secs_f64());
        are_as_before(&nodes, &files).await?;
        assert_eq!(runtime::labels_and_taints(cluster).await?, labels);
        only_the_definitions_are_left(namespace).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_removal_waits_for_wasm_pods_and_names_them() -> Result<()> {
    Namespace::with("blocked", async |namespace| {
        let cluster = &namespace.cluster;
        release::ready(cluster, json!({})).await?;
        start_idle(namespace, "busy", release::RUNTIME).await?;

        let error = format!("{:#}", release::uninstall(cluster).await.unwrap_err());
        assert!(error.contains("uninstall"), "{error}");
        let said = cluster
            .output_of_kubectl(&["--namespace", release::NAME, "logs", "job/kubewasi-uninstall"])
            .await?;
        assert!(said.contains(&format!("{}/busy", namespace.name)), "{said}");
        let busy = workload::ready(namespace, "busy").await?;
        assert_eq!(
            workload::restarts(&busy, "guest"),
            0,
            "the pod that blocks is left alone"
        );

        namespace.kubectl(&["delete", "pod", "busy"]).await?;
        release::uninstall(cluster).await?;
        only_the_definitions_are_left(namespace).await?;
        Ok(())
    })
    .await
}

/// The files of each of these nodes.
pub async fn files(nodes: &[Node<'_>]) -> Result<Vec<BTreeSet<String>>> {
    let mut all = Vec::new();
    for node in nodes {
        all.push(node.files().await?);
    }
    Ok(all)
}

/// Prints what has become of those files, which is to be nothing, and of nodes on which no wasm runs.
pub async fn are_as_before(nodes: &[Node<'_>], files: &[BTreeSet<String>]) -> Result<()> {
    for (node, before) in nodes.iter().zip(files) {
        node.serverless().await?;
        let differences = difference(before, &node.files().await?);
        eprintln!("node {}, files before and after: {differences:?}", node.name);
        assert!(differences.is_empty(), "{}: {differences:#?}", node.name);
    }
    Ok(())
}

/// helm waits for none of the pods that it deletes.
async fn only_the_definitions_are_left(namespace: &Namespace) -> Result<()> {
    let definitions = ["wasmnodes.kubewasi.dev", "wasmruntimes.kubewasi.dev"];
    until(
        "nothing but the CRDs",
        || objects(namespace),
        |left| *left == definitions,
    )
    .await
    .map(drop)
}

/// What is left in the cluster of everything that the release and its controller make, by name.
async fn objects(namespace: &Namespace) -> Result<Vec<String>> {
    let kinds = "crd,clusterrole,clusterrolebinding,validatingadmissionpolicy,validatingadmissionpolicybinding,\
                 runtimeclass,serviceaccount,role,rolebinding,deployment,daemonset,poddisruptionbudget,service,job,pod,lease,\
                 secret,wasmruntimes.kubewasi.dev,wasmnodes.kubewasi.dev";
    let arguments = [
        "get",
        kinds,
        "--all-namespaces",
        "--output",
        "jsonpath={.items[*].metadata.name}",
    ];
    let listed = namespace.cluster.output_of_kubectl(&arguments).await?;
    let nodes = Node::all(namespace).await?;
    // A node may be called after us, and what is of the node is called after it.
    let is_nodes = |name: &str| nodes.iter().any(|node| name.contains(&node.name));
    // The runtime and its class have its name, its WasmNodes begin with that.
    let is_ours = |name: &str| name.split('.').next() == Some(release::RUNTIME);
    let mut ours: Vec<String> = listed
        .split_whitespace()
        .filter(|name| is_ours(name) || name.contains("kubewasi") && !is_nodes(name))
        .map(str::to_owned)
        .collect();
    ours.sort_unstable();
    Ok(ours)
}
