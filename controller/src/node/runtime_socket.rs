//! Which containerd runs the pods of a node: the one whose shim is the parent of the agent's own process.
//!
//! containerd starts each shim with `-namespace NAMESPACE -id ID -address SOCKET` (containerd, `core/runtime/v2/shim.go`),
//! and a container's first process is a child of its shim. So the socket is known wherever a distribution puts it.

use std::fs;
use std::path::{Path, PathBuf};

/// CRI's namespace in containerd.
const CRI_NAMESPACE: &str = "k8s.io";
/// Where containerd listens by default, and in k3s and RKE2, k0s, and MicroK8s.
pub const KNOWN: [&str; 4] = [
    "/run/containerd/containerd.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/k0s/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
];
/// More ancestors than any container's process has below its shim.
const MAX_ANCESTORS: usize = 32;

/// What runs the container of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parent {
    /// The CRI plugin of the containerd at this socket.
    Containerd(PathBuf),
    /// Something else, by its name.
    Other(&'static str),
}

/// What runs the container of the process `pid` (a number, or `self`), by its ancestors; none when none of them is
/// a shim. `processes` is a procfs.
pub fn parent(processes: &Path, pid: &str) -> Option<Parent> {
    let mut pid = pid.to_owned();
    for _ in 0..MAX_ANCESTORS {
        pid = parent_id(processes, &pid)?;
        let arguments = command_line(processes, &pid);
        if let Some(shim) = Shim::parse(&arguments) {
            return Some(match shim.namespace.as_str() {
                CRI_NAMESPACE => Parent::Containerd(shim.address),
                _ => Parent::Other("Docker"),
            });
        }
        if program(&arguments).starts_with("conmon") {
            return Some(Parent::Other("CRI-O"));
        }
    }
    None
}

/// The sockets of the containerds whose shims run containers for CRI in this pid namespace, then the known ones.
pub fn candidates(processes: &Path) -> Vec<PathBuf> {
    let pid_namespace = |pid: &str| fs::read_link(processes.join(pid).join("ns/pid")).ok();
    let ours = pid_namespace("self");
    let entries = fs::read_dir(processes).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .filter_map(|pid| Some((Shim::parse(&command_line(processes, &pid))?, pid)))
        // A node that runs in a container of this one has a containerd of its own.
        .filter(|(shim, pid)| shim.namespace == CRI_NAMESPACE && pid_namespace(pid) == ours)
        .map(|(shim, _)| shim.address)
        .collect();
    found.sort();
    found.dedup();
    let known = KNOWN.map(PathBuf::from).into_iter();
    let known: Vec<PathBuf> = known.filter(|socket| !found.contains(socket)).collect();
    found.extend(known);
    found
}

/// What a shim was started with.
struct Shim {
    namespace: String,
    address: PathBuf,
}

impl Shim {
    /// Reads a command line; nothing when it is no shim's.
    fn parse(arguments: &[String]) -> Option<Shim> {
        if !program(arguments).starts_with("containerd-shim") {
            return None;
        }
        Some(Shim {
            namespace: flag(arguments, "namespace")?,
            address: flag(arguments, "address")?.into(),
        })
    }
}

/// The value of a flag as Go's package flag takes it: `-name value`, `-name=value`, or with two dashes.
fn flag(arguments: &[String], name: &str) -> Option<String> {
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
            continue;
        };
        match flag.split_once('=') {
            Some((flag, value)) if flag == name => return Some(value.to_owned()),
            None if flag == name => return arguments.next().cloned(),
            _ => {}
        }
    }
    None
}

/// The file name of the program of a command line.
fn program(arguments: &[String]) -> &str {
    let program = arguments.first().map(String::as_str).unwrap_or_default();
    program.rsplit('/').next().unwrap_or_default()
}

fn command_line(processes: &Path, pid: &str) -> Vec<String> {
    let bytes = fs::read(processes.join(pid).join("cmdline")).unwrap_or_default();
    let arguments = bytes.split(|byte| *byte == 0);
    arguments
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect()
}

/// The parent of a process, by proc_pid_stat(5).
fn parent_id(processes: &Path, pid: &str) -> Option<String> {
    let text = fs::read_to_string(processes.join(pid).join("stat")).ok()?;
    // The name, in parentheses, may have spaces and parentheses; the state follows it, and then the parent.
    let (_, rest) = text.rsplit_once(") ")?;
    let parent = rest.split(' ').nth(1)?;
    (parent != "0").then(|| parent.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A procfs with these processes: pid, parent, command line.
    fn processes(all: &[(&str, &str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (pid, parent, line) in all {
            let process = folder.path().join(pid);
            fs::create_dir_all(process.join("ns")).unwrap();
            fs::write(process.join("stat"), format!("7 (a ) b) S {parent} 1 1 0")).unwrap();
            fs::write(process.join("cmdline"), line.replace(' ', "\0") + "\0").unwrap();
            std::os::unix::fs::symlink("pid:[1]", process.join("ns/pid")).unwrap();
        }
        folder
    }

    fn parent_of(line: &str) -> Option<Parent> {
        let folder = processes(&[
            ("self", "40", "kubewasi-node agent"),
            ("40", "30", "/pause -address /not/a/shim"),
            ("30", "1", line),
            ("1", "0", "/sbin/init"),
        ]);
        parent(folder.path(), "self")
    }

    #[test]
    fn the_shim_above_a_process_names_the_socket_of_its_containerd() {
        let k3s = "/run/k3s/containerd/containerd.sock";
        for line in [
            format!("/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -id a -address {k3s}"),
            format!("containerd-shim-kata-v2 --address={k3s} -namespace=k8s.io"),
        ] {
            assert_eq!(parent_of(&line), Some(Parent::Containerd(k3s.into())), "{line}");
        }
    }

    #[test]
    fn a_container_of_another_runtime_is_known_by_its_parent() {
        let docker = "containerd-shim-runc-v2 -namespace moby -id a -address /run/containerd/containerd.sock";
        assert_eq!(parent_of(docker), Some(Parent::Other("Docker")));
        assert_eq!(parent_of("/usr/bin/conmon -b /run"), Some(Parent::Other("CRI-O")));
        assert_eq!(parent_of("/usr/bin/bash"), None);
    }

    #[test]
    fn a_host_is_asked_at_the_sockets_of_its_shims_before_the_known_ones() {
        let shim = "containerd-shim-runc-v2 -namespace k8s.io -id a -address /run/mine.sock";
        let folder = processes(&[
            ("self", "1", "kubewasi-node check"),
            ("30", "1", shim),
            ("31", "1", shim),
            (
                "32",
                "1",
                "containerd-shim-runc-v2 -namespace moby -id a -address /run/docker.sock",
            ),
            (
                "33",
                "1",
                "containerd-shim-runc-v2 -namespace k8s.io -id a -address /run/inner.sock",
            ),
        ]);
        let inner = folder.path().join("33/ns/pid");
        fs::remove_file(&inner).unwrap();
        std::os::unix::fs::symlink("pid:[2]", &inner).unwrap();
        let found = candidates(folder.path());
        assert_eq!(found[0], Path::new("/run/mine.sock"));
        assert_eq!(found[1..], KNOWN.map(PathBuf::from));
    }
}
