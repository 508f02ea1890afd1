//! A container's cgroup: one folder in each v1 hierarchy, or one in the unified hierarchy.

use std::fmt::Display;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Pid;

use super::stat::Stat;
use super::{freezer, pidfd};

/// Where cgroups are mounted (systemd's file-hierarchy(7)).
pub const ROOT: &str = "/sys/fs/cgroup";

/// cgroup v2's magic number (statfs(2)).
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;
/// cgroup v1's magic number (statfs(2)).
const CGROUP_SUPER_MAGIC: u64 = 0x0027_e0eb;

/// The version of the hierarchies below a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Version {
    V1,
    V2,
}

/// The hierarchies of this machine, found once.
#[derive(Clone, Debug)]
pub struct Hierarchies {
    pub version: Version,
    mounts: Vec<PathBuf>,
}

/// One cgroup in all hierarchies.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cgroup {
    pub version: Version,
    /// The path below each hierarchy's root, absolute (OCI runtime spec, `linux.cgroupsPath`).
    pub path: PathBuf,
    folders: Vec<PathBuf>,
}

impl Hierarchies {
    /// Finds the hierarchies mounted at or below `root`.
    ///
    /// # Errors
    ///
    /// When `root` cannot be read or holds no cgroup file system.
    pub fn find(root: &Path) -> io::Result<Hierarchies> {
        if magic(root)? == CGROUP2_SUPER_MAGIC {
            return Ok(Hierarchies {
                version: Version::V2,
                mounts: vec![root.to_path_buf()],
            });
        }
        let mut mounts = Vec::new();
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            // Links such as `cpu -> cpu,cpuacct` name a hierarchy twice.
            if entry.file_type()?.is_dir() && magic(&entry.path())? == CGROUP_SUPER_MAGIC {
                mounts.push(entry.path());
            }
        }
        if mounts.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("no cgroup is mounted at {}", root.display()),
            ));
        }
        mounts.sort();
        Ok(Hierarchies {
            version: Version::V1,
            mounts,
        })
    }

    /// Those of the hierarchies that have one of `controllers`; the unified one has all.
    pub fn with(mut self, controllers: &[&str]) -> Hierarchies {
        if self.version == Version::V1 {
            self.mounts.retain(|mount| has(mount, controllers));
        }
        self
    }

    /// The cgroup of the process `pid`, by its path in the memory hierarchy on v1.
    ///
    /// # Errors
    ///
    /// When there is no such process, or `InvalidData` when it is in no such hierarchy.
    pub fn of_process(&self, pid: impl Display) -> io::Result<Cgroup> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let path = path_in(self.version, &text).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the process {pid} is in no cgroup with a memory controller"),
            )
        })?;
        Ok(self.cgroup(Path::new(path)))
    }

    /// Where the hierarchies are mounted.
    pub fn roots(&self) -> &[PathBuf] {
        &self.mounts
    }

    /// The cgroup at `path` below each hierarchy; nothing is made.
    pub fn cgroup(&self, path: &Path) -> Cgroup {
        let below = path.strip_prefix("/").unwrap_or(path);
        Cgroup {
            version: self.version,
            path: path.to_path_buf(),
            folders: self.mounts.iter().map(|mount| mount.join(below)).collect(),
        }
    }
}

/// Whether the v1 hierarchy at `mount` is that of one of `controllers`: it is called after them.
fn has(mount: &Path, controllers: &[&str]) -> bool {
    let name = mount.file_name().unwrap_or_default().to_string_lossy();
    name.split(',').any(|controller| controllers.contains(&controller))
}

fn magic(path: &Path) -> io::Result<u64> {
    Ok(rustix::fs::statfs(path)?.f_type as u64)
}

