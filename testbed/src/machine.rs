//! What a test may not leave behind, seen from outside: processes, mounts, cgroups, sockets and fifos.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Where shims put their sockets, ours and containerd's.
const RUN_FOLDERS: [&str; 2] = ["/run/kubewasi", "/run/containerd/s"];

/// A look at the machine, as far as tests of this shim can change it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    left: BTreeSet<String>,
}

impl Machine {
    /// Looks for what belongs to shims, or bears `mark`: the name of a test's namespace and folder.
    pub fn look(mark: &str) -> Machine {
        let mut left = BTreeSet::new();
        for pid in shim_processes(mark) {
            left.insert(format!("process {pid}: {}", describe(pid)));
        }
        left.extend(mounts(mark).into_iter().map(|path| format!("mount {}", path.display())));
        left.extend(
            cgroups(mark)
                .into_iter()
                .map(|path| format!("cgroup {}", path.display())),
        );
        let folder = PathBuf::from("/tmp").join(mark);
        // The daemon's own sockets, ours to look past.
        let daemons = ["containerd.sock", "containerd.sock.ttrpc", "debug.sock"].map(|name| folder.join(name));
        for path in RUN_FOLDERS
            .map(PathBuf::from)
            .into_iter()
            .chain([folder])
            .flat_map(|folder| special_files(&folder))
        {
            if !daemons.contains(&path) {
                left.insert(format!("socket or fifo {}", path.display()));
            }
        }
        Machine { left }
    }

    /// What is there now and was not `before`.
    pub fn since(&self, before: &Machine) -> Vec<String> {
        self.left.difference(&before.left).cloned().collect()
    }
}

/// The processes that run the shim binary below a folder called `mark` (guests too: they are forked from it), or bear
/// `mark` in their arguments.
pub fn shim_processes(mark: &str) -> Vec<i32> {
    let mut found: Vec<i32> = fs::read_dir("/proc")
        .expect("/proc is there")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let Ok(exe) = fs::read_link(format!("/proc/{pid}/exe")) else {
                return false;
            };
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&arguments);
            let is_daemon = exe
                .file_name()
                .is_some_and(|name| name == "containerd" || name == "ctr");
            exe.to_string_lossy().contains(mark) || (arguments.contains(mark) && !is_daemon)
        })
        .collect();
    found.sort_unstable();
    found
}

/// The processes of [`shim_processes`] that run the shim's `command`: `serve`, `launch`. Guests look like the launcher that
/// they are forked from.
pub fn running(mark: &str, command: &str) -> Vec<i32> {
    let mut found = shim_processes(mark);
    found.retain(|pid| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments
            .split(|byte| *byte == 0)
            .any(|argument| argument == command.as_bytes())
    });
    found
}

/// The command line and state of a process, for messages.
pub fn describe(pid: i32) -> String {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("{} ({})", arguments.trim(), name.trim())
}

fn mounts(mark: &str) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("/proc is there");
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|path| path.contains(mark) || path.starts_with("/run/kubewasi"))
        .map(PathBuf::from)
        .collect()
}

/// Cgroup folders below one that is called `mark`; that one itself is made by whoever comes first and is kept by all.
fn cgroups(mark: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                let below = path
                    .parent()
                    .is_some_and(|parent| parent.to_string_lossy().contains(mark));
                if below || (path.to_string_lossy().contains(mark) && !path.ends_with(mark)) {
                    found.push(path.clone());
                }
                open.push(path);
            }
        }
    }
    found
}

/// Sockets nobody listens on, and fifos, below `folder`.
fn special_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let (path, Ok(kind)) = (entry.path(), entry.file_type()) else {
                continue;
            };
            if kind.is_dir() && !path.ends_with("rootfs") {
                open.push(path);
            } else if kind.is_fifo() || (kind.is_socket() && UnixStream::connect(&path).is_err()) {
                found.push(path);
            }
        }
    }
    found
}

/// Takes away what a failed test left, so that it fails alone: the next test begins on a clean machine.
pub fn sweep(mark: &str, before: &Machine) {
    let mut victims = shim_processes(mark);
    victims.retain(|pid| !before.left.contains(&format!("process {pid}: {}", describe(*pid))));
    for pid in victims.iter().filter_map(|pid| Pid::from_raw(*pid)) {
        // It may be gone already.
        let _ = kill_process(pid, Signal::KILL);
    }
    // Frozen processes do not take it; the files of the other version and of other controllers are not there.
    for path in cgroups(mark) {
        for (file, thawed) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
            if path.join(file).exists() {
                let _ = fs::write(path.join(file), thawed);
            }
        }
    }
    // What is still there afterwards hangs in the kernel, and nobody can help it.
    let patience = Instant::now() + Duration::from_secs(10);
    while Instant::now() < patience && shim_processes(mark).iter().any(|pid| victims.contains(pid)) {
        thread::sleep(Duration::from_millis(10));
    }
    for path in mounts(mark).iter().rev() {
        let _ = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH);
    }
    let mut groups = cgroups(mark);
    groups.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    for path in groups.iter().chain(&parents(mark)) {
        let _ = fs::remove_dir(path);
    }
    let folder = PathBuf::from("/tmp").join(mark);
    let dead = || -> BTreeSet<PathBuf> {
        let folders = RUN_FOLDERS.map(PathBuf::from).into_iter().chain([folder.clone()]);
        folders
            .flat_map(|folder| special_files(&folder))
            .filter(|path| !before.left.contains(&format!("socket or fifo {}", path.display())))
            .collect()
    };
    let first = dead();
    if first.is_empty() {
        return;
    }
    // A server of another test may be between bind(2) and listen(2).
    thread::sleep(Duration::from_millis(200));
    for path in first.intersection(&dead()) {
        let _ = fs::remove_file(path);
    }
}

/// The cgroup folders named `mark`, in every hierarchy.
fn parents(mark: &str) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup")
        .expect("cgroups are mounted")
        .flatten()
        .map(|entry| entry.path());
    hierarchies
        .chain([PathBuf::from("/sys/fs/cgroup")])
        .map(|path| path.join(mark))
        .collect()
}
