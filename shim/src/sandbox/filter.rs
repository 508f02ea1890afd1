//! The filter that every guest runs under, whatever its pod's profile allows: what our host code calls, nothing else.
//!
//! A call that is not listed fails with `EPERM`. x32 calls carry a bit that no listed number has, so they fail too.
//! Node tests run every guest under it, which is how the list was recorded: a missing call fails them.

use std::collections::BTreeMap;

use seccompiler::{SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use super::profile::{ProfileError, Program, compile};
use crate::compile::Profile;

mod network;

/// Calls that are allowed with any arguments.
const ALLOWED: &[libc::c_long] = &[
    // Memory; see `conditional` for mmap and mprotect.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_memfd_create,
    // Streams and files below the preopened root; there is nothing else to open after pivot_root.
    libc::SYS_close,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_linkat,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_preadv2,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_write,
    libc::SYS_writev,
    // Waiting, time, threads.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_membarrier,
    libc::SYS_nanosleep,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    // The pod's profile is installed under this filter; a filter only ever takes rights away.
    libc::SYS_seccomp,
];

/// Calls of the architecture's older forms, which musl still makes there.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[libc::c_long] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_epoll_wait,
    libc::SYS_lstat,
    libc::SYS_open,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_stat,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[libc::c_long] = &[];

/// The filters of guests.
pub struct Filters {
    command: Pair,
    service: Pair,
}

/// The two filters of a guest; the second is installed on top of the first.
#[derive(Debug, PartialEq, Eq)]
pub struct Pair {
    /// While the artifact is mapped and the event loop built: code becomes executable, folders change.
    pub loading: Program,
    /// From then on.
    pub running: Program,
}

impl Filters {
    /// Compiles all of them.
    ///
    /// # Errors
    ///
    /// What the compiler says of the rules.
    pub fn new() -> Result<Filters, ProfileError> {
        Ok(Filters {
            command: Pair::new(Profile::Command)?,
            service: Pair::new(Profile::Service)?,
        })
    }

    /// Those of a guest that was compiled for `profile`.
    pub fn of(&self, profile: Profile) -> &Pair {
        match profile {
            Profile::Command => &self.command,
            Profile::Service => &self.service,
        }
    }
}

impl Pair {
    fn new(profile: Profile) -> Result<Pair, ProfileError> {
        let mut running: Rules = ALLOWED
            .iter()
            .chain(ALLOWED_HERE)
            .chain(network::ALLOWED)
            .map(|number| (*number, Vec::new()))
            .collect();
        running.extend(conditional()?);
        running.extend(network::conditional()?);
        if profile == Profile::Service {
            running.extend(serving()?);
        }
        let mut loading = running.clone();
        for number in LOADING {
            loading.insert(*number, Vec::new());
        }
        let denied = SeccompAction::Errno(libc::EPERM as u32);
        Ok(Pair {
            loading: compile(loading, denied.clone(), SeccompAction::Allow)?,
            running: compile(running, denied, SeccompAction::Allow)?,
        })
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Calls that are allowed while loading, with any arguments. tokio's signal driver has a socket pair.
const LOADING: &[libc::c_long] = &[
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_socketpair,
];

const PRCTL: &[u64] = &[libc::PR_SET_NAME as u64, libc::PR_SET_NO_NEW_PRIVS as u64];
const IOCTL: &[u64] = &[
    libc::FIONBIO as u64,
    libc::FIONREAD as u64,
    libc::TCGETS as u64,
    libc::TIOCGWINSZ as u64,
];
/// `_IOWR('f', 16, struct pm_scan_arg)` (linux/fs.h), of 96 bytes.
const PAGEMAP_SCAN: u64 = 0xc060_6610;
/// Without F_SETOWN and F_SETSIG, by which the kernel sends signals for a process that may not.
const FCNTL: &[u64] = &[
    libc::F_GETFD as u64,
    libc::F_SETFD as u64,
    libc::F_GETFL as u64,
    libc::F_DUPFD as u64,
    libc::F_DUPFD_CLOEXEC as u64,
    libc::F_ADD_SEALS as u64,
    libc::F_GET_SEALS as u64,
    libc::F_OFD_SETLK as u64,
    libc::F_OFD_SETLKW as u64,
];

/// Calls that depend on an argument: memory never becomes executable, and new tasks are threads.
fn conditional() -> Result<Rules, ProfileError> {
    let execute = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
    let thread = libc::CLONE_THREAD as u64;
    let mut fcntl = one_of(1, FCNTL)?;
    let asynchronous = SeccompCmpOp::MaskedEq(libc::O_ASYNC as u64);
    fcntl.push(rule(vec![
        when(1, SeccompCmpOp::Eq, libc::F_SETFL as u64)?,
        when(2, asynchronous, 0)?,
    ])?);
    Ok([
        (libc::SYS_mmap, vec![rule(vec![when(2, execute.clone(), 0)?])?]),
        (libc::SYS_mprotect, vec![rule(vec![when(2, execute, 0)?])?]),
        (
            libc::SYS_clone,
            vec![rule(vec![when(0, SeccompCmpOp::MaskedEq(thread), thread)?])?],
        ),
        (libc::SYS_fcntl, fcntl),
        (libc::SYS_prctl, one_of(0, PRCTL)?),
        (libc::SYS_ioctl, one_of(1, IOCTL)?),
    ]
    .into())
}

/// What a service may do beside: asking which pages an instance has written.
fn serving() -> Result<Rules, ProfileError> {
    let ioctl: Vec<u64> = IOCTL.iter().copied().chain([PAGEMAP_SCAN]).collect();
    Ok([(libc::SYS_ioctl, one_of(1, &ioctl)?)].into())
}

/// One rule for each value of an argument.
fn one_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>, ProfileError> {
    values
        .iter()
        .map(|value| rule(vec![when(argument, SeccompCmpOp::Eq, *value)?]))
        .collect()
}

fn when(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, ProfileError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, value)
        .map_err(|error| ProfileError::Compile(error.to_string()))
}

fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, ProfileError> {
    SeccompRule::new(conditions).map_err(|error| ProfileError::Compile(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_that_leaves_the_sandbox_is_listed() {
        let hostile = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_writev,
            libc::SYS_mount,
            libc::SYS_setns,
            libc::SYS_unshare,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_pidfd_getfd,
            libc::SYS_kill,
            libc::SYS_clone3,
            libc::SYS_keyctl,
            libc::SYS_open_by_handle_at,
        ];
        assert!(hostile.iter().all(|number| {
            ![ALLOWED, ALLOWED_HERE, network::ALLOWED, LOADING]
                .concat()
                .contains(number)
        }));
    }

    #[test]
    fn the_filters_compile_for_this_architecture_and_differ() {
        let filters = Filters::new().unwrap();
        let [command, service] = [Profile::Command, Profile::Service].map(|profile| filters.of(profile));
        assert_ne!(command.loading, command.running);
        assert_ne!(service.loading, service.running);
        assert_ne!(command, service);
    }
}
