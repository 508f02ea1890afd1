//! A cgroup's limits and figures through libcgroups; the figures in the two messages that CRI knows: any other type
//! fails the whole ListContainerStats call.

use std::io;

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::{Message, MessageField};
use libcgroups::common::{AnyCgroupManager, CgroupConfig, CgroupManager, ControllerOpt, create_cgroup_manager};
use libcgroups::stats::Stats;
use oci_spec::runtime::LinuxResources;

use crate::sys::cgroup::{Cgroup, Version};
use crate::sys::oom;

/// libcgroups' handle of a cgroup: it knows how limits and figures are spelled on v1 and v2.
///
/// # Errors
///
/// When the hierarchies cannot be read.
pub fn manager(cgroup: &Cgroup) -> io::Result<AnyCgroupManager> {
    create_cgroup_manager(CgroupConfig {
        cgroup_path: cgroup.path.clone(),
        systemd_cgroup: false,
        container_name: String::new(),
    })
    .map_err(io::Error::other)
}

/// Applies limits to `cgroup`.
///
/// # Errors
///
/// What the controller says of the limit, with the file and the value.
pub fn apply(cgroup: &Cgroup, resources: &LinuxResources) -> Result<(), String> {
    let options = ControllerOpt {
        resources,
        disable_oom_killer: false,
        oom_score_adj: None,
        freezer_state: None,
    };
    manager(cgroup)
        .map_err(|error| error.to_string())?
        .apply(&options)
        .map_err(|error| error.to_string())
}

/// The figures of `cgroup`: the message's type URL as containerd's typeurl names it, and its bytes.
///
/// # Errors
///
/// When a file of the cgroup cannot be read.
pub fn metrics(cgroup: &Cgroup) -> io::Result<(String, Vec<u8>)> {
    let stats = manager(cgroup)?.stats().map_err(io::Error::other)?;
    // containerd 2.3 and later ask for them at exit code 137, for the reason OOMKilled.
    let kills = oom::kills(cgroup)?;
    let (kind, bytes) = match cgroup.version {
        Version::V1 => (
            "io.containerd.cgroups.v1.Metrics",
            version1(&stats, kills).write_to_bytes(),
        ),
        Version::V2 => (
            "io.containerd.cgroups.v2.Metrics",
            version2(&stats, kills).write_to_bytes(),
        ),
    };
    Ok((kind.to_owned(), bytes.map_err(io::Error::other)?))
}

fn figure(stats: &Stats, name: &str) -> u64 {
    stats.memory.stats.get(name).copied().unwrap_or_default()
}

/// CPU times are nanoseconds on v1.
fn version1(stats: &Stats, kills: u64) -> v1::Metrics {
    let mut usage = v1::CPUUsage::new();
    usage.total = stats.cpu.usage.usage_total;
    usage.user = stats.cpu.usage.usage_user;
    usage.kernel = stats.cpu.usage.usage_kernel;
    usage.per_cpu = stats.cpu.usage.per_core_usage_total.clone();
    let mut throttling = v1::Throttle::new();
    throttling.periods = stats.cpu.throttling.periods;
    throttling.throttled_periods = stats.cpu.throttling.throttled_periods;
    throttling.throttled_time = stats.cpu.throttling.throttled_time;
    let mut cpu = v1::CPUStat::new();
    cpu.usage = MessageField::some(usage);
    cpu.throttling = MessageField::some(throttling);
    let entry = |data: &libcgroups::stats::MemoryData| {
        let mut entry = v1::MemoryEntry::new();
        entry.usage = data.usage;
        entry.max = data.max_usage;
        entry.failcnt = data.fail_count;
        entry.limit = data.limit;
        MessageField::some(entry)
    };
    let mut memory = v1::MemoryStat::new();
    memory.usage = entry(&stats.memory.memory);
    memory.swap = entry(&stats.memory.memswap);
    memory.kernel = entry(&stats.memory.kernel);
    memory.cache = figure(stats, "cache");
    memory.rss = figure(stats, "rss");
    memory.mapped_file = figure(stats, "mapped_file");
    memory.pg_fault = figure(stats, "pgfault");
    memory.pg_maj_fault = figure(stats, "pgmajfault");
    memory.inactive_anon = figure(stats, "inactive_anon");
    memory.active_anon = figure(stats, "active_anon");
    memory.inactive_file = figure(stats, "inactive_file");
    memory.active_file = figure(stats, "active_file");
    memory.total_cache = figure(stats, "total_cache");
    memory.total_rss = figure(stats, "total_rss");
    memory.total_inactive_file = figure(stats, "total_inactive_file");
    memory.total_active_file = figure(stats, "total_active_file");
    memory.total_pg_fault = figure(stats, "total_pgfault");
    memory.total_pg_maj_fault = figure(stats, "total_pgmajfault");
    let mut pids = v1::PidsStat::new();
    pids.current = stats.pids.current;
    pids.limit = stats.pids.limit;
    let mut metrics = v1::Metrics::new();
    metrics.cpu = MessageField::some(cpu);
    metrics.memory = MessageField::some(memory);
    metrics.pids = MessageField::some(pids);
    let mut oom = v1::MemoryOomControl::new();
    oom.oom_kill = kills;
    metrics.memory_oom_control = MessageField::some(oom);
    metrics
}

