//! Namespaces: joined by path or by process, or made new.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags, move_into_link_name_space, move_into_thread_name_spaces,
};

/// A kind of namespace, as namespaces(7) names them in `/proc/<pid>/ns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Kind {
    Cgroup,
    Ipc,
    Mount,
    Network,
    Pid,
    Time,
    Uts,
}

impl Kind {
    fn link(self) -> LinkNameSpaceType {
        match self {
            Kind::Cgroup => LinkNameSpaceType::ControlGroup,
            Kind::Ipc => LinkNameSpaceType::InterProcessCommunication,
            Kind::Mount => LinkNameSpaceType::Mount,
            Kind::Network => LinkNameSpaceType::Network,
            Kind::Pid => LinkNameSpaceType::ProcessID,
            Kind::Time => LinkNameSpaceType::Time,
            Kind::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
        }
    }

    fn of_thread(self) -> ThreadNameSpaceType {
        match self {
            Kind::Cgroup => ThreadNameSpaceType::CONTROL_GROUP,
            Kind::Ipc => ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION,
            Kind::Mount => ThreadNameSpaceType::MOUNT,
            Kind::Network => ThreadNameSpaceType::NETWORK,
            Kind::Pid => ThreadNameSpaceType::PROCESS_ID,
            Kind::Time => ThreadNameSpaceType::TIME,
            Kind::Uts => ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME,
        }
    }

    fn flag(self) -> UnshareFlags {
        match self {
            Kind::Cgroup => UnshareFlags::NEWCGROUP,
            Kind::Ipc => UnshareFlags::NEWIPC,
            Kind::Mount => UnshareFlags::NEWNS,
            Kind::Network => UnshareFlags::NEWNET,
            Kind::Pid => UnshareFlags::NEWPID,
            Kind::Time => UnshareFlags::NEWTIME,
            Kind::Uts => UnshareFlags::NEWUTS,
        }
    }
}

/// Enters the namespace of `kind` that `path` names; a pid namespace takes effect for the next fork. A time namespace takes
/// a process of one thread.
///
/// # Errors
///
/// What open(2) and setns(2) say; `EINVAL` when `path` is a namespace of another kind.
pub fn join(kind: Kind, path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    Ok(move_into_link_name_space(
        std::os::fd::AsFd::as_fd(&file),
        Some(kind.link()),
    )?)
}

/// Enters the namespaces of `kinds` that the process behind `pidfd` is in, all or none; with a mount namespace comes its
/// root, a pid namespace takes effect for the next fork.
///
/// # Errors
///
/// What setns(2) says (Linux 5.8); `ESRCH` when the process has ended.
pub fn join_process(pidfd: BorrowedFd<'_>, kinds: impl IntoIterator<Item = Kind>) -> io::Result<()> {
    let flags = kinds
        .into_iter()
        .fold(ThreadNameSpaceType::empty(), |flags, kind| flags | kind.of_thread());
    Ok(move_into_thread_name_spaces(pidfd, flags)?)
}

/// Moves the process into new namespaces of `kinds`, in one call; a pid or time namespace takes effect for
/// the next fork.
///
/// # Errors
///
/// What unshare(2) says.
pub fn make(kinds: impl IntoIterator<Item = Kind>) -> io::Result<()> {
    let flags = kinds
        .into_iter()
        .fold(UnshareFlags::empty(), |flags, kind| flags | kind.flag());
    if flags.is_empty() {
        return Ok(());
    }
    #[expect(
        unsafe_code,
        reason = "rustix marks unshare unsafe for CLONE_FILES, which is never asked for here"
    )]
    // SAFETY: the flags are namespaces only; no fd table is unshared.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}
