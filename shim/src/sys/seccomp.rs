//! System call filters (seccomp(2)): allow lists of ours, compiled to BPF.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// A system call that is allowed.
#[derive(Clone, Copy, Debug)]
pub enum Allow {
    /// Whatever its arguments.
    Call(libc::c_long),
    /// When argument `index` has all bits of `mask` set.
    Bits { call: libc::c_long, index: u8, mask: u64 },
    /// When argument `index`, an int, is `value`.
    Equals { call: libc::c_long, index: u8, value: u64 },
}

/// Why a filter could not be built or entered.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    #[error("building the seccomp filter failed: {0}")]
    Build(#[from] seccompiler::BackendError),
    #[error("entering the seccomp filter failed: {0}")]
    Enter(#[from] seccompiler::Error),
    #[error("no seccomp filter for the architecture {0}")]
    Architecture(&'static str),
}

/// Builds the filter that ends the process at any call not in `allowed`. Another architecture's calls and the x32 ones
/// of x86_64 (numbers with bit 30 set) are never in it.
pub fn allow_list(allowed: &[Allow]) -> Result<BpfProgram, FilterError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for allow in allowed {
        let (call, condition) = match *allow {
            Allow::Call(call) => (call, None),
            Allow::Bits { call, index, mask } => {
                let all_set = SeccompCmpOp::MaskedEq(mask);
                (
                    call,
                    Some(SeccompCondition::new(index, SeccompCmpArgLen::Qword, all_set, mask)?),
                )
            }
            Allow::Equals { call, index, value } => (
                call,
                Some(SeccompCondition::new(
                    index,
                    SeccompCmpArgLen::Dword,
                    SeccompCmpOp::Eq,
                    value,
                )?),
            ),
        };
        // A call without rules is allowed with any arguments.
        let entry = rules.entry(call).or_default();
        if let Some(condition) = condition {
            entry.push(SeccompRule::new(vec![condition])?);
        }
    }
    let arch = std::env::consts::ARCH;
    let arch: TargetArch = arch.try_into().map_err(|_| FilterError::Architecture(arch))?;
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)?;
    Ok(filter.try_into()?)
}

/// Enters `filter` for ever; the calling thread and all it starts from now on are bound by it.
pub fn enter(filter: &BpfProgram) -> Result<(), FilterError> {
    Ok(seccompiler::apply_filter(filter)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter over one call's data as the kernel does (the instructions that seccompiler emits), and says whether
    /// the call is allowed.
    fn allows(filter: &BpfProgram, call: i64, argument: u64) -> bool {
        let mut data = [0_u8; 64];
        data[..4].copy_from_slice(&(call as u32).to_ne_bytes());
        let arch: u32 = if cfg!(target_arch = "x86_64") {
            0xc000_003e
        } else {
            0xc000_00b7
        };
        data[4..8].copy_from_slice(&arch.to_ne_bytes());
        data[16..24].copy_from_slice(&argument.to_ne_bytes());
        let (mut pc, mut a) = (0, 0_u32);
        loop {
            let op = &filter[pc];
            pc += 1;
            let jump = |yes: bool| usize::from(if yes { op.jt } else { op.jf });
            match op.code {
                0x20 => {
                    let at = op.k as usize;
                    a = u32::from_ne_bytes(data[at..at + 4].try_into().expect("four bytes"));
                }
                0x05 => pc += op.k as usize,
                0x15 => pc += jump(a == op.k),
                0x25 => pc += jump(a > op.k),
                0x35 => pc += jump(a >= op.k),
                0x54 => a &= op.k,
                0x06 => return op.k == 0x7fff_0000,
                code => panic!("instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn only_listed_calls_pass_and_no_x32_one() {
        let filter = allow_list(&[Allow::Call(libc::SYS_read), Allow::Call(libc::SYS_write)]).expect("filter");
        assert!(allows(&filter, libc::SYS_read, 0) && allows(&filter, libc::SYS_write, 9));
        assert!(!allows(&filter, libc::SYS_execve, 0));
        assert!(!allows(&filter, libc::SYS_read | 0x4000_0000, 0));
    }

    #[test]
    fn conditions_look_at_bits_and_values() {
        let bits = Allow::Bits {
            call: libc::SYS_clone,
            index: 0,
            mask: 0x1_0000,
        };
        let equals = Allow::Equals {
            call: libc::SYS_prctl,
            index: 0,
            value: 15,
        };
        let filter = allow_list(&[bits, equals]).expect("filter");
        assert!(allows(&filter, libc::SYS_clone, 0x3d_0f00 | 0x1_0000) && !allows(&filter, libc::SYS_clone, 17));
        assert!(allows(&filter, libc::SYS_prctl, 15) && !allows(&filter, libc::SYS_prctl, 22));
    }
}
