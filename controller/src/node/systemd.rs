//! The host's systemd, over D-Bus: whose unit a process is, a unit's restart, and a unit of ours that outlives the pod.

use std::fmt::{self, Display};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use rustix::pipe::PipeFlags;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use zbus::{Connection, Fd, OwnedObjectPath, OwnedVariant, Variant, conn, proxy};

/// The longest that systemd may take to answer: its reload of all units takes seconds on a large machine.
const ANSWER: Duration = Duration::from_secs(10);
/// The longest that a unit's restart may take: systemd's own default for starting, and some.
const JOB: Duration = Duration::from_secs(120);
/// The error's name for a process that no unit has.
const NO_UNIT: &str = "org.freedesktop.systemd1.NoUnitForPID";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";

/// Why systemd did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    #[error("D-Bus: {0}")]
    Bus(#[from] zbus::Error),
    #[error("cannot read what a unit writes: {0}")]
    Pipe(#[from] std::io::Error),
    #[error("systemd does not answer {act} over D-Bus within {secs} seconds", secs = ANSWER.as_secs())]
    NoAnswer { act: &'static str },
    #[error("the process {pid} belongs to no unit")]
    NoUnit { pid: u32 },
    #[error("the process {pid} belongs to {unit}, which is no service")]
    NoService { pid: u32, unit: String },
    #[error("{unit} has to wait for {job}")]
    Queued { unit: String, job: Job },
    #[error("systemd's job for {unit} ended as {result:?}: see `journalctl -u {unit}`")]
    Job { unit: String, result: String },
    #[error("systemd's job for {unit} did not end within {secs} seconds{}", waiting(blocker.as_ref()), secs = JOB.as_secs())]
    TimedOut { unit: String, blocker: Option<Job> },
    #[error("the bus closed the connection before systemd's job for {0} ended")]
    Unheard(String),
}

/// A service, as far as a restart of it matters to pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    pub name: String,
    /// `process` keeps the shims, and so the pods, when the main process is stopped.
    pub kill_mode: String,
    /// The job that has to end before a restart of the service is through.
    pub waits_for: Option<Job>,
}

/// A job of systemd's that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    pub unit: String,
    /// `start`, `stop`, `restart` and so on, as systemd names them.
    pub kind: String,
}

impl Display for Job {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "systemd's {} job for {}", self.kind, self.unit)
    }
}

fn waiting(blocker: Option<&Job>) -> String {
    blocker.map_or_else(String::new, |job| format!(": it waits for {job}"))
}

/// The job that a restart of `unit` has to wait for, which is to be ordered `after` and `before` others.
///
/// A stop job goes before any start job, whatever the order of their units (systemd, `job_compare`): of the units that
/// come after this one only a job that stops them is in the way.
fn in_the_way(unit: &str, after: &[String], before: &[String], jobs: Vec<Job>) -> Option<Job> {
    let stops = |kind: &str| matches!(kind, "stop" | "restart" | "try-restart");
    let is_meant = |job: &Job| {
        job.kind != "nop"
            && (job.unit == unit || after.contains(&job.unit) || (before.contains(&job.unit) && stops(&job.kind)))
    };
    jobs.into_iter().find(is_meant)
}

#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    #[zbus(name = "GetUnitByPID")]
    fn get_unit_by_pid(&self, pid: u32) -> zbus::Result<OwnedObjectPath>;
    fn get_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    #[allow(
        clippy::type_complexity,
        reason = "the signature is systemd's: id, unit, type, state, and the paths of job and unit"
    )]
    fn list_jobs(&self) -> zbus::Result<Vec<(u32, String, String, String, OwnedObjectPath, OwnedObjectPath)>>;
    fn restart_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    #[allow(
        clippy::type_complexity,
        reason = "the signature is systemd's: properties, and auxiliary units"
    )]
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Variant<'_>)],
        auxiliary: &[(&str, &[(&str, Variant<'_>)])],
    ) -> zbus::Result<OwnedObjectPath>;
    fn subscribe(&self) -> zbus::Result<()>;
    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: OwnedObjectPath, unit: String, result: String) -> zbus::Result<()>;
}

#[proxy(
    interface = "org.freedesktop.DBus.Properties",
    default_service = "org.freedesktop.systemd1"
)]
trait Properties {
    fn get(&self, interface: &str, name: &str) -> zbus::Result<OwnedVariant>;
}

