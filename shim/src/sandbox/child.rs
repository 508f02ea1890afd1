//! What a forked process does: the helper enters, the guest confines itself, and then there is only wasm.
//!
//! Each step either succeeds or ends the process with a report that names it; nothing is retried or left out.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use rustix::mount::MountFlags;
use rustix::process::Signal;

use super::plan::{Confinement, Role, Root};
use super::profile::Program;
use super::protocol::{Report, START, cut, decode, encode};
use super::volumes::{Kind, Volume};
use crate::guest::warm::Warm;
use crate::guest::{self, Outcome, Settings};
use crate::sys::fork::{Fork, exit, fork};
use crate::sys::{credentials, fds, memfd, mounts, namespaces, seccomp, signals, standard};

/// The fds of one request, as the launcher received them, and the pipe for the guest's pid.
pub struct Inheritance {
    plan: OwnedFd,
    report: OwnedFd,
    streams: [OwnedFd; 3],
    artifact: Option<OwnedFd>,
    pid: OwnedFd,
}

impl Inheritance {
    /// Sorts the fds of a command; `None` when their number is not what it says.
    pub fn new(fds: Vec<OwnedFd>, pid: OwnedFd, artifact: bool) -> Option<Inheritance> {
        let mut fds = fds.into_iter();
        let inheritance = Inheritance {
            plan: fds.next()?,
            report: fds.next()?,
            streams: [fds.next()?, fds.next()?, fds.next()?],
            artifact: if artifact { Some(fds.next()?) } else { None },
            pid,
        };
        fds.next().is_none().then_some(inheritance)
    }

    fn numbers(&self) -> Vec<i32> {
        [&self.plan, &self.report, &self.pid]
            .into_iter()
            .chain(&self.streams)
            .chain(&self.artifact)
            .map(AsRawFd::as_raw_fd)
            .collect()
    }
}

/// The step that failed and why.
struct Failure {
    step: String,
    error: String,
}

fn step<E: std::fmt::Display>(step: impl Into<String>) -> impl FnOnce(E) -> Failure {
    move |error| Failure {
        step: step.into(),
        error: error.to_string(),
    }
}

fn report(socket: BorrowedFd<'_>, report: &Report) {
    // Nobody is left to tell when the server is gone; the process ends next.
    let _ = rustix::io::write(socket, &encode(report));
}

fn fail(socket: BorrowedFd<'_>, failure: Failure) -> ! {
    report(
        socket,
        &Report::Failed {
            message: cut(format!("{}: {}", failure.step, failure.error)),
        },
    );
    exit(1)
}

/// The helper: enters the cgroup and namespaces that must be entered before a fork, forks the guest, says its pid and
/// exits, which makes the guest the server's child.
pub fn help(warm: &Warm, filter: &Program, inheritance: Inheritance) -> ! {
    let Inheritance {
        plan,
        report,
        streams,
        artifact,
        pid,
    } = {
        if let Err(error) = fds::close_all_but(&inheritance.numbers()) {
            fail(inheritance.report.as_fd(), step("close inherited fds")(error));
        }
        inheritance
    };
    let confinement = match enter(plan) {
        Ok(confinement) => confinement,
        Err(failure) => fail(report.as_fd(), failure),
    };
    match fork() {
        Ok(Fork::Parent(guest)) => {
            let said = File::from(pid).write_all(&guest.as_raw_nonzero().get().to_ne_bytes());
            exit(i32::from(said.is_err()))
        }
        Ok(Fork::Child) => {
            drop(pid);
            become_guest(warm, filter, &confinement, report, streams, artifact)
        }
        Err(error) => fail(report.as_fd(), step("fork the guest")(error)),
    }
}

fn enter(plan: OwnedFd) -> Result<Confinement, Failure> {
    let bytes = memfd::read(plan).map_err(step("read the plan"))?;
    let confinement: Confinement = decode(&bytes).ok_or_else(|| step("read the plan")("it cannot be decoded"))?;
    for entrance in &confinement.entrances {
        fs::write(entrance, "0").map_err(step(format!("enter the cgroup by {}", entrance.display())))?;
    }
    for (kind, path) in &confinement.join {
        namespaces::join(*kind, path).map_err(step(format!("join the {kind:?} namespace {}", path.display())))?;
    }
    if confinement.make.contains(&namespaces::Kind::Pid) {
        namespaces::make([namespaces::Kind::Pid]).map_err(step("make a pid namespace"))?;
    }
    Ok(confinement)
}

