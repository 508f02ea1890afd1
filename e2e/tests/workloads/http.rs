//! An HTTP service in wasm, behind a Service, as a Deployment.

use anyhow::{Context, Result, ensure};
use kubewasi_e2e::forward::Forward;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::{wait, workload};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The preStop hook is what any server in Kubernetes needs: a Service leads to a pod for a moment after its end began.
const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  strategy:
    rollingUpdate: {maxUnavailable: 0}
  template:
    metadata:
      labels: {app: web}
    spec:
      runtimeClassName: wasi
      terminationGracePeriodSeconds: 15
      containers:
        - name: service
          image: $IMAGES/service:e2e
          imagePullPolicy: IfNotPresent
          env: [{name: VERSION, value: one}]
          ports: [{containerPort: 8080}]
          readinessProbe:
            httpGet: {path: /, port: 8080}
            periodSeconds: 1
          lifecycle:
            preStop: {sleep: {seconds: 3}}
---
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
"#;

/// A guest that asks by the Service's name, and writes which version answered, or why none did.
const CLIENT: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: client
spec:
  runtimeClassName: wasi
  terminationGracePeriodSeconds: 0
  containers:
    - name: client
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: [ask, "http://web/env", "VERSION="]
"#;

#[tokio::test]
async fn a_rolling_update_of_a_service_fails_no_request() -> Result<()> {
    Namespace::with("web", async |namespace| {
        roll_out(namespace).await?;
        namespace.create_from(CLIENT).await?;
        workload::says(namespace, "client", "client", "VERSION=one").await?;
        namespace
            .kubectl(&["set", "env", "deployment/web", "VERSION=two"])
            .await?;
        namespace
            .kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"])
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
        let failed: Vec<_> = said.lines().filter(|line| line.starts_with("failed")).collect();
        assert!(failed.is_empty(), "of {} requests: {failed:?}", said.lines().count());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_port_is_forwarded_to_a_guest() -> Result<()> {
    Namespace::with("forward", async |namespace| {
        roll_out(namespace).await?;
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

/// A service that is told to end at once, and one that asks it by its address: no Service leads elsewhere.
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

const CALLER: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: caller
spec:
  runtimeClassName: wasi
  terminationGracePeriodSeconds: 0
  containers:
    - name: client
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: [ask, "http://$ADDRESS:8080/", hello]
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
        namespace.create_from(&CALLER.replace("$ADDRESS", &address)).await?;
        workload::says(namespace, "caller", "client", "hello").await?;

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
            async || workload::logs(namespace, "caller", "client").await,
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

/// The service, once it answers.
async fn roll_out(namespace: &Namespace) -> Result<()> {
    namespace.create_from(WEB).await?;
    namespace
        .kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"])
        .await?;
    Ok(())
}
