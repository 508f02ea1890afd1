//! The filter that every guest runs under, whatever its pod's profile allows: what our host code calls, nothing else.
//!
//! A call that is not listed fails with `EPERM`. x32 calls carry a bit that no listed number has, so they fail too.
//! Node tests run every guest under it, which is how the list was recorded: a missing call fails them.

use std::collections::BTreeMap;

use seccompiler::{SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use super::profile::{ProfileError, Program, compile};

/// Calls that are allowed with any arguments.
const ALLOWED: &[libc::c_long] = &[
    // Memory without execution: see `conditional` for mmap and mprotect.
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
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fcntl,
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

/// The filter's program.
///
/// # Errors
///
/// What the compiler says of the rules.
pub fn program() -> Result<Program, ProfileError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED
        .iter()
        .chain(ALLOWED_HERE)
        .map(|number| (*number, Vec::new()))
        .collect();
    for (number, rule) in conditional()? {
        rules.insert(number, vec![rule]);
    }
    for (number, argument, values) in listed() {
        let list: Result<Vec<_>, _> = values
            .iter()
            .map(|value| when(argument, SeccompCmpOp::Eq, *value))
            .collect();
        rules.insert(number, list?);
    }
    compile(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)
}

/// Calls that depend on one argument's bits: memory never becomes executable, and new tasks are threads.
fn conditional() -> Result<[(i64, SeccompRule); 3], ProfileError> {
    let execute = libc::PROT_EXEC as u64;
    let thread = libc::CLONE_THREAD as u64;
    Ok([
        (libc::SYS_mmap, when(2, SeccompCmpOp::MaskedEq(execute), 0)?),
        (libc::SYS_mprotect, when(2, SeccompCmpOp::MaskedEq(execute), 0)?),
        (libc::SYS_clone, when(0, SeccompCmpOp::MaskedEq(thread), thread)?),
    ])
}

/// Calls that are allowed with some values of one argument.
fn listed() -> [(i64, u8, &'static [u64]); 2] {
    const PRCTL: &[u64] = &[libc::PR_SET_NAME as u64, libc::PR_SET_NO_NEW_PRIVS as u64];
    const IOCTL: &[u64] = &[
        libc::FIONBIO as u64,
        libc::FIONREAD as u64,
        libc::TCGETS as u64,
        libc::TIOCGWINSZ as u64,
    ];
    [(libc::SYS_prctl, 0, PRCTL), (libc::SYS_ioctl, 1, IOCTL)]
}

fn when(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, ProfileError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, value)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(|error| ProfileError::Compile(error.to_string()))
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
        assert!(
            hostile
                .iter()
                .all(|number| !ALLOWED.contains(number) && !ALLOWED_HERE.contains(number))
        );
    }

    #[test]
    fn the_program_compiles_for_this_architecture() {
        program().unwrap();
    }
}