/// A connection to the systemd of the host whose root is somewhere in this process's view.
pub struct Systemd {
    bus: Connection,
}

/// Where the system bus listens, below a host's root.
pub fn socket(root: &Path) -> PathBuf {
    root.join("run/dbus/system_bus_socket")
}

impl Systemd {
    /// Connects to the system bus of the host with this root.
    pub async fn connect(root: &Path) -> Result<Systemd, SystemdError> {
        let address = format!("unix:path={}", socket(root).display());
        let bus = async { Ok(conn::Builder::address(address.as_str()).build().await?) };
        Ok(Systemd {
            bus: answered("a connection", bus).await?,
        })
    }

    /// The service that a process belongs to.
    ///
    /// # Errors
    ///
    /// When systemd does not answer, or the process is not a service's.
    pub async fn unit_of(&self, pid: u32) -> Result<Unit, SystemdError> {
        answered("GetUnitByPID", async {
            let path = match ManagerProxy::new(&self.bus).await?.get_unit_by_pid(pid).await {
                Err(zbus::Error::MethodError(name, ..)) if name.as_str() == NO_UNIT => {
                    return Err(SystemdError::NoUnit { pid });
                }
                path => path?,
            };
            let properties = PropertiesProxy::builder(&self.bus).path(path).build().await?;
            let name = text(&properties, UNIT, "Id").await?;
            if !name.ends_with(".service") {
                return Err(SystemdError::NoService { pid, unit: name });
            }
            Ok(Unit {
                kill_mode: text(&properties, SERVICE, "KillMode").await?,
                waits_for: blocker(&name, &properties, self.jobs().await?).await?,
                name,
            })
        })
        .await
    }

    /// The job of another unit that a restart of this one has to wait for now.
    async fn waits_for(&self, unit: &str) -> Result<Option<Job>, SystemdError> {
        answered("GetUnit", async {
            let path = ManagerProxy::new(&self.bus).await?.get_unit(unit).await?;
            let properties = PropertiesProxy::builder(&self.bus).path(path).build().await?;
            let mut jobs = self.jobs().await?;
            jobs.retain(|job| job.unit != unit);
            blocker(unit, &properties, jobs).await
        })
        .await
    }

    async fn jobs(&self) -> Result<Vec<Job>, SystemdError> {
        let jobs = ManagerProxy::new(&self.bus).await?.list_jobs().await?;
        Ok(jobs.into_iter().map(|(_, unit, kind, ..)| Job { unit, kind }).collect())
    }

    /// Whether a unit runs, or is about to.
    pub async fn is_active(&self, unit: &str) -> Result<bool, SystemdError> {
        answered("GetUnit", async {
            let path = match ManagerProxy::new(&self.bus).await?.get_unit(unit).await {
                // systemd forgets a transient unit when it has ended.
                Err(zbus::Error::MethodError(..)) => return Ok(false),
                path => path?,
            };
            let properties = PropertiesProxy::builder(&self.bus).path(path).build().await?;
            let state = text(&properties, UNIT, "ActiveState").await?;
            Ok(matches!(
                state.as_str(),
                "active" | "activating" | "reloading" | "deactivating"
            ))
        })
        .await
    }

