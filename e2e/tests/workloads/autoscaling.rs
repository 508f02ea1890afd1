//! What wasm pods use, as the cluster measures it, and an autoscaler that acts on it.

use anyhow::{Context, Result};
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kubewasi_e2e::deployment::{self, WEB};
use kubewasi_e2e::metrics::{self, CUSTOM, RESOURCE};
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::node::Node;
use kubewasi_e2e::{wait, workload};

/// One guest that takes all the cpu time that it may, and one that holds 64 MiB.
const MEASURED: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: $NAME
spec:
  nodeName: $NODE
  runtimeClassName: wasi
  terminationGracePeriodSeconds: 1
  volumes:
    - {name: work, emptyDir: {}}
  initContainers:
    - name: how-much
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: [write, /work/want, "64"]
      volumeMounts: [{name: work, mountPath: /work}]
  containers:
    - name: busy
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: [spin]
      resources: {limits: {cpu: 100m}}
    - name: large
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: [grow, /work]
      volumeMounts: [{name: work, mountPath: /work}]
"#;

/// Adds pods by one metric.
const AUTOSCALER: &str = r#"
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: web
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}
  minReplicas: 1
  maxReplicas: 3
  metrics: [$METRIC]
"#;

/// Of the 10 millicores that the service requests it is to use half.
const CPU: &str = "{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}";

/// 20 requests a second are for one pod; the kubelet's probe is one.
const REQUESTS: &str = r#"{type: Pods, pods: {
    metric: {name: kubewasi_http_requests_per_second}, target: {type: AverageValue, averageValue: "20"}}}"#;

#[tokio::test]
async fn kubectl_top_shows_what_guests_use_and_an_autoscaler_adds_pods_under_load() -> Result<()> {
    Namespace::with("autoscaling", async |namespace| {
        let mut measured = Vec::new();
        for node in Node::all(namespace).await? {
            let name = format!("on-{}", node.name);
            let pod = MEASURED.replace("$NAME", &name).replace("$NODE", &node.name);
            namespace.create_from(&pod).await?;
            measured.push(name);
        }
        deployment::start_web(namespace, 1).await?;
        namespace.create_from(&AUTOSCALER.replace("$METRIC", CPU)).await?;
        let scenario = async || {
            for pod in &measured {
                top(namespace, pod).await?;
            }
            grows_under_load(namespace, utilisation, 50).await
        };
        RESOURCE.with(&namespace.cluster, scenario).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs Prometheus and its adapter, which take minutes to build: part of make e2e-full"]
async fn an_autoscaler_adds_pods_by_the_requests_that_they_count() -> Result<()> {
    Namespace::with("requests", async |namespace| {
        deployment::start_web(namespace, 1).await?;
        namespace.create_from(&AUTOSCALER.replace("$METRIC", REQUESTS)).await?;
        let scenario = async || grows_under_load(namespace, requests, 20).await;
        CUSTOM.with(&namespace.cluster, scenario).await
    })
    .await
}

/// Each container's cpu time and memory, in millicores and MiB, as a person sees them.
async fn top(namespace: &Namespace, pod: &str) -> Result<()> {
    wait::until(
        "the pod to be measured",
        async || metrics::of_pods(&namespace.cluster, &namespace.name).await,
        |pods| pods.iter().any(|measured| measured["metadata"]["name"] == pod),
    )
    .await?;
    let top = ["top", "pod", pod, "--containers", "--no-headers"];
    let table = namespace.kubectl(&top).await?;
    let (cpu, _) = used(&table, "busy")?;
    // The kubelet's samples and the kernel's periods do not fall together.
    assert!((20..=150).contains(&cpu), "of 100 millicores:\n{table}");
    let (_, memory) = used(&table, "large")?;
    assert!((64..96).contains(&memory), "64 MiB are held:\n{table}");
    Ok(())
}

/// Millicores and MiB of a container's line: `on-worker   busy   100m   3Mi`.
fn used(table: &str, container: &str) -> Result<(u32, u32)> {
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|words| words.get(1) == Some(&container));
    let line = line.with_context(|| format!("no line of {container}:\n{table}"))?;
    let [_, _, cpu, memory] = line[..] else {
        anyhow::bail!("not four words a line:\n{table}");
    };
    let cpu = cpu.strip_suffix('m').context("cpu is not in millicores")?;
    let memory = memory.strip_suffix("Mi").context("memory is not in MiB")?;
    Ok((cpu.parse()?, memory.parse()?))
}

/// The service's autoscaler, which leaves it alone until a client comes and `used` is more than `wanted`.
async fn grows_under_load(
    namespace: &Namespace,
    used: fn(&HorizontalPodAutoscalerStatus) -> Option<i32>,
    wanted: i32,
) -> Result<()> {
    let idle = status(namespace, "what is used", |status| used(status).is_some()).await?;
    assert_eq!(idle.desired_replicas, 1, "it grows without load: {idle:?}");

    deployment::start_client(namespace, "http://web/", "hello").await?;
    workload::says(namespace, "client", "client", "hello").await?;
    let busy = status(namespace, "more pods", |status| status.current_replicas > Some(1)).await?;
    let used = used(&busy).context("the autoscaler forgot what is used")?;
    assert!(used > wanted, "{used} are used: {busy:?}");
    deployment::rolled_out(namespace, WEB).await
}

/// Waits until the autoscaler's status is as `enough` says.
async fn status(
    namespace: &Namespace,
    wanted: &str,
    enough: impl Fn(&HorizontalPodAutoscalerStatus) -> bool,
) -> Result<HorizontalPodAutoscalerStatus> {
    let autoscalers = namespace.api::<HorizontalPodAutoscaler>();
    wait::until(
        &format!("the autoscaler to report {wanted}"),
        async || Ok(autoscalers.get(WEB).await?.status.unwrap_or_default()),
        enough,
    )
    .await
}

/// The share of the requested cpu time that the pods use, in percent.
fn utilisation(status: &HorizontalPodAutoscalerStatus) -> Option<i32> {
    let metric = status.current_metrics.as_ref()?.first()?;
    metric.resource.as_ref()?.current.average_utilization
}

/// How many requests a second each pod answers.
fn requests(status: &HorizontalPodAutoscalerStatus) -> Option<i32> {
    let metric = status.current_metrics.as_ref()?.first()?;
    let Quantity(value) = metric.pods.as_ref()?.current.average_value.as_ref()?;
    match value.strip_suffix('m') {
        Some(thousandths) => thousandths.parse::<i32>().ok().map(|thousandths| thousandths / 1000),
        None => value.parse().ok(),
    }
}