/// CPU times are microseconds on v2; libcgroups gives them as the kernel does.
fn version2(stats: &Stats, kills: u64) -> v2::Metrics {
    let mut cpu = v2::CPUStat::new();
    cpu.usage_usec = stats.cpu.usage.usage_total;
    cpu.user_usec = stats.cpu.usage.usage_user;
    cpu.system_usec = stats.cpu.usage.usage_kernel;
    cpu.nr_periods = stats.cpu.throttling.periods;
    cpu.nr_throttled = stats.cpu.throttling.throttled_periods;
    cpu.throttled_usec = stats.cpu.throttling.throttled_time;
    let mut memory = v2::MemoryStat::new();
    memory.usage = stats.memory.memory.usage;
    memory.usage_limit = stats.memory.memory.limit;
    memory.swap_usage = stats.memory.memswap.usage;
    memory.swap_limit = stats.memory.memswap.limit;
    memory.anon = figure(stats, "anon");
    memory.file = figure(stats, "file");
    memory.inactive_file = figure(stats, "inactive_file");
    memory.active_file = figure(stats, "active_file");
    memory.pgfault = figure(stats, "pgfault");
    memory.pgmajfault = figure(stats, "pgmajfault");
    let mut pids = v2::PidsStat::new();
    pids.current = stats.pids.current;
    pids.limit = stats.pids.limit;
    let mut metrics = v2::Metrics::new();
    metrics.cpu = MessageField::some(cpu);
    metrics.memory = MessageField::some(memory);
    metrics.pids = MessageField::some(pids);
    let mut events = v2::MemoryEvents::new();
    events.oom_kill = kills;
    metrics.memory_events = MessageField::some(events);
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_working_set_can_be_computed_from_the_memory_figures() {
        let mut stats = Stats::default();
        stats.memory.memory.usage = 100;
        stats.memory.stats.insert("total_inactive_file".to_owned(), 40);
        let memory = version1(&stats, 0).memory.unwrap();
        assert_eq!((memory.usage.usage, memory.total_inactive_file), (100, 40));
    }

    #[test]
    fn oom_kills_stand_where_containerd_looks_for_the_reason() {
        let stats = Stats::default();
        assert_eq!(version1(&stats, 2).memory_oom_control.oom_kill, 2);
        assert_eq!(version2(&stats, 2).memory_events.oom_kill, 2);
    }

    #[test]
    fn unified_cpu_time_is_in_microseconds() {
        let mut stats = Stats::default();
        stats.cpu.usage.usage_total = 5;
        assert_eq!(version2(&stats, 0).cpu.usage_usec, 5);
    }
}
