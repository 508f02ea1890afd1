//! The systemd scope that `linux.cgroupsPath` names as `slice:prefix:name`: its unit, its cgroup, its properties (pure).
//!
//! The names and the mapping of limits are runc's, so that kubelet, cAdvisor and systemd-cgls find what they expect.

use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use crate::sys::cgroup::Version;

/// The longest name of a unit (systemd.unit(5)).
const NAME_MAX: usize = 255;

/// No limit, as systemd's properties have it.
const INFINITY: u64 = u64::MAX;

/// The kernel's period where the spec has none (sched-bwc in the kernel's documentation), microseconds.
const DEFAULT_PERIOD: u64 = 100_000;

/// A scope of systemd's that holds one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    pub slice: String,
    /// The name of the unit, `prefix-name.scope`.
    pub unit: String,
}

/// A property of a unit, as org.freedesktop.systemd1(5) names and types it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Property {
    Number(&'static str, u64),
    /// A set of cpus or memory nodes, one bit each, the first in the lowest bit of the first byte.
    Set(&'static str, Vec<u8>),
}

impl Scope {
    /// Reads `slice:prefix:name`; an empty slice is `system.slice`. The error is the rule that was broken.
    pub fn parse(path: &str) -> Result<Scope, &'static str> {
        let [slice, prefix, name] = path.split(':').collect::<Vec<_>>()[..] else {
            return Err("a path with colons is slice:prefix:name");
        };
        let slice = if slice.is_empty() { "system.slice" } else { slice };
        let unit = format!("{prefix}-{name}.scope");
        if levels(slice).is_none() {
            return Err("the first part must be the name of a slice, such as kubepods-besteffort.slice");
        }
        if name.is_empty() || name.ends_with(".slice") {
            return Err("the last part must be a name, not a slice: a container lives in a scope");
        }
        if unit.len() > NAME_MAX || !unit.bytes().all(is_unit_byte) {
            return Err("the scope's name must be at most 255 letters, digits or :-_.\\ (systemd.unit(5))");
        }
        Ok(Scope {
            slice: slice.to_owned(),
            unit,
        })
    }

    /// The scope's cgroup below each hierarchy's root, where systemd's own is `root`.
    pub fn path(&self, root: &Path) -> PathBuf {
        let mut path = root.to_path_buf();
        path.extend(levels(&self.slice).into_iter().flatten());
        path.join(&self.unit)
    }
}

fn is_unit_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b":-_.\\".contains(&byte)
}

/// The folders of a slice: `a-b.slice` is in `a.slice` (systemd.slice(5)). Nothing for what is no slice's name.
fn levels(slice: &str) -> Option<Vec<String>> {
    let name = slice.strip_suffix(".slice")?;
    if name == "-" {
        return Some(Vec::new());
    }
    if name.is_empty() || !name.bytes().all(is_unit_byte) || name.split('-').any(str::is_empty) {
        return None;
    }
    let ends = name.match_indices('-').map(|(end, _)| end).chain([name.len()]);
    Some(ends.map(|end| format!("{}.slice", &name[..end])).collect())
}

/// systemd's own cgroup, from the text of `/proc/1/cgroup`: in a container with systemd it is not the root.
pub fn root(memberships: &str) -> PathBuf {
    let of = |controllers: &str| {
        memberships
            .lines()
            .find_map(|line| line.split_once(':')?.1.strip_prefix(controllers)?.strip_prefix(':'))
    };
    let own = of("name=systemd").or_else(|| of("")).unwrap_or("/");
    // systemd lives in a scope of its own below it, since version 226.
    let root = own.strip_suffix("/init.scope").unwrap_or(own);
    Path::new("/").join(root)
}

