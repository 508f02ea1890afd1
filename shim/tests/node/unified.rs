//! What only the unified hierarchy has: files by name, one end for a whole group, limits of io, controllers by level.
//!
//! These need cgroup v2, so `make test-cgroup2` runs them; what both versions have is tested in `control`, on both.

use std::fs;
use std::os::linux::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;

use serde_json::json;

use crate::containerd::Node;
use crate::control::{Events, beside};
use crate::sandbox::idle;

/// The folder of a process's cgroup.
fn folder(pid: u32) -> PathBuf {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    PathBuf::from(format!("/sys/fs/cgroup{}", text.trim().strip_prefix("0::").unwrap()))
}

fn file(pid: u32, name: &str) -> String {
    fs::read_to_string(folder(pid).join(name)).unwrap().trim().to_owned()
}

/// An idle guest with `resources` for its cgroup.
fn limited(node: &Node, resources: serde_json::Value) -> (String, u32) {
    idle(node, |spec| spec["linux"]["resources"] = resources)
}

on_newest_containerd! {
    #[ignore = "needs cgroup v2: make test-cgroup2"]
    fn limits_are_written_as_the_unified_hierarchy_spells_them(node) {
        let (id, pid) = limited(node, json!({
            "memory": {"limit": 64 << 20, "reservation": 16 << 20},
            "cpu": {"shares": 1024, "quota": 20_000, "period": 50_000, "cpus": "0-1", "mems": "0"},
            "pids": {"limit": 33},
            "unified": {"memory.high": (48 << 20).to_string(), "memory.oom.group": "1"},
        }));
        for (name, value) in [("memory.max", (64 << 20).to_string()), ("memory.low", (16 << 20).to_string()),
                              ("memory.high", (48 << 20).to_string()), ("memory.oom.group", "1".into()),
                              ("cpu.weight", "100".into()), ("cpu.max", "20000 50000".into()),
                              ("cpuset.cpus", "0-1".into()), ("cpuset.mems", "0".into()), ("pids.max", "33".into())] {
            assert_eq!(file(pid, name), value, "{name}");
        }
        node.remove(&id);
    }

    #[ignore = "needs cgroup v2: make test-cgroup2"]
    fn a_disk_may_be_read_at_a_rate_and_no_faster(node) {
        let disk = fs::metadata("/dev/nvme0n1").unwrap().st_rdev();
        let (major, minor) = (rustix::fs::major(disk), rustix::fs::minor(disk));
        let (id, pid) = limited(node, json!({"blockIO": {
            "throttleReadBpsDevice": [{"major": major, "minor": minor, "rate": 1 << 20}],
        }}));
        assert_eq!(file(pid, "io.max"), format!("{major}:{minor} rbps={} wbps=max riops=max wiops=max", 1 << 20));
        node.remove(&id);
    }

    #[ignore = "needs cgroup v2: make test-cgroup2"]
    fn parents_hand_down_their_controllers_and_the_containers_own_hands_down_none(node) {
        let (id, pid) = limited(node, json!({}));
        let own = folder(pid);
        for controller in ["cpu", "memory", "pids", "io", "cpuset"] {
            let enabled = fs::read_to_string(own.parent().unwrap().join("cgroup.subtree_control")).unwrap();
            assert!(enabled.split_whitespace().any(|one| one == controller), "{controller} is not in {enabled}");
        }
        assert_eq!(file(pid, "cgroup.subtree_control"), "");
        node.remove(&id);
    }

    #[ignore = "needs cgroup v2: make test-cgroup2"]
    fn a_group_that_ends_as_one_takes_the_guest_along_with_whoever_used_up_the_memory(node) {
        let events = Events::listen(node);
        let (id, pid) = limited(node, json!({
            "memory": {"limit": 64 << 20}, "unified": {"memory.oom.group": "1"},
        }));
        let killed = beside(pid, "tail /dev/zero").wait().unwrap();
        assert_eq!(killed.signal(), Some(9));
        node.wait_until(&id, "STOPPED");
        assert_eq!(node.delete(&id), 137);
        let events = events.until("delete");
        assert_eq!(events[..3], ["create", "start", "oom"], "{events:?}");
        assert_eq!(events[events.len() - 2..], ["exit", "delete"], "{events:?}");
    }
}
