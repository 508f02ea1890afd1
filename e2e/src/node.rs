//! A node's files and processes, looked at from a pod that sees them, and changed from one that enters its host.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node as Object, Pod};
use kube::ResourceExt;
use kube::api::{Api, ListParams};

use crate::namespace::Namespace;
use crate::{wait, workload};

/// What an installer may touch: configuration, programs, services, and where state and sockets are. Modes, owners and
/// where links lead, of files the digest, and the names of what comes and goes. What the shim's servers have is theirs while
/// they run: see [`Node::serverless`].
const FILES: &str = "
    cd /host
    find etc opt usr/local/bin usr/local/sbin -exec stat -c '%A %u:%g %N' {} +
    find etc opt usr/local/bin usr/local/sbin -type f -exec sha256sum {} +
    find run var/lib -maxdepth 1 ! -path run/kubewasi";

/// The folder of the shim's servers, where there is one.
const SERVERS: &str = "cd /host/run && find . -maxdepth 1 -name kubewasi";

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

/// What a node is called that runs the control plane, in a label.
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// How often a pod is made whose container could not be started.
const TRIES: usize = 3;

/// Enters the host's namespaces and has its shell run a script.
const ENTER: [&str; 9] = ["nsenter", "-t", "1", "-m", "-u", "-i", "-n", "-p", "--"];

/// Where the host's programs are.
const PATH: &str = "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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
      command: $COMMAND
      securityContext: {privileged: true}
      volumeMounts: [{name: host, mountPath: /host, readOnly: true}]
"#;

/// A node.
pub struct Node<'a> {
    pub name: String,
    /// Whether the control plane runs on it.
    pub is_control_plane: bool,
    namespace: &'a Namespace,
}