impl Cgroup {
    /// Makes the folders with their parents. A new v1 cpuset takes its parent's cpus and nodes, without which nothing
    /// may enter it; on v2 the parents hand down every controller they have.
    ///
    /// # Errors
    ///
    /// What mkdir(2) and write(2) say.
    pub fn create(&self) -> io::Result<()> {
        for folder in &self.folders {
            let mount = self.mount_of(folder);
            let mut level = mount.clone();
            for part in folder.strip_prefix(&mount).unwrap_or(folder).iter() {
                if self.version == Version::V2 {
                    enable_controllers(&level)?;
                }
                let next = level.join(part);
                match fs::create_dir(&next) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => return Err(error),
                }
                if self.version == Version::V1 {
                    inherit_cpuset(&level, &next)?;
                }
                level = next;
            }
        }
        Ok(())
    }

    fn mount_of(&self, folder: &Path) -> PathBuf {
        let depth = self.path.strip_prefix("/").unwrap_or(&self.path).components().count();
        folder.ancestors().nth(depth).unwrap_or(folder).to_path_buf()
    }

    /// Whether it is there, in any hierarchy.
    pub fn exists(&self) -> bool {
        self.folders.iter().any(|folder| folder.is_dir())
    }

    /// The cgroup that it lies in; nothing for one at the root.
    pub fn parent(&self) -> Option<Cgroup> {
        let path = self.path.parent().filter(|path| path.parent().is_some())?;
        let folders = self.folders.iter().filter_map(|folder| folder.parent());
        Some(Cgroup {
            version: self.version,
            path: path.to_path_buf(),
            folders: folders.map(Path::to_path_buf).collect(),
        })
    }

    /// Its folder in the hierarchy of `controller`, whether it is there or not; the unified one has all.
    pub fn folder(&self, controller: &str) -> Option<&Path> {
        let mut folders = self.folders.iter().map(PathBuf::as_path);
        folders.find(|folder| self.version == Version::V2 || has(&self.mount_of(folder), &[controller]))
    }

    /// The files to which a process writes `0` to enter.
    pub fn entrances(&self) -> Vec<PathBuf> {
        self.folders.iter().map(|folder| folder.join("cgroup.procs")).collect()
    }

    /// The cgroup's file `name`, in the hierarchy that has it.
    ///
    /// # Errors
    ///
    /// `NotFound` when none has: the cgroup is gone, or its controller is not mounted.
    pub fn file(&self, name: &str) -> io::Result<PathBuf> {
        let mut paths = self.folders.iter().map(|folder| folder.join(name));
        paths.find(|path| path.exists()).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("the cgroup {} has no {name}", self.path.display()),
            )
        })
    }

    /// The number after `key` in the cgroup's flat keyed file `name`; nothing when it has no such line.
    ///
    /// # Errors
    ///
    /// What [`Cgroup::file`] and read(2) say.
    pub fn figure(&self, name: &str, key: &str) -> io::Result<Option<u64>> {
        Ok(figure(&fs::read_to_string(self.file(name)?)?, key))
    }

    /// Every process in the cgroup; none when it is gone.
    pub fn pids(&self) -> Vec<Pid> {
        let mut pids: Vec<Pid> = self.entrances().iter().flat_map(|file| members(file)).collect();
        pids.sort_unstable_by_key(|pid| pid.as_raw_nonzero());
        pids.dedup();
        pids
    }

    /// Sends `signal` to every process but `first`; one that ends by itself is what was wanted.
    pub fn signal_others(&self, first: u32, signal: i32) {
        for pid in self.pids() {
            if u32::try_from(pid.as_raw_nonzero().get()) != Ok(first) {
                send(pid, signal, || self.pids());
            }
        }
    }

    /// Kills every process in the cgroup with SIGKILL: by `cgroup.kill` where the kernel has it (5.14), else one by one
    /// until none is left.
    ///
    /// # Errors
    ///
    /// `TimedOut` when processes are left after two seconds.
    pub fn kill(&self) -> io::Result<()> {
        const TRIES: u32 = 200;
        for folder in &self.folders {
            // Missing before Linux 5.14 and on v1; the loop below does it then.
            let _ = fs::write(folder.join("cgroup.kill"), "1");
        }
        for _ in 0..TRIES {
            let alive: Vec<Pid> = self.pids().into_iter().filter(|pid| !is_zombie(*pid)).collect();
            if alive.is_empty() {
                return Ok(());
            }
            for pid in alive {
                send(pid, libc::SIGKILL, || self.pids());
            }
            // A frozen process of v1 takes its signal when it is thawed.
            freezer::thaw(self)?;
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("processes are left in the cgroup {}", self.path.display()),
        ))
    }

    /// Removes the folders, and whatever cgroups somebody made in them, with their processes. Missing ones are fine.
    ///
    /// # Errors
    ///
    /// What rmdir(2) says; `EBUSY` after a second of it.
    pub fn remove(&self) -> io::Result<()> {
        const TRIES: u32 = 100;
        for folder in &self.folders {
            let mut tries = 0;
            loop {
                match fs::remove_dir(folder) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    // The last process is still on its way out, or there are cgroups in it.
                    Err(error) if is_busy(&error) && tries < TRIES => {
                        tries += 1;
                        clear(folder);
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

/// The processes that a cgroup's file of members names; none when it is gone.
fn members(file: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .filter_map(|line| Pid::from_raw(line.parse().ok()?))
        .collect()
}

/// Sends `signal` to `pid`, which was a member. The pid of a process that has ended may be another's by now: what counts is
/// who is a member while we hold its pidfd. One that ended in between is what was wanted.
fn send(pid: Pid, signal: i32, members: impl FnOnce() -> Vec<Pid>) {
    let Ok(process) = pidfd::open(pid) else { return };
    if members().contains(&pid) {
        let _ = pidfd::kill(&process, signal);
    }
}

/// The path in the text of `/proc/<pid>/cgroup`: `number:controllers:path`, without controllers on v2 (cgroups(7)).
fn path_in(version: Version, text: &str) -> Option<&str> {
    text.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let wanted = match version {
            Version::V1 => controllers.split(',').any(|controller| controller == "memory"),
            Version::V2 => controllers.is_empty(),
        };
        wanted.then_some(path)
    })
}

/// The number after `key` in the text of a flat keyed file (cgroup-v2 in the kernel's documentation).
fn figure(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}

/// The kernel says `EBUSY` of a cgroup with processes or cgroups in it, other file systems `ENOTEMPTY`.
fn is_busy(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty
    )
}

/// Kills what runs in the cgroups below `folder` and removes those that are empty.
fn clear(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let child = entry.path();
        let file = child.join("cgroup.procs");
        for pid in members(&file) {
            send(pid, libc::SIGKILL, || members(&file));
        }
        clear(&child);
        // One that is busy still is tried again with its parent.
        let _ = fs::remove_dir(child);
    }
}

