//! What a restart of containerd would end that is not its business.
//!
//! A unit with another KillMode than `process` has systemd end the shims with containerd, and with them all pods.
//!
//! When containerd starts, it asks each shim for its container's processes, takes one that names none for leaked, and
//! removes it with whatever runs in it (`shim_load.go`): 1.7 all, 2.x what is no sandbox. runc finds processes by
//! their devices cgroup where cgroups are those of version 1, and systemd moves those of sandboxes out of it
//! (systemd#37044). Then any restart ends them, whoever asks for it; so the agent does not.
//!
//! systemd stops a unit at once and starts it when the jobs of the units that it is ordered after have ended: a restart
//! during such a job leaves the node without containerd until then.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Display};
use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{GetContainerRequest, ListNamespacesRequest, ListPidsRequest, ListTasksRequest};
use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Code, Request, Status};
use containerd_client::types::v1::Status as TaskStatus;

use super::config::Release;
use super::cri::{ConnectError, connect, timed};
use super::host::{Containerd, Host, HostError};
use super::refusal::Refusal;
use super::smoke::in_namespace;
use super::systemd::Unit;

/// CRI's labels of a container: what it is, and its pod.
const KIND: &str = "io.cri-containerd.kind";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_NAME: &str = "io.kubernetes.pod.name";
/// So many are named; the rest is counted.
const NAMED: usize = 5;

/// A container that is just ending names no process either, until containerd knows of its end; that is sooner.
const ENDING: Duration = Duration::from_secs(2);

/// Containers that name no process, by containerd's namespace and id, and what they are called.
type Found = BTreeMap<(String, String), String>;

/// Why that could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum LossError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("containerd does not tell {what}: {}", .status.message())]
    Call { what: &'static str, status: Box<Status> },
}

/// Refuses to restart a containerd that would lose containers by it, in whatever way.
///
/// # Errors
///
/// The refusal, or that containerd did not answer.
pub async fn refuse(host: &Host, containerd: &Containerd) -> Result<(), HostError> {
    keeps_shims(&containerd.unit)?;
    starts_at_once(&containerd.unit)?;
    let losses = Losses::look(&host.path(&containerd.socket), containerd.configuration.release).await?;
    match losses.is_empty() {
        true => Ok(()),
        false => Err(Refusal::losses(&losses).into()),
    }
}

/// Refuses a unit whose stop ends the shims with the main process.
pub fn keeps_shims(unit: &Unit) -> Result<(), Refusal> {
    match unit.kill_mode.as_str() {
        "process" => Ok(()),
        other => Err(Refusal::kill_mode(&unit.name, other)),
    }
}

/// Refuses a unit whose restart would stop it and then wait for another job before it starts it again.
pub fn starts_at_once(unit: &Unit) -> Result<(), Refusal> {
    match &unit.waits_for {
        None => Ok(()),
        Some(job) => Err(Refusal::queued(&unit.name, job)),
    }
}

/// Containers that a restart would end: pods by namespace and name, all else by containerd's namespace and id.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Losses(Vec<String>);

impl Losses {
    /// Asks the containerd of this release at `socket`. Each container is asked for its processes, which takes some
    /// milliseconds each; where some name none, all are asked once more after two seconds.
    ///
    /// # Errors
    ///
    /// When containerd does not answer: then nothing is known.
    pub async fn look(socket: &Path, release: Release) -> Result<Losses, LossError> {
        if ![true, false]
            .iter()
            .any(|is_sandbox| release.removes_what_names_no_process(*is_sandbox))
        {
            return Ok(Losses::default());
        }
        let channel = connect(socket).await?;
        let mut found = name_none(&channel, release).await?;
        if !found.is_empty() {
            tokio::time::sleep(ENDING).await;
            let again = name_none(&channel, release).await?;
            found.retain(|container, _| again.contains_key(container));
        }
        let names: BTreeSet<String> = found.into_values().collect();
        Ok(Losses(names.into_iter().collect()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Display for Losses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = &self.0[..self.0.len().min(NAMED)];
        f.write_str(&named.join(", "))?;
        match self.0.len() - named.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// What names no process now, of all that the release would remove for it.
async fn name_none(channel: &Channel, release: Release) -> Result<Found, LossError> {
    let listed = NamespacesClient::new(channel.clone())
        .list(timed(ListNamespacesRequest::default()))
        .await;
    let namespaces = listed.map_err(failed("namespaces"))?.into_inner().namespaces;
    let mut found = Found::new();
    for namespace in namespaces {
        let namespace = Namespace {
            channel: channel.clone(),
            name: namespace.name,
        };
        namespace.name_none(release, &mut found).await?;
    }
    Ok(found)
}

/// One of containerd's namespaces.
struct Namespace {
    channel: Channel,
    name: String,
}

impl Namespace {
    async fn name_none(&self, release: Release, found: &mut Found) -> Result<(), LossError> {
        let mut tasks = TasksClient::new(self.channel.clone());
        let listed = tasks.list(self.request(ListTasksRequest::default())).await;
        let running = listed.map_err(failed("tasks"))?.into_inner().tasks.into_iter();
        let running = running.filter(|task| task.status == TaskStatus::Running as i32);
        for id in running.map(|task| task.id) {
            let labels = self.labels(&id).await?;
            let is_sandbox = labels.get(KIND).is_some_and(|kind| kind == "sandbox");
            if !release.removes_what_names_no_process(is_sandbox) {
                continue;
            }
            let request = self.request(ListPidsRequest {
                container_id: id.clone(),
            });
            let names_none = match tasks.list_pids(request).await {
                Ok(answer) => answer.into_inner().processes.is_empty(),
                // Ended since.
                Err(status) if status.code() == Code::NotFound => false,
                // A cgroup that is gone is an error of runc's, which counts as no process before 2.4.
                Err(status) if matches!(status.code(), Code::Unknown | Code::Internal) => true,
                Err(status) => return Err(failed("a container's processes")(status)),
            };
            if names_none {
                let name = match (labels.get(POD_NAMESPACE), labels.get(POD_NAME)) {
                    (Some(namespace), Some(pod)) => format!("{namespace}/{pod}"),
                    _ => format!("{}/{id}", self.name),
                };
                found.insert((self.name.clone(), id), name);
            }
        }
        Ok(())
    }

    /// The labels of a container; none once it is gone.
    async fn labels(&self, id: &str) -> Result<HashMap<String, String>, LossError> {
        let request = self.request(GetContainerRequest { id: id.to_owned() });
        match ContainersClient::new(self.channel.clone()).get(request).await {
            Ok(answer) => Ok(answer.into_inner().container.unwrap_or_default().labels),
            Err(status) if status.code() == Code::NotFound => Ok(HashMap::new()),
            Err(status) => Err(failed("a container")(status)),
        }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        in_namespace(timed(message), &self.name)
    }
}

fn failed(what: &'static str) -> impl FnOnce(Status) -> LossError {
    move |status| LossError::Call {
        what,
        status: Box::new(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_named_and_the_rest_is_counted() {
        let losses = |count: usize| Losses((0..count).map(|number| format!("a/{number}")).collect()).to_string();
        assert_eq!(losses(1), "a/0");
        assert_eq!(losses(NAMED), "a/0, a/1, a/2, a/3, a/4");
        assert_eq!(losses(NAMED + 2), "a/0, a/1, a/2, a/3, a/4 and 2 more");
    }
}
