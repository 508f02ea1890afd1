//! Who a process is: ids, capabilities, limits, OOM score.

use std::io;
use std::path::Path;

use rustix::process::{Gid, Resource, Rlimit, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// The ids a process takes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Ids {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub umask: Option<u32>,
}

/// The five capability sets of capabilities(7), as bit masks by capability number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Capabilities {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

/// The bit of a capability by its name without `CAP_`, `None` for one this build does not know.
pub fn capability(name: &str) -> Option<u64> {
    CapabilitySet::from_name(name).map(|set| set.bits())
}

/// Takes the ids and capabilities, in the order that keeps each step permitted. The process has one thread.
///
/// # Errors
///
/// The failed step's name with what its call says.
pub fn take(ids: &Ids, capabilities: &Capabilities) -> Result<(), (&'static str, io::Error)> {
    let step = |name: &'static str| move |error: rustix::io::Errno| (name, io::Error::from(error));
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if capabilities.bounding & (1 << number) == 0 {
            match rustix::thread::remove_capability_from_bounding_set(one) {
                // Past the kernel's last capability.
                Err(rustix::io::Errno::INVAL) => break,
                result => result.map_err(step("drop a capability from the bounding set"))?,
            }
        }
    }
    rustix::thread::set_keep_capabilities(true).map_err(step("keep capabilities"))?;
    let gid = Gid::from_raw(ids.gid);
    let groups: Vec<Gid> = ids.groups.iter().copied().map(Gid::from_raw).collect();
    rustix::thread::set_thread_groups(&groups).map_err(step("set the supplementary groups"))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(step("set the gid"))?;
    let uid = Uid::from_raw(ids.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(step("set the uid"))?;
    rustix::thread::set_keep_capabilities(false).map_err(step("stop keeping capabilities"))?;
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(capabilities.effective),
        permitted: CapabilitySet::from_bits_retain(capabilities.permitted),
        inheritable: CapabilitySet::from_bits_retain(capabilities.inheritable),
    };
    rustix::thread::set_capabilities(None, sets).map_err(step("set the capabilities"))?;
    rustix::thread::clear_ambient_capability_set().map_err(step("clear the ambient capabilities"))?;
    for number in 0..u64::BITS {
        if capabilities.ambient & (1 << number) != 0 {
            let one = CapabilitySet::from_bits_retain(1 << number);
            rustix::thread::configure_capability_in_ambient_set(one, true)
                .map_err(step("raise an ambient capability"))?;
        }
    }
    if let Some(umask) = ids.umask {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(umask));
    }
    Ok(())
}

/// One resource limit; the resource by its number in getrlimit(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Limit {
    pub resource: Name,
    pub soft: u64,
    pub hard: u64,
}

/// The resources of getrlimit(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Name {
    As,
    Core,
    Cpu,
    Data,
    Fsize,
    Locks,
    Memlock,
    Msgqueue,
    Nice,
    Nofile,
    Nproc,
    Rss,
    Rtprio,
    Rttime,
    Sigpending,
    Stack,
}

impl Name {
    fn resource(self) -> Resource {
        match self {
            Name::As => Resource::As,
            Name::Core => Resource::Core,
            Name::Cpu => Resource::Cpu,
            Name::Data => Resource::Data,
            Name::Fsize => Resource::Fsize,
            Name::Locks => Resource::Locks,
            Name::Memlock => Resource::Memlock,
            Name::Msgqueue => Resource::Msgqueue,
            Name::Nice => Resource::Nice,
            Name::Nofile => Resource::Nofile,
            Name::Nproc => Resource::Nproc,
            Name::Rss => Resource::Rss,
            Name::Rtprio => Resource::Rtprio,
            Name::Rttime => Resource::Rttime,
            Name::Sigpending => Resource::Sigpending,
            Name::Stack => Resource::Stack,
        }
    }
}

/// Sets a resource limit of this process. `u64::MAX` is no limit.
///
/// # Errors
///
/// What setrlimit(2) says.
pub fn limit(limit: Limit) -> io::Result<()> {
    let value = |value: u64| (value != u64::MAX).then_some(value);
    let rlimit = Rlimit {
        current: value(limit.soft),
        maximum: value(limit.hard),
    };
    Ok(rustix::process::setrlimit(limit.resource.resource(), rlimit)?)
}

/// Sets the OOM score adjustment, a file below `proc_self`. Where the process may not lower it (no
/// `CAP_SYS_RESOURCE`), the present one stays and `false` comes back.
///
/// # Errors
///
/// What open(2) and write(2) say besides `EACCES`.
pub fn adjust_oom_score(proc_self: &Path, adjustment: i32) -> io::Result<bool> {
    match std::fs::write(proc_self.join("oom_score_adj"), adjustment.to_string()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_known_by_their_names() {
        assert_eq!(capability("CHOWN"), Some(1));
        assert_eq!(capability("NET_BIND_SERVICE"), Some(1 << 10));
        assert_eq!(capability("CHECKPOINT_RESTORE"), Some(1 << 40));
        assert_eq!(capability("NO_SUCH"), None);
    }
}
