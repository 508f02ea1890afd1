//! An HTTP service in wasm, behind a Service, as a Deployment.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kubewasi_e2e::deployment::{self, WEB};
use kubewasi_e2e::forward::Forward;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::{wait, workload};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_rolling_update_of_a_service_fails_no_request() -> Result<()> {
    Namespace::with("web", async |namespace| {
        deployment::start_web(namespace, 2).await?;
        deployment::start_client(namespace, "http://web/env", "VERSION=").await?;
        // Before that the Service may not lead anywhere yet: a node's proxy is told of its pods a second or two late.
        let said = workload::says(namespace, "client", "client", "VERSION=one").await?;
        let early = said.lines().take_while(|line| *line != "VERSION=one").count();
        namespace
            .kubectl(&["set", "env", "deployment/web", "VERSION=two"])
            .await?;
        deployment::rolled_out(namespace, WEB).await?;
        // A rollout is complete before the last old pod has ended, which is when requests would fail.
        let selected = ListParams::default().labels(&format!("app={WEB}"));
        wait::until(
            "the old pods to be gone",
            async || Ok(namespace.api::<Pod>().list(&selected).await?.items.len()),
            |pods| *pods == 2,
        )
        .await?;
        let said = wait::until(
            "the new version to answer alone",
            async || workload::logs(namespace, "client", "client").await,
            |said| {
                said.lines()
                    .rev()
                    .take(50)
                    .filter(|line| *line == "VERSION=two")
                    .count()
                    == 50
            },
        )
        .await?;
        let answers: Vec<_> = said.lines().skip(early).collect();
        let failed: Vec<_> = answers.iter().filter(|line| line.starts_with("failed")).collect();
        assert!(failed.is_empty(), "of {} requests: {failed:?}", answers.len());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_port_is_forwarded_to_a_guest() -> Result<()> {
    Namespace::with("forward", async |namespace| {
        deployment::start_web(namespace, 1).await?;
        let web = Forward::to(namespace, "deployment/web", 8080).await?;
        let mut stream = web.connect().await?;
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("hello\n"),
            "{answer}"
        );
        Ok(())
    })
    .await
}

/// A service that is told to end at once.
const ENDING: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: ending
spec:
  runtimeClassName: wasi
  terminationGracePeriodSeconds: 60
  containers:
    - {name: service, image: "$IMAGES/service:e2e", imagePullPolicy: IfNotPresent}
"#;

#[tokio::test]
async fn a_deleted_service_ends_what_it_began_and_takes_nothing_new() -> Result<()> {
    Namespace::with("draining", async |namespace| {
        namespace.create_from(ENDING).await?;
        let pod = workload::ready(namespace, "ending").await?;
        let address = pod.status.and_then(|status| status.pod_ip).context("no address")?;
        let address = if address.contains(':') {
            format!("[{address}]")
        } else {
            address
        };
        // By its address: no Service leads elsewhere.
        deployment::start_client(namespace, &format!("http://{address}:8080/"), "hello").await?;
        workload::says(namespace, "client", "client", "hello").await?;

        let service = Forward::to(namespace, "ending", 8080).await?;
        let mut begun = service.connect().await?;
        begun
            .write_all(b"POST /echo HTTP/1.1\r\nHost: ending\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
            .await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"first\r\n") {
            ensure!(begun.read_buf(&mut answer).await? > 0, "it ended at {answer:?}");
        }
        namespace.kubectl(&["delete", "pod", "ending", "--wait=false"]).await?;
        wait::until(
            "new requests to be refused",
            async || workload::logs(namespace, "client", "client").await,
            |said| said.lines().last().is_some_and(|line| line.starts_with("failed")),
        )
        .await?;

        begun.write_all(b"4\r\nlast\r\n0\r\n\r\n").await?;
        begun.read_to_end(&mut answer).await?;
        let answer = String::from_utf8(answer)?;
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("4\r\nlast\r\n0\r\n\r\n"),
            "{answer}"
        );
        Ok(())
    })
    .await
}
