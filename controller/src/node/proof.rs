//! The facts under which a proof holds: a change of any of them ends it.

use std::fs;
use std::path::Path;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use sha2::{Digest, Sha256};

use crate::api::wasm_node::Proof;

use super::config::Files;
use super::host::{Containerd, Host, HostError};
use super::layout::Layout;
use super::shim;

/// What has to stay as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub boot_id: String,
    /// containerd's start, in seconds since the epoch; the kernel's estimate of the boot's time may drift by one.
    pub started: i64,
    pub config_hash: String,
    pub shim_digest: String,
}

impl Facts {
    /// Looks at the host.
    pub fn look(host: &Host, containerd: &Containerd, layout: &Layout) -> Result<Facts, HostError> {
        Ok(Facts {
            boot_id: host.boot_id()?,
            started: since_epoch(host, containerd.started)?,
            config_hash: config_hash(&containerd.configuration.files),
            shim_digest: shim::digest_of(&layout.stable()).unwrap_or_default(),
        })
    }

    /// Looks at a host whose containerd's configuration cannot be read, or that has no containerd just now: what cannot
    /// be told is as `proof` says. A file that does not parse takes no handler from the containerd that runs.
    pub async fn rest(host: &Host, layout: &Layout, proof: &Proof, pod_uid: Option<&str>) -> Result<Facts, HostError> {
        Ok(Facts {
            boot_id: host.boot_id()?,
            started: match host.listener_started(pod_uid).await {
                Some(started) => since_epoch(host, started)?,
                None => proof.containerd_started.0.as_second(),
            },
            config_hash: proof.config_hash.clone(),
            shim_digest: shim::digest_of(&layout.stable()).unwrap_or_default(),
        })
    }

    /// Whether `proof` was made under these facts.
    pub fn hold(&self, proof: &Proof) -> bool {
        proof.boot_id == self.boot_id
            && proof.containerd_started.0.as_second().abs_diff(self.started) <= 2
            && proof.config_hash == self.config_hash
            && proof.shim_digest == self.shim_digest
    }

    /// The proof that a module ran just now.
    pub fn prove(self, wish: String, shim_version: String, previous: Option<&Proof>) -> Proof {
        let started = match previous {
            // The same start is told by the same time.
            Some(proof) if self.hold(proof) => proof.containerd_started.clone(),
            _ => Time(Timestamp::from_second(self.started).unwrap_or_default()),
        };
        Proof {
            wish,
            boot_id: self.boot_id,
            containerd_started: started,
            config_hash: self.config_hash,
            shim_digest: self.shim_digest,
            shim_version,
            proven_at: now(),
        }
    }
}

/// The time, to the second: what the API server keeps of it.
pub fn now() -> Time {
    Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default())
}

fn config_hash(files: &Files) -> String {
    let mut hash = Sha256::new();
    for file in files.loaded() {
        hash.update(format!("\0{}\0{}", file.path.display(), file.text));
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A time in clock ticks after the boot, in seconds since the epoch.
fn since_epoch(host: &Host, started: u64) -> Result<i64, HostError> {
    Ok(boot_time(&host.processes)? + i64::try_from(started / ticks()).unwrap_or(0))
}

/// `btime` of proc_stat(5), in seconds since the epoch.
fn boot_time(processes: &Path) -> Result<i64, HostError> {
    let path = processes.join("stat");
    let text = fs::read_to_string(&path).map_err(|cause| HostError::Read {
        path: path.clone(),
        cause,
    })?;
    let line = text.lines().find_map(|line| line.strip_prefix("btime "));
    line.and_then(|time| time.trim().parse().ok()).ok_or(HostError::Proc {
        path,
        text: "no btime".to_owned(),
    })
}

fn ticks() -> u64 {
    rustix::param::clock_ticks_per_second().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            boot_id: "boot".into(),
            started: 1_000,
            config_hash: "config".into(),
            shim_digest: "shim".into(),
        }
    }

    #[test]
    fn a_proof_holds_until_a_fact_changes() {
        let proof = facts().prove("wish".into(), "1".into(), None);
        let holds = |change: fn(&mut Facts)| {
            let mut facts = facts();
            change(&mut facts);
            facts.hold(&proof)
        };
        assert!(holds(|_| ()));
        assert!(holds(|facts| facts.started += 1), "the kernel's estimate drifts");
        assert!(!holds(|facts| facts.started += 3));
        assert!(!holds(|facts| facts.boot_id.push('x')));
        assert!(!holds(|facts| facts.config_hash.push('x')));
        assert!(!holds(|facts| facts.shim_digest.push('x')));
    }

    #[test]
    fn a_drifting_clock_does_not_change_the_told_start() {
        let first = facts().prove("wish".into(), "1".into(), None);
        let later = Facts {
            started: 1_001,
            ..facts()
        };
        let second = later.prove("wish".into(), "1".into(), Some(&first));
        assert_eq!(first.containerd_started, second.containerd_started);
    }

    #[test]
    fn the_machine_tells_when_it_was_booted() {
        assert!(boot_time(Path::new("/proc")).unwrap() > 1_500_000_000);
    }
}
