//! What nobody changes costs nothing.

use std::time::Duration;

use anyhow::Result;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::release;
use serde_json::json;

const TIME: Duration = Duration::from_secs(600);

#[tokio::test]
#[ignore = "ten minutes long: part of make e2e-full"]
async fn a_settled_release_writes_nothing_for_ten_minutes() -> Result<()> {
    Namespace::with("steady", async |namespace| {
        let cluster = &namespace.cluster;
        release::ready(cluster, json!({})).await?;
        // What the last change brought about comes to rest.
        tokio::time::sleep(Duration::from_secs(20)).await;
        let before = release::controller_metrics(cluster, "writes_total").await?;
        tokio::time::sleep(TIME).await;
        let after = release::controller_metrics(cluster, "writes_total").await?;
        eprintln!(
            "the controller's writes in {} s: {before:?}, then {after:?}",
            TIME.as_secs()
        );
        assert_eq!(before, after);
        Ok(())
    })
    .await
}