/// The limits among `resources` that systemd would overwrite with its own idea of them when it reloads.
pub fn properties(resources: &LinuxResources, version: Version) -> Vec<Property> {
    let mut properties = Vec::new();
    let mut number = |name, value| properties.push(Property::Number(name, value));
    if let Some(memory) = resources.memory() {
        if let Some(limit) = memory.limit().filter(|limit| *limit != 0) {
            let name = match version {
                Version::V1 => "MemoryLimit",
                Version::V2 => "MemoryMax",
            };
            number(name, unlimited(limit));
        }
        if version == Version::V2 {
            if let Some(low) = memory.reservation().filter(|low| *low != 0) {
                number("MemoryLow", unlimited(low));
            }
            match (memory.swap(), memory.limit()) {
                (Some(swap), _) if swap < 0 => number("MemorySwapMax", INFINITY),
                // The spec's swap counts memory too.
                (Some(swap), Some(limit)) if limit > 0 && swap >= limit => {
                    number("MemorySwapMax", unlimited(swap - limit));
                }
                _ => {}
            }
        }
    }
    if let Some(cpu) = resources.cpu() {
        if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
            match version {
                Version::V1 => number("CPUShares", shares),
                Version::V2 => number("CPUWeight", weight(shares)),
            }
        }
        if let Some(period) = cpu.period().filter(|period| *period != 0) {
            number("CPUQuotaPeriodUSec", period);
        }
        if let Some(quota) = cpu.quota().filter(|quota| *quota != 0) {
            number("CPUQuotaPerSecUSec", quota_per_second(quota, cpu.period()));
        }
    }
    if let Some(limit) = resources.pids().map(|pids| pids.limit()).filter(|limit| *limit != 0) {
        number("TasksMax", unlimited(limit));
    }
    // On v1 systemd does not manage cpusets.
    if let (Version::V2, Some(cpu)) = (version, resources.cpu()) {
        for (name, list) in [("AllowedCPUs", cpu.cpus()), ("AllowedMemoryNodes", cpu.mems())] {
            if let Some(set) = list.as_deref().and_then(set) {
                properties.push(Property::Set(name, set));
            }
        }
    }
    properties
}

fn unlimited(limit: i64) -> u64 {
    u64::try_from(limit).unwrap_or(INFINITY)
}

/// A quota for a second, in whole percents of a cpu, rounded up: systemd keeps no less over a reload.
fn quota_per_second(quota: i64, period: Option<u64>) -> u64 {
    const SECOND: u128 = 1_000_000;
    const PERCENT: u128 = SECOND / 100;
    let Some(quota) = u64::try_from(quota).ok() else {
        return INFINITY;
    };
    let period = period.filter(|period| *period != 0).unwrap_or(DEFAULT_PERIOD);
    let exact = u128::from(quota) * SECOND / u128::from(period);
    u64::try_from(exact.div_ceil(PERCENT) * PERCENT).unwrap_or(INFINITY)
}

/// The v2 weight of v1 `shares`, by the curve of runc and libcgroups through (2, 1), (1024, 100) and (262144, 10000).
fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
        }
    }
}