/// A zombie still stands in `cgroup.procs` until its parent reaps it, but holds nothing.
fn is_zombie(pid: Pid) -> bool {
    Stat::of(pid.as_raw_nonzero()).map_or(true, |stat| stat.is_zombie())
}

fn enable_controllers(folder: &Path) -> io::Result<()> {
    let Ok(controllers) = fs::read_to_string(folder.join("cgroup.controllers")) else {
        return Ok(());
    };
    let enabled = fs::read_to_string(folder.join("cgroup.subtree_control"))?;
    for controller in controllers.split_whitespace() {
        if !enabled.split_whitespace().any(|one| one == controller) {
            // A controller that this level may not hand down (realtime cpu, threaded) is one the limits cannot use;
            // applying a limit that needs it says so.
            let _ = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
    Ok(())
}

fn inherit_cpuset(parent: &Path, child: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let Ok(present) = fs::read_to_string(child.join(file)) else {
            continue;
        };
        if present.trim().is_empty() {
            fs::write(child.join(file), fs::read_to_string(parent.join(file))?.trim())?;
        }
    }
    Ok(())
}

/// Whether systemd manages this machine's cgroups: sd_booted(3), with its folder below `run`.
pub fn systemd_runs(run: &Path) -> bool {
    run.join("systemd/system").is_dir()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    #[test]
    fn systemd_runs_where_its_folder_is() {
        let run = tempfile::tempdir().unwrap();
        assert!(!systemd_runs(run.path()));
        fs::create_dir_all(run.path().join("systemd/system")).unwrap();
        assert!(systemd_runs(run.path()));
    }

    /// A hierarchy that is a temporary folder; the test removes it.
    pub fn hierarchy(name: &str, version: Version) -> (PathBuf, Hierarchies) {
        let root = std::env::temp_dir().join(format!("kubewasi-cgroup-{}-{name}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        (
            root.clone(),
            Hierarchies {
                version,
                mounts: vec![root],
            },
        )
    }

    #[test]
    fn a_new_cpuset_takes_the_cpus_of_its_parent() {
        let (root, hierarchies) = hierarchy("cpuset", Version::V1);
        fs::write(root.join("cpuset.cpus"), "0-1\n").unwrap();
        fs::write(root.join("cpuset.mems"), "0\n").unwrap();
        let child = root.join("a");
        fs::create_dir(&child).unwrap();
        fs::write(child.join("cpuset.cpus"), "\n").unwrap();
        fs::write(child.join("cpuset.mems"), "\n").unwrap();
        hierarchies.cgroup(Path::new("/a")).create().unwrap();
        assert_eq!(fs::read_to_string(child.join("cpuset.cpus")).unwrap(), "0-1");
        assert_eq!(fs::read_to_string(child.join("cpuset.mems")).unwrap(), "0");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn unified_parents_hand_down_their_controllers() {
        let (root, hierarchies) = hierarchy("unified", Version::V2);
        fs::write(root.join("cgroup.controllers"), "memory\n").unwrap();
        fs::write(root.join("cgroup.subtree_control"), "").unwrap();
        hierarchies.cgroup(Path::new("/a/b")).create().unwrap();
        assert!(root.join("a/b").is_dir());
        assert_eq!(
            fs::read_to_string(root.join("cgroup.subtree_control")).unwrap(),
            "+memory"
        );
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn the_path_of_a_process_is_the_memory_hierarchys_or_the_unified_one() {
        let text = "9:name=systemd:/\n5:cpu,cpuacct:/a\n4:rdma,memory:/pods/a:b\n0::/init.scope\n";
        assert_eq!(path_in(Version::V1, text), Some("/pods/a:b"));
        assert_eq!(path_in(Version::V2, text), Some("/init.scope"));
        assert_eq!(path_in(Version::V1, "0::/x\n"), None);
    }

    #[test]
    fn a_cgroup_goes_with_whatever_was_made_in_it() {
        let (root, hierarchies) = hierarchy("nested", Version::V2);
        let cgroup = hierarchies.cgroup(Path::new("/a/b"));
        cgroup.create().unwrap();
        fs::create_dir_all(root.join("a/b/foreign/deep")).unwrap();
        cgroup.remove().unwrap();
        assert!(root.join("a").is_dir() && !root.join("a/b").exists());
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn the_folder_of_a_controller_is_in_its_hierarchy() {
        let mounts = ["/c/cpu,cpuacct", "/c/memory"].map(PathBuf::from).to_vec();
        let version = Version::V1;
        let cgroup = Hierarchies { version, mounts }.cgroup(Path::new("/a/b"));
        assert_eq!(cgroup.folder("memory"), Some(Path::new("/c/memory/a/b")));
        assert_eq!(cgroup.folder("cpuacct"), Some(Path::new("/c/cpu,cpuacct/a/b")));
        assert_eq!(cgroup.folder("pids"), None);
    }

    #[test]
    fn the_parent_of_a_cgroup_is_one_unless_it_is_the_root() {
        let (root, hierarchies) = hierarchy("parent", Version::V2);
        let parent = hierarchies.cgroup(Path::new("/a/b")).parent().unwrap();
        assert_eq!(parent, hierarchies.cgroup(Path::new("/a")));
        assert_eq!(parent.parent(), None);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn removing_a_cgroup_that_is_gone_is_fine_and_leaves_its_parent() {
        let (root, hierarchies) = hierarchy("remove", Version::V2);
        let cgroup = hierarchies.cgroup(Path::new("/a/b"));
        cgroup.create().unwrap();
        cgroup.remove().unwrap();
        cgroup.remove().unwrap();
        assert!(root.join("a").is_dir() && !root.join("a/b").exists());
        fs::remove_dir_all(root).unwrap();
    }
}
