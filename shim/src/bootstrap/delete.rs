//! `delete`: removes what a container holds, through its live server or, when that is gone, by the bundle's record.
//!
//! containerd gives it 5 s, runs many at once, also for containers that were deleted properly or never were, and beside
//! a healthy server: it is idempotent and touches no other container, except those of a dead pod.

use std::env;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};

use super::args::Flags;
use super::bundle;
use super::burial;
use super::control::{self, ControlError, Exit, Reply, Request};
use super::folder;
use super::remains;
use crate::image::memory;
use crate::sandbox::hooks::Hooks;
use crate::sandbox::record::{self, Rest};

/// 128 + SIGKILL: what containerd is told of a container whose end nobody saw.
const KILLED: u32 = 137;

/// The file that holds the pid of a container's process, for the exit event of a dead server's containers.
pub const PID_FILE: &str = "init.pid";

/// Why a container's remains are still there.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    #[error("cannot find the bundle: {0}")]
    NoBundle(io::Error),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("cannot clean up after {}: {cause}", bundle.display())]
    Clean { bundle: PathBuf, cause: io::Error },
    #[error("cannot remove the dead server's folder {}: {cause}", folder.display())]
    Bury { folder: PathBuf, cause: io::Error },
    #[error("cannot hand over what takes longer: {0}")]
    Sweep(io::Error),
    #[error("cannot answer: {0}")]
    Encode(#[from] containerd_shim_protos::protobuf::Error),
}

/// Runs `delete`; returns the protobuf `DeleteResponse` to print. Warnings go to stderr, which containerd logs
/// (core/runtime/v2/binary.go, `Delete`).
pub fn run(flags: &Flags) -> Result<Vec<u8>, DeleteError> {
    // It fails only where a log is set up already.
    let _ = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .with_writer(io::stderr)
        .try_init();
    let bundle = match &flags.bundle {
        Some(bundle) => bundle.clone(),
        None => env::current_dir().map_err(DeleteError::NoBundle)?,
    };
    let pid = fs::read_to_string(bundle.join(PID_FILE))
        .ok()
        .and_then(|pid| pid.trim().parse().ok())
        .unwrap_or(0);
    let address = bundle::address(&bundle);
    let exit = match ask_server(flags, &bundle, address.as_deref())? {
        Some(exit) => exit,
        None => {
            let mut rests = Vec::new();
            let cleaned = clean_all(flags, &bundle, address.as_deref(), &mut rests);
            // What was taken over is handed on whatever failed: no other `delete` finds it.
            let handed = sweep_later(&rests).map_err(DeleteError::Sweep);
            cleaned.and(handed)?;
            None
        }
    };
    Ok(response(&exit.unwrap_or_else(|| Exit {
        pid,
        code: KILLED,
        at: nanoseconds(SystemTime::now()),
    }))?)
}

/// The live server's answer: `None` when no server lives, `Some(None)` when it knows no end of the container.
fn ask_server(flags: &Flags, bundle: &Path, address: Option<&str>) -> Result<Option<Option<Exit>>, DeleteError> {
    let Some(folder) = address.and_then(folder::of_address) else {
        return Ok(None);
    };
    let request = Request::Delete {
        namespace: flags.namespace.clone(),
        id: flags.id.clone(),
        bundle: bundle.to_owned(),
    };
    match control::ask(&folder::control(&folder), &request) {
        Ok(Reply::Deleted { exit }) => Ok(Some(exit)),
        Ok(_) => Ok(Some(None)),
        Err(ControlError::Refused(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Cleans what a dead server has left of the container, of its pod and of itself; what takes longer is added to `rests`.
fn clean_all(flags: &Flags, bundle: &Path, address: Option<&str>, rests: &mut Vec<Rest>) -> Result<(), DeleteError> {
    rests.extend(clean(bundle)?);
    // A dead server's pod: containerd before 2.4 calls `delete` for its sandbox only.
    for sibling in bundle::of_sandbox(bundle, &flags.id) {
        rests.extend(clean(&sibling)?);
    }
    if let Some(folder) = address.and_then(folder::of_address) {
        burial::bury(&folder).map_err(|cause| DeleteError::Bury { folder, cause })?;
    }
    Ok(())
}

/// Cleans a bundle; returns what is left to do.
fn clean(bundle: &Path) -> Result<Option<Rest>, DeleteError> {
    let cleaned = match remains::clean(bundle) {
        // Killed, but not gone yet: containerd does not wait for it, and removes the bundle.
        Err(cause) if [io::ErrorKind::TimedOut, io::ErrorKind::ResourceBusy].contains(&cause.kind()) => {
            record::take_rest(bundle)
        }
        cleaned => cleaned.map(|hooks| hooks.filter(Hooks::has_poststop).map(Rest::from)),
    };
    cleaned.map_err(|cause| DeleteError::Clean {
        bundle: bundle.to_owned(),
        cause,
    })
}

/// Hands `rests` to a process that containerd does not wait for. They hold environments and annotations, so they go by a
/// file: a command line is everybody's to read, and short.
fn sweep_later(rests: &[Rest]) -> io::Result<()> {
    if rests.is_empty() {
        return Ok(());
    }
    let input = memory::sealed("rests", &serde_json::to_vec(rests)?)?;
    Process::new("/proc/self/exe")
        .arg("sweep")
        .env_clear()
        .envs(env::var_os("PATH").map(|path| ("PATH", path)))
        .current_dir("/")
        .stdin(Stdio::from(input))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map(drop)
}

/// Nanoseconds since the epoch; 0 for a clock before it.
pub fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

fn response(exit: &Exit) -> Result<Vec<u8>, containerd_shim_protos::protobuf::Error> {
    const SECOND: u64 = 1_000_000_000;
    DeleteResponse {
        pid: exit.pid,
        exit_status: exit.code,
        exited_at: MessageField::some(Timestamp {
            seconds: i64::try_from(exit.at / SECOND).unwrap_or(i64::MAX),
            nanos: i32::try_from(exit.at % SECOND).unwrap_or(0),
            ..Timestamp::default()
        }),
        ..DeleteResponse::default()
    }
    .write_to_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_response_carries_pid_code_and_time() {
        let bytes = response(&Exit {
            pid: 7,
            code: 137,
            at: 1_700_000_000_000_000_005,
        })
        .unwrap();
        let response = DeleteResponse::parse_from_bytes(&bytes).unwrap();
        assert_eq!((response.pid, response.exit_status), (7, 137));
        assert_eq!(
            (response.exited_at.seconds, response.exited_at.nanos),
            (1_700_000_000, 5)
        );
    }
}