/// A list of cpus or nodes, `0-2,7` (cpuset(7)), as bits; nothing for an empty list or what is none.
fn set(list: &str) -> Option<Vec<u8>> {
    /// More than any kernel counts (CONFIG_NR_CPUS is at most 8192): a longer list costs no memory here.
    const MOST: usize = 1 << 16;
    let mut bits = Vec::new();
    for span in list.split(',').map(str::trim).filter(|span| !span.is_empty()) {
        let (first, last) = span.split_once('-').unwrap_or((span, span));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        if last >= MOST {
            return None;
        }
        for number in first..=last {
            if bits.len() <= number / 8 {
                bits.resize(number / 8 + 1, 0);
            }
            bits[number / 8] |= 1 << (number % 8);
        }
    }
    (!bits.is_empty()).then_some(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_lies_in_the_folders_of_its_slice() {
        let path = |text| Scope::parse(text).unwrap().path(Path::new("/"));
        assert_eq!(path("system.slice:cri:x"), Path::new("/system.slice/cri-x.scope"));
        assert_eq!(path(":cri:x"), Path::new("/system.slice/cri-x.scope"));
        assert_eq!(path("-.slice:cri:x"), Path::new("/cri-x.scope"));
        assert_eq!(
            path("kubepods-besteffort-pod12_3.slice:cri-containerd:77"),
            Path::new(
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod12_3.slice/cri-containerd-77.scope"
            )
        );
        let nested = Scope::parse("a.slice:p:n").unwrap().path(Path::new("/docker/7"));
        assert_eq!(nested, Path::new("/docker/7/a.slice/p-n.scope"));
    }

    #[test]
    fn what_names_no_scope_is_refused() {
        let long = format!("a.slice:p:{}", "n".repeat(250));
        for text in [
            "a:b",
            "a.slice:b:c:d",
            "a:p:n",
            ".slice:p:n",
            "a--b.slice:p:n",
            "-a.slice:p:n",
            "../a.slice:p:n",
            "a.slice:p:",
            "a.slice:p:n.slice",
            "a.slice:p:n/../../x",
            "a.slice:p q:n",
            &long,
        ] {
            assert!(Scope::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn systemds_own_cgroup_is_found_on_both_versions() {
        assert_eq!(root("0::/init.scope\n"), Path::new("/"));
        assert_eq!(
            root("9:memory:/x\n1:name=systemd:/docker/7/init.scope\n0::/\n"),
            Path::new("/docker/7")
        );
        assert_eq!(root("1:name=systemd:/\n"), Path::new("/"));
    }

    fn of(json: &str, version: Version) -> Vec<Property> {
        properties(&serde_json::from_str(json).unwrap(), version)
    }

    #[test]
    fn limits_become_properties_of_each_version() {
        let json = r#"{"memory":{"limit":67108864,"reservation":1048576,"swap":100663296},
            "cpu":{"shares":1024,"quota":25000,"period":50000,"cpus":"0-1,9","mems":"0"},"pids":{"limit":32}}"#;
        use Property::{Number, Set};
        assert_eq!(
            of(json, Version::V2),
            [
                Number("MemoryMax", 64 << 20),
                Number("MemoryLow", 1 << 20),
                Number("MemorySwapMax", 32 << 20),
                Number("CPUWeight", 100),
                Number("CPUQuotaPeriodUSec", 50_000),
                Number("CPUQuotaPerSecUSec", 500_000),
                Number("TasksMax", 32),
                Set("AllowedCPUs", vec![0b11, 0b10]),
                Set("AllowedMemoryNodes", vec![1]),
            ]
        );
        assert_eq!(
            of(json, Version::V1),
            [
                Number("MemoryLimit", 64 << 20),
                Number("CPUShares", 1024),
                Number("CPUQuotaPeriodUSec", 50_000),
                Number("CPUQuotaPerSecUSec", 500_000),
                Number("TasksMax", 32),
            ]
        );
    }

    #[test]
    fn minus_one_is_no_limit_and_zero_no_change() {
        let none = r#"{"memory":{"limit":-1,"swap":-1},"cpu":{"quota":-1},"pids":{"limit":-1}}"#;
        for property in of(none, Version::V2) {
            assert!(matches!(property, Property::Number(_, INFINITY)), "{property:?}");
        }
        let zero = r#"{"memory":{"limit":0},"cpu":{"shares":0,"quota":0,"period":0,"cpus":""},"pids":{"limit":0}}"#;
        assert_eq!(of(zero, Version::V2), []);
    }

    #[test]
    fn a_quota_is_rounded_up_to_whole_percents() {
        assert_eq!(quota_per_second(2_000, None), 20_000);
        assert_eq!(quota_per_second(2_500, Some(100_000)), 30_000);
        assert_eq!(quota_per_second(i64::MAX, Some(1)), INFINITY);
    }

    #[test]
    fn weights_keep_the_ends_and_the_defaults_of_shares() {
        assert_eq!([2, 1024, 262_144].map(weight), [1, 100, 10_000]);
        // libcgroups' own test has this pair.
        assert_eq!(weight(22_000), 1204);
    }

    #[test]
    fn a_list_that_is_none_is_no_set() {
        for list in ["", "x", "1-x", "4294967295"] {
            assert_eq!(set(list), None, "{list}");
        }
    }
}
