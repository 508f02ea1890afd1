//! A node's files and processes, looked at from a pod that sees them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Node as Object;
use kube::ResourceExt;
use kube::api::{Api, ListParams};

use crate::namespace::Namespace;
use crate::workload;

/// What an installer may touch: configuration, programs, services, and where state and sockets are. Modes, owners and
/// where links lead, of files the digest, and the names of what comes and goes.
const FILES: &str = "
    cd /host
    find etc opt usr/local/bin usr/local/sbin -exec stat -c '%A %u:%g %N' {} +
    find etc opt usr/local/bin usr/local/sbin -type f -exec sha256sum {} +
    find run var/lib -maxdepth 1";

/// containerd's pid, and when the kernel started it.
const CONTAINERD: &str = "pid=$(pidof containerd) && cut -d ' ' -f 1,22 /proc/$pid/stat";

/// The cpu controller's settings of a container's cgroup, in the words of cgroup v1 or v2: shares or weight, and how much
/// time of which. The folder is named by the container's id, with a driver's prefix and suffix.
const CPU_SETTINGS: &str = "
    for folder in $(find /host/sys/fs/cgroup -type d -name '*$CONTAINER*'); do
        cd $folder
        for file in cpu.shares cpu.cfs_quota_us cpu.cfs_period_us cpu.weight cpu.max; do
            [ ! -e $file ] || echo $file $(cat $file)
        done
    done";

/// How often that cgroup had used up its time.
const THROTTLED: &str = "
    for folder in $(find /host/sys/fs/cgroup -type d -name '*$CONTAINER*'); do
        [ ! -e $folder/cpu.stat ] || sed -n 's/^nr_throttled //p' $folder/cpu.stat
    done";

/// One look is one pod: a restart of containerd may take older ones with it.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: $POD
spec:
  nodeName: $NODE
  hostPID: true
  restartPolicy: Never
  tolerations: [{operator: Exists}]
  volumes:
    - {name: host, hostPath: {path: /}}
  containers:
    - name: look
      image: $IMAGES/busybox:e2e
      imagePullPolicy: IfNotPresent
      command: [sh, -c, $SCRIPT]
      securityContext: {privileged: true}
      volumeMounts: [{name: host, mountPath: /host, readOnly: true}]
"#;

/// A node.
pub struct Node<'a> {
    pub name: String,
    namespace: &'a Namespace,
}

impl Node<'_> {
    /// All nodes of the cluster, by name; what looks at them runs in `namespace`.
    pub async fn all(namespace: &Namespace) -> Result<Vec<Node<'_>>> {
        let api = Api::<Object>::all(namespace.cluster.client.clone());
        let nodes = api.list(&ListParams::default()).await?.items.into_iter();
        let named = nodes.map(|node| Node {
            name: node.name_any(),
            namespace,
        });
        Ok(named.collect())
    }

    /// How the cpu time of a container is limited and weighted, a line a setting; it is named by containerd's id.
    pub async fn cpu_settings(&self, container: &str) -> Result<BTreeSet<String>> {
        let settings = self.look(&CPU_SETTINGS.replace("$CONTAINER", container)).await?;
        Ok(settings.lines().map(str::to_owned).collect())
    }

    /// How often a container had to wait because it had used up its cpu time.
    pub async fn throttled(&self, container: &str) -> Result<u64> {
        let times = self.look(&THROTTLED.replace("$CONTAINER", container)).await?;
        let times = times.lines().next();
        let times = times.with_context(|| format!("container {container} has no cgroup on {}", self.name))?;
        Ok(times.parse()?)
    }

    /// A line for everything that an installer may touch.
    pub async fn files(&self) -> Result<BTreeSet<String>> {
        Ok(self.look(FILES).await?.lines().map(str::to_owned).collect())
    }

    /// The process that containerd is now: another one after a restart.
    pub async fn containerd(&self) -> Result<String> {
        self.look(CONTAINERD).await
    }

    /// What a script writes on the node.
    async fn look(&self, script: &str) -> Result<String> {
        static LOOKS: AtomicU32 = AtomicU32::new(0);
        let pod = format!("look-{}", LOOKS.fetch_add(1, Ordering::Relaxed));
        let manifest = POD
            .replace("$POD", &pod)
            .replace("$NODE", &self.name)
            .replace("$SCRIPT", &serde_json::to_string(script)?);
        self.namespace.create_from(&manifest).await?;
        let ended = workload::phase(self.namespace, &pod, "Succeeded").await;
        ended.with_context(|| format!("looking at node {}", self.name))?;
        workload::logs(self.namespace, &pod, "look").await
    }
}

/// The lines that only one of two listings has, as diff(1) marks them; nothing when they are alike.
pub fn difference(before: &BTreeSet<String>, after: &BTreeSet<String>) -> Vec<String> {
    let gone = before.difference(after).map(|line| format!("-{line}"));
    let new = after.difference(before).map(|line| format!("+{line}"));
    gone.chain(new).collect()
}

/// How many microseconds of each period settings of [`Node::cpu_settings`] allow.
pub fn quota(settings: &BTreeSet<String>) -> Option<&str> {
    settings.iter().find_map(|setting| match setting.split_once(' ')? {
        ("cpu.cfs_quota_us", quota) => Some(quota),
        ("cpu.max", quota_and_period) => quota_and_period.split(' ').next(),
        _ => None,
    })
}