impl Node<'_> {
    /// All nodes of the cluster, by name; what looks at them runs in `namespace`.
    pub async fn all(namespace: &Namespace) -> Result<Vec<Node<'_>>> {
        let api = Api::<Object>::all(namespace.cluster.client.clone());
        let nodes = api.list(&ListParams::default()).await?.items.into_iter();
        let named = nodes.map(|node| Node {
            name: node.name_any(),
            is_control_plane: node.labels().contains_key(CONTROL_PLANE),
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

    /// The node that a rollout comes to first: the workers in the order of their names, then the control plane's.
    pub async fn first(namespace: &Namespace) -> Result<Node<'_>> {
        let mut nodes = Node::all(namespace).await?;
        nodes.sort_by_key(|node| (node.is_control_plane, node.name.clone()));
        nodes.into_iter().next().context("the cluster has no node")
    }

    /// A line for everything that an installer may touch.
    pub async fn files(&self) -> Result<BTreeSet<String>> {
        Ok(self.look(FILES).await?.lines().map(str::to_owned).collect())
    }

    /// As [`Node::files`], once the shim's old versions are gone: an agent takes them away some time after an upgrade.
    pub async fn files_at_rest(&self) -> Result<BTreeSet<String>> {
        let folders = |files: &BTreeSet<String>, is_wanted: fn(&str) -> bool| {
            let folders = files.iter().filter(|line| line.starts_with('d'));
            folders.filter(|line| is_wanted(line.trim_end_matches('\''))).count()
        };
        wait::until(
            &format!("old versions of the shim to be gone from {}", self.name),
            async || self.files().await,
            |files| {
                let runtimes = folders(files, |path| path.ends_with("/versions"));
                runtimes == folders(files, |path| path.rsplit('/').nth(1) == Some("versions"))
            },
        )
        .await
    }

    /// Waits until the last server of the shim has ended, and its folder has gone with it.
    pub async fn serverless(&self) -> Result<()> {
        let what = format!("no server of the shim on {}", self.name);
        wait::until(&what, async || self.look(SERVERS).await, String::is_empty)
            .await
            .map(drop)
    }

    /// The process that containerd is now: another one after a restart.
    pub async fn containerd(&self) -> Result<String> {
        self.look(CONTAINERD).await
    }

    /// What a script writes that sees the node's processes, and its files in /host.
    async fn look(&self, script: &str) -> Result<String> {
        self.output(&["sh", "-c", script]).await
    }

    /// Runs a script as root of the host, whose own programs it finds, and returns what it writes.
    pub async fn run(&self, script: &str) -> Result<String> {
        let script = format!("set -eu; {PATH}; {script}");
        self.output(&[&ENTER[..], &["sh", "-c", &script]].concat()).await
    }

    /// Starts a script as root of the host in a unit of its own, which needs neither containerd nor the API server.
    pub async fn start(&self, unit: &str, script: &str) -> Result<()> {
        // A script that restarts containerd at once may cost the pod its exit code; `ended` sees whether it was started.
        self.complete(async || self.launch(unit, script).await).await.map(drop)
    }

    /// As [`Node::start`], for a script after which nothing can be asked: it may not have started yet. Returns the name of the
    /// pod that starts it.
    pub async fn launch(&self, unit: &str, script: &str) -> Result<String> {
        let script = format!("{PATH}; {script}").replace('\'', r"'\''");
        let output = format!("--property=StandardOutput=file:{}", log(unit));
        let script = format!("{PATH}; systemd-run --quiet --collect --unit={unit} {output} bash -c '{script}'");
        self.pod(&[&ENTER[..], &["sh", "-c", &script]].concat()).await
    }

    /// What a script that was started has written, once it has ended.
    pub async fn ended(&self, unit: &str) -> Result<String> {
        let log = log(unit);
        self.run(&format!(
            "while systemctl --quiet is-active {unit}; do sleep 0.2; done; cat {log}; rm {log}"
        ))
        .await
    }

    /// What a command writes in a pod on the node, when it has succeeded.
    async fn output(&self, command: &[&str]) -> Result<String> {
        let (name, pod) = self.complete(async || self.pod(command).await).await?;
        let written = workload::logs(self.namespace, &name, "look").await?;
        let phase = pod.status.and_then(|status| status.phase).unwrap_or_default();
        ensure!(
            phase == "Succeeded",
            "looking at node {}: {phase}: {written}",
            self.name
        );
        Ok(written)
    }

    /// Makes a pod on the node that runs a command, and returns its name.
    async fn pod(&self, command: &[&str]) -> Result<String> {
        static LOOKS: AtomicU32 = AtomicU32::new(0);
        let pod = format!("look-{}", LOOKS.fetch_add(1, Ordering::Relaxed));
        let manifest = POD
            .replace("$POD", &pod)
            .replace("$NODE", &self.name)
            .replace("$COMMAND", &serde_json::to_string(command)?);
        self.namespace.create_from(&manifest).await?;
        Ok(pod)
    }

    /// Waits for the end of the pod that `make` makes, and returns its name and itself. One whose container could not be
    /// started is made once more: on a busy machine runc may not get a cgroup of version 1 frozen in its time.
    async fn complete(&self, make: impl AsyncFn() -> Result<String>) -> Result<(String, Pod)> {
        let mut tries = 0;
        loop {
            let name = make().await?;
            let pod = workload::pod_where(self.namespace, &name, "its end", |pod| {
                let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
                matches!(phase, Some("Succeeded" | "Failed"))
            })
            .await
            .with_context(|| format!("looking at node {}", self.name))?;
            tries += 1;
            if tries == TRIES || !could_not_start(&pod) {
                return Ok((name, pod));
            }
        }
    }
}

/// Whether nothing of a pod has run, by the reason that the kubelet gives then.
fn could_not_start(pod: &Pod) -> bool {
    let statuses = pod
        .status
        .iter()
        .flat_map(|status| status.container_statuses.iter().flatten());
    let mut ends = statuses.filter_map(|status| status.state.as_ref()?.terminated.as_ref());
    ends.any(|end| end.reason.as_deref() == Some("StartError"))
}

/// Where a unit's script writes.
fn log(unit: &str) -> String {
    format!("/run/{unit}.log")
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
