//! The host's systemd, over D-Bus: whose unit a process is, a unit's restart, and a unit of ours that outlives the pod.

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

/// The longest that a unit's restart may take: systemd's own default for starting, and some.
const JOB: Duration = Duration::from_secs(120);

/// Why systemd did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    #[error("D-Bus: {0}")]
    Bus(#[from] zbus::Error),
    #[error("cannot read what a unit writes: {0}")]
    Pipe(#[from] std::io::Error),
    #[error("systemd's job for {unit} ended as {result:?}: see `journalctl -u {unit}`")]
    Job { unit: String, result: String },
    #[error("systemd's job for {0} did not end within {secs} seconds", secs = JOB.as_secs())]
    TimedOut(String),
    #[error("the bus closed the connection before systemd's job for {0} ended")]
    Unheard(String),
}

/// A service, as far as a restart of it matters to pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    pub name: String,
    /// `process` keeps the shims, and so the pods, when the main process is stopped.
    pub kill_mode: String,
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
        let bus = conn::Builder::address(address.as_str()).build().await?;
        Ok(Systemd { bus })
    }

    /// The unit that a process belongs to.
    pub async fn unit_of(&self, pid: u32) -> Result<Unit, SystemdError> {
        let path = ManagerProxy::new(&self.bus).await?.get_unit_by_pid(pid).await?;
        let properties = PropertiesProxy::builder(&self.bus).path(path).build().await?;
        Ok(Unit {
            name: text(&properties, "org.freedesktop.systemd1.Unit", "Id").await?,
            kill_mode: text(&properties, "org.freedesktop.systemd1.Service", "KillMode").await?,
        })
    }

    /// Whether a unit runs, or is about to.
    pub async fn is_active(&self, unit: &str) -> Result<bool, SystemdError> {
        let Ok(path) = ManagerProxy::new(&self.bus).await?.get_unit(unit).await else {
            // systemd forgets a transient unit when it has ended.
            return Ok(false);
        };
        let properties = PropertiesProxy::builder(&self.bus).path(path).build().await?;
        let state = text(&properties, "org.freedesktop.systemd1.Unit", "ActiveState").await?;
        Ok(matches!(
            state.as_str(),
            "active" | "activating" | "reloading" | "deactivating"
        ))
    }

    /// Restarts a unit, and waits until systemd says how that went.
    pub async fn restart(&self, unit: &str) -> Result<(), SystemdError> {
        let manager = ManagerProxy::new(&self.bus).await?;
        let mut jobs = manager.receive_job_removed().await?;
        // Without a subscriber systemd sends no signals.
        manager.subscribe().await?;
        // A unit that failed too often in a row is not started before that is forgotten; one that did not fail is fine.
        let _ = manager.reset_failed_unit(unit).await;
        let job = manager.restart_unit(unit, "replace").await?;
        let timed_out = |_| SystemdError::TimedOut(unit.to_owned());
        let ended = tokio::time::timeout(JOB, ended(&mut jobs, &job, unit)).await;
        match ended.map_err(timed_out)??.as_str() {
            "done" => Ok(()),
            result => Err(SystemdError::Job {
                unit: unit.to_owned(),
                result: result.to_owned(),
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
        let manager = ManagerProxy::new(&self.bus).await?;
        let mut jobs = manager.receive_job_removed().await?;
        // Without a subscriber systemd sends no signals.
        manager.subscribe().await?;
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
        let job = manager.start_transient_unit(&unit, "replace", &properties, &[]).await?;
        // Ours are to be closed, or the pipes would never end.
        drop(properties);
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
        let manager = ManagerProxy::new(&self.bus).await?;
        // What is left of one that failed; it has no state of its own to lose.
        let _ = manager.reset_failed_unit(unit).await;
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
        manager.start_transient_unit(unit, "replace", &properties, &[]).await?;
        Ok(())
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

async fn text(properties: &PropertiesProxy<'_>, interface: &str, name: &str) -> Result<String, SystemdError> {
    let value = properties.get(interface, name).await?;
    Ok(String::try_from(value)?)
}
