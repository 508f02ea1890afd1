//! Wasm pods that run until they are deleted, and are to live through what happens around them.

use std::collections::BTreeMap;

use anyhow::Result;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::node::Node;
use kubewasi_e2e::workload;

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: $NAME
spec:
  runtimeClassName: $CLASS
  nodeSelector: $NODES
  terminationGracePeriodSeconds: 1
  containers:
    - name: guest
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: [idle]
"#;

/// Starts one, on whatever node.
pub async fn start_idle(namespace: &Namespace, name: &str, class: &str) -> Result<()> {
    start(namespace, name, class, "{}").await
}

/// Starts one on a node.
pub async fn start_idle_on(namespace: &Namespace, node: &str, name: &str, class: &str) -> Result<()> {
    start(namespace, name, class, &format!("{{kubernetes.io/hostname: {node}}}")).await
}

async fn start(namespace: &Namespace, name: &str, class: &str, nodes: &str) -> Result<()> {
    let pod = POD.replace("$NAME", name).replace("$CLASS", class);
    namespace.create_from(&pod.replace("$NODES", nodes)).await?;
    workload::ready(namespace, name).await?;
    Ok(())
}

/// One on every node, each with what it is known by.
pub struct Idle(BTreeMap<String, Vec<String>>);

impl Idle {
    /// Starts them.
    pub async fn everywhere(namespace: &Namespace, class: &str) -> Result<Idle> {
        let mut idle = BTreeMap::new();
        for (number, node) in Node::all(namespace).await?.iter().enumerate() {
            let name = format!("idle-{number}");
            start_idle_on(namespace, &node.name, &name, class).await?;
            let pod = workload::ready(namespace, &name).await?;
            idle.insert(name, workload::identity(&pod));
        }
        Ok(Idle(idle))
    }

    /// Fails when one of them is not the same any more, or does not run.
    pub async fn live_on(&self, namespace: &Namespace) -> Result<()> {
        for (name, identity) in &self.0 {
            let pod = workload::ready(namespace, name).await?;
            assert_eq!(workload::identity(&pod), *identity, "wasm pod {name} was restarted");
        }
        Ok(())
    }
}
