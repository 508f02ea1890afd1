//! Limits to be changed while a container runs, as containerd sends them: JSON to checked LinuxResources (pure).
//!
//! The kernel answers most nonsense with EINVAL, libcgroups drops some of it; here a field is refused by its name.

use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value};

use crate::sys::cgroup::Version;

/// Why limits are refused.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    #[error("the limits are not LinuxResources in JSON: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("{field} cannot be {value}: it must be {must}")]
    Value {
        field: String,
        value: String,
        must: &'static str,
    },
}

/// What a number may be.
struct Range {
    /// Its JSON pointer.
    field: &'static str,
    least: i64,
    most: i64,
    /// Allowed beside the range: -1 for no limit, 0 for no change.
    also: &'static [i64],
    must: &'static str,
}

const fn range(field: &'static str, least: i64, most: i64, also: &'static [i64], must: &'static str) -> Range {
    Range {
        field,
        least,
        most,
        also,
        must,
    }
}

const BYTES: &str = "a number of bytes, or -1 for no limit";
const MICROSECONDS: &str = "0 or more microseconds";

/// The bounds are the kernel's (cgroup-v1 and cgroup-v2 documentation, kernel/sched/core.c, block/blk-cgroup).
const RANGES: [Range; 15] = [
    range("/memory/limit", 1, i64::MAX, &[-1, 0], BYTES),
    range("/memory/reservation", 1, i64::MAX, &[-1, 0], BYTES),
    range("/memory/swap", 1, i64::MAX, &[-1, 0], BYTES),
    range("/memory/kernel", 1, i64::MAX, &[-1, 0], BYTES),
    range("/memory/kernelTCP", 1, i64::MAX, &[-1, 0], BYTES),
    range("/memory/swappiness", 0, 100, &[], "0 to 100"),
    range("/cpu/shares", 2, 262_144, &[0], "2 to 262144, or 0 for no change"),
    range(
        "/cpu/quota",
        1000,
        i64::MAX,
        &[-1, 0],
        "1000 microseconds or more, or -1 for no limit",
    ),
    range("/cpu/period", 1000, 1_000_000, &[0], "1000 to 1000000 microseconds"),
    range("/cpu/burst", 0, i64::MAX, &[], MICROSECONDS),
    range("/cpu/realtimeRuntime", 0, i64::MAX, &[-1], MICROSECONDS),
    range("/cpu/realtimePeriod", 0, i64::MAX, &[], MICROSECONDS),
    range("/cpu/idle", 0, 1, &[], "0 or 1"),
    range(
        "/pids/limit",
        0,
        i64::MAX,
        &[-1],
        "a number of processes, or -1 for no limit",
    ),
    range("/blockIO/weight", 10, 1000, &[0], "10 to 1000"),
];

/// Reads limits; devices are left out, a guest has none to open.
///
/// # Errors
///
/// When `json` is not LinuxResources, or a field's value can be no limit.
pub fn read(json: &[u8], version: Version) -> Result<LinuxResources, LimitError> {
    // A list would pass for LinuxResources too, field by field.
    let mut fields: Map<String, Value> = serde_json::from_slice(json)?;
    fields.remove("devices");
    let value = Value::Object(fields);
    for range in &RANGES {
        match value.pointer(range.field) {
            None | Some(Value::Null) => {}
            Some(found) if found.as_i64().is_some_and(|number| range.takes(number)) => {}
            Some(found) => return Err(refused(&range.field[1..].replace('/', "."), found, range.must)),
        }
    }
    let pages = value.get("hugepageLimits").and_then(Value::as_array);
    for limit in pages.into_iter().flatten().filter_map(|page| page.get("limit")) {
        if limit.as_u64().is_none() {
            return Err(refused("hugepageLimits.limit", limit, "a number of bytes"));
        }
    }
    let mut limits: LinuxResources = serde_json::from_value(value)?;
    check_lists(&limits)?;
    check_unified(&limits, version)?;
    check_swap(&mut limits)?;
    Ok(limits)
}

impl Range {
    fn takes(&self, number: i64) -> bool {
        (self.least..=self.most).contains(&number) || self.also.contains(&number)
    }
}

fn refused(field: &str, value: impl ToString, must: &'static str) -> LimitError {
    LimitError::Value {
        field: field.to_owned(),
        value: value.to_string(),
        must,
    }
}