    /// Restarts a unit, and waits until systemd says how that went.
    ///
    /// # Errors
    ///
    /// [`SystemdError::Queued`] when another job would have the unit stopped and not started: nothing was asked for then.
    pub async fn restart(&self, unit: &str) -> Result<(), SystemdError> {
        if let Some(job) = self.waits_for(unit).await? {
            return Err(SystemdError::Queued {
                unit: unit.to_owned(),
                job,
            });
        }
        let manager = ManagerProxy::new(&self.bus).await?;
        let asked = answered("RestartUnit", async {
            let jobs = manager.receive_job_removed().await?;
            // Without a subscriber systemd sends no signals.
            manager.subscribe().await?;
            // A unit that failed too often in a row is not started before that is forgotten; one that did not fail is fine.
            let _ = manager.reset_failed_unit(unit).await;
            Ok((jobs, manager.restart_unit(unit, "replace").await?))
        });
        let (mut jobs, job) = asked.await?;
        match tokio::time::timeout(JOB, ended(&mut jobs, &job, unit)).await {
            Ok(result) => match result?.as_str() {
                "done" => Ok(()),
                result => Err(SystemdError::Job {
                    unit: unit.to_owned(),
                    result: result.to_owned(),
                }),
            },
            Err(_) => Err(SystemdError::TimedOut {
                unit: unit.to_owned(),
                blocker: self.waits_for(unit).await.ok().flatten(),
            }),
        }
    }

    /// Runs a program of the host to its end, in a unit of its own, and returns what it writes.
    ///
    /// # Errors
    ///
    /// When systemd does not run it; a program that fails is none.
    pub async fn output(&self, argv: &[String], timeout: Duration) -> Result<Output, SystemdError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let unit = format!(
            "kubewasi-output-{}-{}.service",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let ((stdout, stdout_end), (stderr, stderr_end)) = (pipe()?, pipe()?);
        let micros = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
        let properties = [
            ("Type", Variant::from("oneshot")),
            (
                "ExecStart",
                Variant::from(vec![(argv[0].clone(), argv.to_vec(), false)]),
            ),
            ("StandardOutputFileDescriptor", Variant::Fd(Fd::from(stdout_end))),
            ("StandardErrorFileDescriptor", Variant::Fd(Fd::from(stderr_end))),
            ("TimeoutStartUSec", Variant::from(micros)),
            ("CollectMode", Variant::from("inactive-or-failed")),
        ];
        // The pipes would never end if the ends for writing, which are in the properties, stayed open here.
        let asked = answered("StartTransientUnit", async {
            let properties = properties;
            let manager = ManagerProxy::new(&self.bus).await?;
            let jobs = manager.receive_job_removed().await?;
            // Without a subscriber systemd sends no signals.
            manager.subscribe().await?;
            let job = manager.start_transient_unit(&unit, "replace", &properties, &[]).await?;
            Ok((jobs, job))
        });
        let (mut jobs, job) = asked.await?;
        let read = async { tokio::try_join!(read_to_end(stdout), read_to_end(stderr)) };
        let (result, streams) = tokio::join!(ended(&mut jobs, &job, &unit), read);
        let (stdout, stderr) = streams?;
        let code = match result?.as_str() {
            "done" => 0,
            _ => 1,
        };
        Ok(Output {
            // As wait(2) has it.
            status: ExitStatus::from_raw(code << 8),
            stdout,
            stderr,
        })
    }

    /// Runs a program of the host in a unit of its own, which is tried again when it dies: nothing of the pod is in it.
    pub async fn run(
        &self,
        unit: &str,
        description: &str,
        argv: &[String],
        environment: &[String],
    ) -> Result<(), SystemdError> {
        let exec = vec![(argv[0].clone(), argv.to_vec(), false)];
        let properties = [
            ("Description", Variant::from(description)),
            ("Type", Variant::from("exec")),
            ("ExecStart", Variant::from(exec)),
            ("Environment", Variant::from(environment.to_vec())),
            ("Restart", Variant::from("on-failure")),
            ("RestartUSec", Variant::from(1_000_000u64)),
            ("StartLimitIntervalUSec", Variant::from(600_000_000u64)),
            ("StartLimitBurst", Variant::from(5u32)),
            ("CollectMode", Variant::from("inactive-or-failed")),
        ];
        answered("StartTransientUnit", async {
            let manager = ManagerProxy::new(&self.bus).await?;
            // What is left of one that failed; it has no state of its own to lose.
            let _ = manager.reset_failed_unit(unit).await;
            manager.start_transient_unit(unit, "replace", &properties, &[]).await?;
            Ok(())
        })
        .await
    }
}