fn become_guest(
    warm: &Warm,
    filter: &Program,
    confinement: &Confinement,
    socket: OwnedFd,
    streams: [OwnedFd; 3],
    artifact: Option<OwnedFd>,
) -> ! {
    let role = prepare(warm, filter, confinement, &socket, streams, artifact);
    match role {
        Ok(role) => {
            report(socket.as_fd(), &Report::Ready);
            if !started(&socket) {
                exit(1)
            }
            live(role, confinement, &socket)
        }
        Err(failure) => fail(socket.as_fd(), failure),
    }
}

/// What is left to do once everything is confined.
enum Prepared {
    Hold,
    Run(Box<guest::Ready>),
}

fn prepare(
    warm: &Warm,
    filter: &Program,
    confinement: &Confinement,
    socket: &OwnedFd,
    streams: [OwnedFd; 3],
    artifact: Option<OwnedFd>,
) -> Result<Prepared, Failure> {
    // A new session, so that no signal of the server's terminal or group arrives here.
    rustix::process::setsid().map_err(step("start a session"))?;
    signals::unblock_all().map_err(step("unblock signals"))?;
    match confinement.role {
        Role::Holder => signals::hold_like_pause().map_err(step("handle signals"))?,
        Role::Guest { .. } => signals::end_on_signals().map_err(step("handle signals"))?,
    }
    let name = std::ffi::CString::new(confinement.name.as_str()).map_err(step("name the process"))?;
    rustix::thread::set_name(&name).map_err(step("name the process"))?;
    for (number, stream) in streams.into_iter().enumerate() {
        standard::install(stream.as_fd(), number as i32).map_err(step(format!("take standard stream {number}")))?;
    }
    let open_files = mounts::open_directory(Path::new("/proc/self/fd")).map_err(step("open /proc/self/fd"))?;
    let others = confinement
        .make
        .iter()
        .copied()
        .filter(|kind| *kind != namespaces::Kind::Pid);
    namespaces::make(others).map_err(step("make namespaces"))?;
    identify(confinement)?;
    credentials::adjust_oom_score(Path::new("/proc/self"), confinement.oom_score_adj.unwrap_or_default())
        .map_err(step("set the OOM score"))?;
    settle(&confinement.root, confinement)?;
    for limit in &confinement.limits {
        credentials::limit(*limit).map_err(step(format!("set the limit {:?}", limit.resource)))?;
    }
    credentials::take(&confinement.ids, &confinement.capabilities).map_err(|(name, error)| step(name)(error))?;
    rustix::thread::set_no_new_privs(true).map_err(step("set no_new_privs"))?;
    let prepared = match (&confinement.role, artifact) {
        (Role::Holder, _) => Prepared::Hold,
        (Role::Guest { world, export }, Some(artifact)) => {
            // The old root is gone, but this folder of it is still open: see `artifact::load`.
            rustix::process::fchdir(&open_files).map_err(step("enter /proc/self/fd"))?;
            let ready = guest::load(warm, artifact, *world, export.as_deref());
            Prepared::Run(Box::new(
                ready.map_err(|error| step("load the program")(format!("{error:#}")))?,
            ))
        }
        (Role::Guest { .. }, None) => return Err(step("load the program")("its artifact is missing")),
    };
    drop(open_files);
    std::env::set_current_dir("/").map_err(step("enter the root"))?;
    adopted(socket)?;
    seccomp::enter(&filter.unpack()).map_err(step("install the guest's filter"))?;
    for program in &confinement.seccomp {
        seccomp::enter(&program.unpack()).map_err(step("install the pod's seccomp profile"))?;
    }
    Ok(prepared)
}

fn identify(confinement: &Confinement) -> Result<(), Failure> {
    if let Some(hostname) = &confinement.hostname {
        // A pod's containers share its uts namespace, where the name is set already.
        if confinement.make.contains(&namespaces::Kind::Uts) {
            rustix::system::sethostname(hostname.as_bytes()).map_err(step("set the hostname"))?;
        }
    }
    if let Some(domainname) = &confinement.domainname
        && confinement.make.contains(&namespaces::Kind::Uts)
    {
        rustix::system::setdomainname(domainname.as_bytes()).map_err(step("set the domain name"))?;
    }
    for (key, value) in &confinement.sysctls {
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        fs::write(&path, value).map_err(step(format!("set linux.sysctl {key}={value}")))?;
    }
    Ok(())
}

