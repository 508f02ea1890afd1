//! What nobody changes costs nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use kubewasi_e2e::cluster::Cluster;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::{release, runtime};
use serde_json::json;

const TIME: Duration = Duration::from_secs(600);

/// How often a node's report may be renewed in that time: with each proof, every five minutes give or take half a minute.
const RENEWALS: u64 = 3;

#[tokio::test]
#[ignore = "ten minutes long: part of make e2e-full"]
async fn a_settled_release_writes_nothing_for_ten_minutes_but_its_nodes_proofs() -> Result<()> {
    Namespace::with("steady", async |namespace| {
        let cluster = &namespace.cluster;
        release::ready(cluster, json!({})).await?;
        // What the last change brought about comes to rest.
        tokio::time::sleep(Duration::from_secs(20)).await;
        let (before, counted) = (
            release::controller_metrics(cluster, "writes_total").await?,
            writes(cluster).await?,
        );
        tokio::time::sleep(TIME).await;
        let (after, recounted) = (
            release::controller_metrics(cluster, "writes_total").await?,
            writes(cluster).await?,
        );
        eprintln!(
            "the controller's writes in {} s: {before:?}, then {after:?}",
            TIME.as_secs()
        );
        eprintln!("what the API server counted: {counted:?}, then {recounted:?}");
        assert_eq!(before, after);
        let nodes = runtime::nodes(cluster, release::RUNTIME).await?.len() as u64;
        for (resource, writes) in &recounted {
            let new = writes - counted.get(resource).unwrap_or(&0);
            let expected = if resource == "wasmnodes/status" {
                1..=RENEWALS * nodes
            } else {
                0..=0
            };
            ensure!(
                expected.contains(&new),
                "{resource}: {new} writes, {expected:?} expected"
            );
        }
        Ok(())
    })
    .await
}

/// How often something of ours was written, by resource, as the API server counts it.
async fn writes(cluster: &Cluster) -> Result<BTreeMap<String, u64>> {
    let metrics = cluster.output_of_kubectl(&["get", "--raw", "/metrics"]).await?;
    let mut counts = BTreeMap::new();
    for line in metrics
        .lines()
        .filter(|line| line.starts_with("apiserver_request_total{"))
    {
        let label = |name: &str| {
            let value = line.split_once(&format!("{name}=\""))?.1.split_once('"')?.0;
            Some(value.to_owned())
        };
        let is_write = label("verb").is_some_and(|verb| !["GET", "LIST", "WATCH"].contains(&verb.as_str()));
        if label("group").as_deref() != Some("kubewasi.dev") || !is_write {
            continue;
        }
        let resource = label("resource").unwrap_or_default();
        let resource = match label("subresource").filter(|subresource| !subresource.is_empty()) {
            Some(subresource) => format!("{resource}/{subresource}"),
            None => resource,
        };
        let count = line.rsplit(' ').next().and_then(|count| count.parse::<f64>().ok());
        *counts.entry(resource).or_default() += count.unwrap_or_default() as u64;
    }
    Ok(counts)
}