/// Waits for the end of a job, and returns its result.
async fn ended(jobs: &mut JobRemovedStream, job: &OwnedObjectPath, unit: &str) -> Result<String, SystemdError> {
    while let Some(signal) = jobs.next().await {
        let ended = signal.args()?;
        if ended.job == *job {
            return Ok(ended.result.clone());
        }
    }
    Err(SystemdError::Unheard(unit.to_owned()))
}

/// A pipe whose end for writing is another process's.
fn pipe() -> Result<(Receiver, OwnedFd), SystemdError> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(std::io::Error::from)?;
    Ok((Receiver::from_owned_fd(reader)?, writer))
}

async fn read_to_end(mut pipe: Receiver) -> Result<Vec<u8>, SystemdError> {
    let mut bytes = Vec::new();
    pipe.read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// What `asking` comes to, if it does in time.
async fn answered<T>(
    act: &'static str,
    asking: impl Future<Output = Result<T, SystemdError>>,
) -> Result<T, SystemdError> {
    let in_time = tokio::time::timeout(ANSWER, asking).await;
    in_time.map_err(|_| SystemdError::NoAnswer { act })?
}

/// The one of these jobs that a restart of `unit`, which has these properties, has to wait for.
async fn blocker(unit: &str, properties: &PropertiesProxy<'_>, jobs: Vec<Job>) -> Result<Option<Job>, SystemdError> {
    if jobs.is_empty() {
        return Ok(None);
    }
    let names =
        async |name| -> Result<Vec<String>, SystemdError> { Ok(Vec::try_from(properties.get(UNIT, name).await?)?) };
    Ok(in_the_way(unit, &names("After").await?, &names("Before").await?, jobs))
}

async fn text(properties: &PropertiesProxy<'_>, interface: &str, name: &str) -> Result<String, SystemdError> {
    let value = properties.get(interface, name).await?;
    Ok(String::try_from(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits_for(unit: &str, kind: &str) -> Option<String> {
        let job = Job {
            unit: unit.into(),
            kind: kind.into(),
        };
        let (after, before) = (["disk.mount".into()], ["kubelet.service".into()]);
        let other = Job {
            unit: "cron.service".into(),
            kind: "start".into(),
        };
        in_the_way("containerd.service", &after, &before, vec![other, job]).map(|job| job.to_string())
    }

    #[test]
    fn a_restart_waits_for_jobs_of_the_unit_and_of_what_it_is_ordered_after() {
        assert_eq!(
            waits_for("disk.mount", "start").as_deref(),
            Some("systemd's start job for disk.mount")
        );
        for (unit, kind) in [
            ("disk.mount", "stop"),
            ("containerd.service", "start"),
            ("containerd.service", "stop"),
        ] {
            assert!(waits_for(unit, kind).is_some(), "{kind} of {unit}");
        }
        assert_eq!(waits_for("network.target", "start"), None);
        assert_eq!(waits_for("disk.mount", "nop"), None);
    }

    #[test]
    fn a_restart_waits_for_what_is_stopped_before_its_unit_and_not_for_what_is_started_after_it() {
        assert!(waits_for("kubelet.service", "stop").is_some());
        assert!(waits_for("kubelet.service", "restart").is_some());
        assert_eq!(waits_for("kubelet.service", "start"), None);
    }
}