/// Makes the root file system, everything in it, and moves into it.
fn settle(root: &Root, confinement: &Confinement) -> Result<(), Failure> {
    mounts::make_private().map_err(step("cut off the mount namespace"))?;
    if confinement.role == Role::Holder {
        return settle_holder(root);
    }
    for mount in &root.mounts {
        mount_root(root, mount)?;
    }
    if root.mounts.is_empty() {
        mounts::bind_self(&root.folder, &root.folder)
            .map_err(step(format!("bind the root filesystem {}", root.folder.display())))?;
    }
    let handle = mounts::open_directory(&root.folder).map_err(step("open the root filesystem"))?;
    for volume in &confinement.volumes {
        place(handle.as_fd(), volume)?;
    }
    for path in &confinement.masked {
        mask(handle.as_fd(), path)?;
    }
    for path in &confinement.read_only {
        protect(handle.as_fd(), path)?;
    }
    refuse_kernel_mounts(&root.folder)?;
    mounts::pivot(&root.folder).map_err(step("pivot to the root filesystem"))?;
    if root.read_only {
        mounts::remount_path(Path::new("/"), MountFlags::RDONLY | MountFlags::NODEV)
            .map_err(step("make the root filesystem read-only"))?;
    }
    Ok(())
}

/// A holder sees an empty, read-only root.
fn settle_holder(root: &Root) -> Result<(), Failure> {
    let handle = mounts::open_directory(&root.folder).map_err(step("open the root filesystem"))?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    mounts::mount_new("tmpfs", handle.as_fd(), flags, "size=4k,mode=555").map_err(step("mount an empty root"))?;
    mounts::pivot(&root.folder).map_err(step("pivot to an empty root"))
}

fn mount_root(root: &Root, mount: &crate::image::Mount) -> Result<(), Failure> {
    let what = || format!("mount the root filesystem ({} {})", mount.kind, mount.source);
    match mount.kind.as_str() {
        "overlay" => {
            let options: Vec<String> = mount
                .options
                .iter()
                .filter(|option| !["rw", "ro"].contains(&option.as_str()))
                .cloned()
                .collect();
            mounts::mount_overlay(&root.folder, &options).map_err(step(what()))
        }
        "bind" | "" => {
            mounts::bind_self(Path::new(&mount.source), &root.folder).map_err(step(what()))?;
            let read_only = mount.options.iter().any(|option| option == "ro");
            let flags = if read_only {
                MountFlags::RDONLY
            } else {
                MountFlags::empty()
            };
            mounts::remount_path(&root.folder, flags | MountFlags::NODEV).map_err(step(what()))
        }
        other => Err(step(what())(format!(
            "snapshots of type {other} are not supported: use overlayfs or native"
        ))),
    }
}

fn place(root: BorrowedFd<'_>, volume: &Volume) -> Result<(), Failure> {
    let at = volume.destination.display();
    let flags = MountFlags::from_bits_retain(volume.flags);
    match &volume.kind {
        Kind::Tmpfs { data } => {
            let point = mounts::open_mount_point(root, &volume.destination, true)
                .map_err(step(format!("make the mount point {at}")))?;
            mounts::mount_new("tmpfs", point.as_fd(), flags, data).map_err(step(format!("mount a tmpfs at {at}")))?;
        }
        Kind::Bind { source, recursive } => {
            let what = format!("mount {} at {at}", source.display());
            let metadata = fs::metadata(source).map_err(step(what.clone()))?;
            let point = mounts::open_mount_point(root, &volume.destination, metadata.is_dir())
                .map_err(step(format!("make the mount point {at}")))?;
            mounts::bind(source, point.as_fd(), *recursive).map_err(step(what.clone()))?;
            // Opened again, so that it is the mount and not what it covers, and judged as mounted: no race.
            let mounted = mounts::open_in_root(root, &volume.destination).map_err(step(what.clone()))?;
            let kind = mounts::file_type(mounted.as_fd()).map_err(step(what.clone()))?;
            if matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
                return Err(step(what)(
                    "it is a device, which a wasm container may not see: remove the mount",
                ));
            }
            mounts::remount(mounted.as_fd(), flags).map_err(step(what.clone()))?;
        }
    }
    if volume.read_only_recursive {
        let mounted = mounts::open_in_root(root, &volume.destination).map_err(step(format!("open {at}")))?;
        mounts::make_read_only_recursive(mounted.as_fd()).map_err(step(format!("make {at} recursively read-only")))?;
    }
    Ok(())
}

