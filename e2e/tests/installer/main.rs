//! Scenarios of installing, changing and removing the release: one after another, since each has all nodes of the
//! cluster to itself. `make e2e` runs them before the workloads.

mod agent_rights;
mod agents;
mod by_hand;
mod changes;
mod faults;
mod second_runtime;
mod steady;
mod uninstall;

use anyhow::Result;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::workload;

/// A wasm pod that runs until it is deleted.
async fn start_idle(namespace: &Namespace, name: &str, class: &str) -> Result<()> {
    let pod = r#"
apiVersion: v1
kind: Pod
metadata:
  name: $NAME
spec:
  runtimeClassName: $CLASS
  terminationGracePeriodSeconds: 1
  containers:
    - name: guest
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: [idle]
"#;
    namespace
        .create_from(&pod.replace("$NAME", name).replace("$CLASS", class))
        .await?;
    workload::ready(namespace, name).await?;
    Ok(())
}