/// Lists of cpus and memory nodes, `0-2,7` (cpuset(7)).
fn check_lists(limits: &LinuxResources) -> Result<(), LimitError> {
    let Some(cpu) = limits.cpu() else { return Ok(()) };
    for (field, list) in [("cpu.cpus", cpu.cpus()), ("cpu.mems", cpu.mems())] {
        let is_span = |span: &str| {
            let (first, last) = span.split_once('-').unwrap_or((span, span));
            matches!((first.parse::<u32>(), last.parse::<u32>()), (Ok(first), Ok(last)) if first <= last)
        };
        match list.as_deref() {
            Some(list) if !list.is_empty() && !list.split(',').all(|span| is_span(span.trim())) => {
                return Err(refused(field, format_args!("{list:?}"), "a list such as 0-2,7"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Files of the cgroup by name, which only v2 has.
fn check_unified(limits: &LinuxResources, version: Version) -> Result<(), LimitError> {
    for name in limits.unified().iter().flat_map(|unified| unified.keys()) {
        let must = match version {
            Version::V1 => "left out on cgroup v1",
            Version::V2 if name.contains('/') || !name.contains('.') => "the name of a file of the cgroup",
            Version::V2 => continue,
        };
        return Err(refused("unified", format_args!("{name:?}"), must));
    }
    Ok(())
}

/// The spec's swap is memory and swap together; 0 leaves it as it is.
fn check_swap(limits: &mut LinuxResources) -> Result<(), LimitError> {
    let Some(mut memory) = *limits.memory() else {
        return Ok(());
    };
    match (memory.swap(), memory.limit()) {
        (Some(0), _) => {
            memory.set_swap(None);
            limits.set_memory(Some(memory));
        }
        (Some(swap), Some(limit)) if swap != -1 && swap < limit => {
            return Err(refused(
                "memory.swap",
                swap,
                "memory.limit or more, it counts memory and swap",
            ));
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refusal(json: &str) -> String {
        read(json.as_bytes(), Version::V2).unwrap_err().to_string()
    }

    #[test]
    fn what_kubernetes_sends_is_taken_without_devices() {
        let json = r#"{"devices":[{"allow":false,"access":"rwm"}],
            "memory":{"limit":67108864,"swap":67108864},"pids":{},
            "cpu":{"shares":512,"quota":50000,"period":100000,"cpus":"0-1","mems":""},
            "hugepageLimits":[{"pageSize":"2MB","limit":0}],"unified":{"memory.oom.group":"1"}}"#;
        let limits = read(json.as_bytes(), Version::V2).unwrap();
        assert_eq!(limits.memory().unwrap().limit(), Some(64 << 20));
        assert_eq!(limits.cpu().as_ref().unwrap().quota(), Some(50_000));
        assert!(limits.devices().is_none());
        read(br#"{"memory":{"limit":-1,"swap":-1},"cpu":{"quota":-1}}"#, Version::V1).unwrap();
        assert_eq!(read(b"{}", Version::V1).unwrap(), LinuxResources::default());
    }

    #[test]
    fn a_swap_of_zero_changes_nothing() {
        let limits = read(br#"{"memory":{"limit":5000,"swap":0}}"#, Version::V2).unwrap();
        assert_eq!(limits.memory().unwrap().swap(), None);
    }

    #[test]
    fn nonsense_is_refused_by_field_and_value() {
        let cases = [
            (r#"{"memory":{"limit":-5}}"#, "memory.limit cannot be -5"),
            (r#"{"memory":{"limit":1.5}}"#, "memory.limit cannot be 1.5"),
            (r#"{"memory":{"limit":"64Mi"}}"#, "memory.limit cannot be \"64Mi\""),
            (
                r#"{"memory":{"limit":18446744073709551615}}"#,
                "memory.limit cannot be 18446744073709551615",
            ),
            (r#"{"memory":{"limit":5000,"swap":10}}"#, "memory.swap cannot be 10"),
            (r#"{"memory":{"swappiness":101}}"#, "memory.swappiness cannot be 101"),
            (r#"{"cpu":{"shares":-5}}"#, "cpu.shares cannot be -5"),
            (r#"{"cpu":{"shares":1}}"#, "cpu.shares cannot be 1"),
            (r#"{"cpu":{"quota":-2}}"#, "cpu.quota cannot be -2"),
            (r#"{"cpu":{"period":999}}"#, "cpu.period cannot be 999"),
            (r#"{"cpu":{"cpus":"two"}}"#, "cpu.cpus cannot be \"two\""),
            (r#"{"cpu":{"mems":"3-1"}}"#, "cpu.mems cannot be \"3-1\""),
            (r#"{"pids":{"limit":-2}}"#, "pids.limit cannot be -2"),
            (
                r#"{"hugepageLimits":[{"pageSize":"2MB","limit":-1}]}"#,
                "hugepageLimits.limit cannot be -1",
            ),
            (
                r#"{"unified":{"../cgroup.procs":"1"}}"#,
                "unified cannot be \"../cgroup.procs\"",
            ),
        ];
        for (json, words) in cases {
            assert!(refusal(json).starts_with(words), "{json}: {}", refusal(json));
        }
        let unified = read(br#"{"unified":{"memory.high":"1"}}"#, Version::V1).unwrap_err();
        assert!(unified.to_string().contains("cgroup v1"), "{unified}");
    }

    #[test]
    fn what_is_not_linux_resources_is_refused() {
        for json in ["", "{", "7", "[]", r#"{"cpu":7}"#] {
            assert!(
                refusal(json).starts_with("the limits are not LinuxResources"),
                "{json:?}"
            );
        }
    }
}