/// Hides a path: a folder under an empty read-only one, a file under a device that a nodev mount cannot open.
fn mask(root: BorrowedFd<'_>, path: &Path) -> Result<(), Failure> {
    let Some(target) = present(root, path)? else {
        return Ok(());
    };
    let what = || format!("mask {}", path.display());
    let kind = mounts::file_type(target.as_fd()).map_err(step(what()))?;
    if kind == FileType::Directory {
        let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        return mounts::mount_new("tmpfs", target.as_fd(), flags, "size=0").map_err(step(what()));
    }
    mounts::bind(Path::new("/dev/null"), target.as_fd(), false).map_err(step(what()))?;
    let mounted = mounts::open_in_root(root, path).map_err(step(what()))?;
    mounts::remount(mounted.as_fd(), MountFlags::RDONLY | MountFlags::NODEV).map_err(step(what()))
}

fn protect(root: BorrowedFd<'_>, path: &Path) -> Result<(), Failure> {
    let Some(target) = present(root, path)? else {
        return Ok(());
    };
    let what = || format!("make {} read-only", path.display());
    let inside: PathBuf = PathBuf::from(format!("/proc/self/fd/{}", target.as_raw_fd()));
    mounts::bind(&inside, target.as_fd(), true).map_err(step(what()))?;
    let mounted = mounts::open_in_root(root, path).map_err(step(what()))?;
    mounts::remount(mounted.as_fd(), MountFlags::RDONLY | MountFlags::NODEV).map_err(step(what()))
}

fn present(root: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>, Failure> {
    match mounts::open_in_root(root, path) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) => Ok(None),
        Err(error) => Err(step(format!("open {}", path.display()))(error)),
    }
}

/// A bind mount may have brought a kernel file system along, itself or below: refused by name, never hidden.
fn refuse_kernel_mounts(root: &Path) -> Result<(), Failure> {
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(step("read the mount table"))?;
    match mounts::kernel_mounts_below(&table, root).first() {
        None => Ok(()),
        Some((point, kind)) => {
            let inside = Path::new("/").join(point.strip_prefix(root).unwrap_or(point));
            Err(step(format!("check the mount at {}", inside.display()))(format!(
                "it is {kind}, the kernel's own file system, which a wasm container may not see: mount a folder without it"
            )))
        }
    }
}

/// Waits until the server is this process's parent, then binds its life to the server's.
fn adopted(socket: &OwnedFd) -> Result<(), Failure> {
    let mut byte = [0];
    match rustix::io::retry_on_intr(|| rustix::io::read(socket, &mut byte)) {
        Ok(1) => rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(step("follow the server's end")),
        Ok(_) => Err(step("wait for the server")("it is gone")),
        Err(error) => Err(step("wait for the server")(error)),
    }
}

/// Waits for the start byte; `false` when the server is gone.
fn started(socket: &OwnedFd) -> bool {
    let mut byte = [0];
    matches!(rustix::io::retry_on_intr(|| rustix::io::read(socket, &mut byte)), Ok(1) if byte == START)
}

fn live(role: Prepared, confinement: &Confinement, socket: &OwnedFd) -> ! {
    match role {
        Prepared::Hold => loop {
            // Returns when a signal was handled; those that end the holder do not return.
            let _ = rustix::event::poll(&mut [], None);
        },
        Prepared::Run(ready) => {
            let settings = Settings {
                arguments: &confinement.arguments,
                environment: &confinement.environment,
                working_directory: &confinement.working_directory,
            };
            match guest::run(*ready, &settings) {
                Outcome::Exit(code) => exit(code),
                Outcome::Trap(message) => {
                    guest::tell(&message);
                    report(socket.as_fd(), &Report::Ended { message: cut(message) });
                    exit(guest::TRAPPED)
                }
            }
        }
    }
}
