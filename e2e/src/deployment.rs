//! Deployments of wasm pods that several scenarios use: guests that move between nodes, and a service with who asks it.

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;

use crate::namespace::Namespace;

/// The name of the Deployment of guests that move, and their label `app`.
pub const MOVING: &str = "moving";

/// How many guests move.
pub const MOVING_REPLICAS: usize = 3;

/// The name of the service's Deployment and Service, and its pods' label `app`.
pub const WEB: &str = "web";

/// Guests that would rather be on one node, and of which one may be out at a time.
const MOVING_MANIFEST: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata:
  name: moving
spec:
  replicas: 3
  selector: {matchLabels: {app: moving}}
  template:
    metadata:
      labels: {app: moving}
    spec:
      runtimeClassName: $CLASS
      terminationGracePeriodSeconds: 1
      affinity:
        nodeAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
            - weight: 100
              preference:
                matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [$NODE]}]
      containers:
        - name: guest
          image: $IMAGES/probe:e2e
          imagePullPolicy: IfNotPresent
          args: [idle]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: moving
spec:
  maxUnavailable: 1
  selector: {matchLabels: {app: moving}}
"#;

/// The preStop hook is what any server in Kubernetes needs: a Service leads to a pod for a moment after its end began.
const WEB_MANIFEST: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: $REPLICAS
  selector: {matchLabels: {app: web}}
  strategy:
    rollingUpdate: {maxUnavailable: 0}
  template:
    metadata:
      labels: {app: web}
      annotations:
        kubewasi.dev/metrics-port: "9464"
        prometheus.io/scrape: "true"
        prometheus.io/port: "9464"
    spec:
      runtimeClassName: wasi
      terminationGracePeriodSeconds: 30
      containers:
        - name: service
          image: $IMAGES/service:e2e
          imagePullPolicy: IfNotPresent
          env: [{name: VERSION, value: one}]
          ports: [{containerPort: 8080}]
          resources: {requests: {cpu: 10m}}
          readinessProbe:
            httpGet: {path: /, port: 8080}
            periodSeconds: 1
          lifecycle:
            preStop: {sleep: {seconds: 10}}
---
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
"#;

/// A guest that asks again and again, and writes a line of each answer, or why there was none.
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
      args: [ask, "$URL", "$TEXT"]
"#;

/// Starts [`MOVING_REPLICAS`] idle guests, if they can be there all on `node`.
pub async fn start_moving(namespace: &Namespace, class: &str, node: &str) -> Result<()> {
    let manifest = MOVING_MANIFEST.replace("$CLASS", class).replace("$NODE", node);
    namespace.create_from(&manifest).await?;
    rolled_out(namespace, MOVING).await
}

/// Starts the service and waits until it answers: <http://web/> from pods of the namespace.
pub async fn start_web(namespace: &Namespace, replicas: usize) -> Result<()> {
    namespace
        .create_from(&WEB_MANIFEST.replace("$REPLICAS", &replicas.to_string()))
        .await?;
    rolled_out(namespace, WEB).await
}

/// Starts the pod `client` with the container `client`, which asks for `url` hundreds of times a second and prints the line
/// of each answer that has `text`, else one that starts with `failed`.
pub async fn start_client(namespace: &Namespace, url: &str, text: &str) -> Result<()> {
    namespace
        .create_from(&CLIENT.replace("$URL", url).replace("$TEXT", text))
        .await
}

/// Waits until all pods of a Deployment are as its template now says, and ready.
pub async fn rolled_out(namespace: &Namespace, name: &str) -> Result<()> {
    let deployment = format!("deployment/{name}");
    let status = ["rollout", "status", &deployment, "--timeout=120s"];
    namespace.kubectl(&status).await.map(drop)
}

/// The nodes of the pods with this label `app`, those left out that are on their way out.
pub async fn places(namespace: &Namespace, app: &str) -> Result<Vec<String>> {
    let selected = ListParams::default().labels(&format!("app={app}"));
    let pods = namespace.api::<Pod>().list(&selected).await?.items.into_iter();
    let stay = pods.filter(|pod| pod.metadata.deletion_timestamp.is_none());
    Ok(stay
        .filter_map(|pod| pod.spec.and_then(|spec| spec.node_name))
        .collect())
}
