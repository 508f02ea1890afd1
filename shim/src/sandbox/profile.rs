//! A pod's seccomp profile as filter programs: one program an action, stacked, so that the kernel's strictest-wins rule
//! gives what the profile says (pure; seccomp(2), OCI runtime spec `linux.seccomp`).

use std::collections::BTreeMap;
use std::str::FromStr;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};
use serde::{Deserialize, Serialize};
use syscalls::Sysno;

/// A filter program in a form that travels: an instruction a word (`struct sock_filter`, linux/filter.h).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program(Vec<u64>);

/// What in a profile is wrong or refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    #[error("linux.seccomp action {0} is not supported for wasm containers: use SCMP_ACT_ERRNO or SCMP_ACT_KILL")]
    Action(&'static str),
    #[error("linux.seccomp.{0} {1} is not supported for wasm containers: remove it from the profile")]
    Field(&'static str, String),
    #[error("linux.seccomp rule of {syscall:?} is not valid: {reason}")]
    Rule { syscall: String, reason: String },
    #[error("linux.seccomp cannot be compiled: {0}")]
    Compile(String),
}

impl Program {
    fn pack(program: &BpfProgram) -> Program {
        let word = |instruction: &sock_filter| {
            u64::from(instruction.code) << 48
                | u64::from(instruction.jt) << 40
                | u64::from(instruction.jf) << 32
                | u64::from(instruction.k)
        };
        Program(program.iter().map(word).collect())
    }

    /// The program as the kernel takes it.
    pub fn unpack(&self) -> BpfProgram {
        let part = |word: u64, shift: u32| (word >> shift) as u8;
        self.0
            .iter()
            .map(|word| sock_filter {
                code: (word >> 48) as u16,
                jt: part(*word, 40),
                jf: part(*word, 32),
                k: *word as u32,
            })
            .collect()
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The programs of a profile.
///
/// One for each action that is not the default applies that action to its rules and lets the rest through; the last one
/// carries the default action and lets through whatever any rule names. Names that this build does not know are ignored, as
/// runc does: no program of this architecture can call them.
///
/// # Errors
///
/// An action that needs a supervisor or tracer, or a rule that is not valid.
pub fn programs(profile: &LinuxSeccomp) -> Result<Vec<Program>, ProfileError> {
    if let Some(path) = profile.listener_path() {
        return Err(ProfileError::Field("listenerPath", path.display().to_string()));
    }
    if let Some(flag) = profile.flags().iter().flatten().next() {
        return Err(ProfileError::Field("flags", format!("{flag:?}")));
    }
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut by_action: Vec<(SeccompAction, Rules)> = Vec::new();
    let mut named = Rules::new();
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        if action == default {
            continue;
        }
        for name in rule.names() {
            let Ok(number) = Sysno::from_str(name) else { continue };
            let number = i64::from(number.id());
            let rules = conditions(name, rule.args().as_deref().unwrap_or_default())?;
            add(&mut named, number, &rules);
            let position = by_action
                .iter()
                .position(|(known, _)| *known == action)
                .unwrap_or_else(|| {
                    by_action.push((action.clone(), Rules::new()));
                    by_action.len() - 1
                });
            add(&mut by_action[position].1, number, &rules);
        }
    }
    // The default's program comes last: it may deny the calls that install another.
    let mut programs = Vec::new();
    for (action, rules) in by_action {
        if action != SeccompAction::Allow {
            programs.push(compile(rules, SeccompAction::Allow, action)?);
        }
    }
    if default != SeccompAction::Allow {
        programs.push(compile(named, default, SeccompAction::Allow)?);
    }
    Ok(programs)
}

/// Adds rules of one syscall. An empty list matches every call, so it absorbs conditions; `None` would be a syscall
/// that is not there.
fn add(rules: &mut Rules, number: i64, new: &[SeccompRule]) {
    match rules.get_mut(&number) {
        None => {
            rules.insert(number, new.to_vec());
        }
        Some(known) if known.is_empty() => {}
        Some(known) if new.is_empty() => known.clear(),
        Some(known) => known.extend_from_slice(new),
    }
}

/// The rules of one entry. Conditions on different arguments must all hold; several on one argument are alternatives, as
/// libseccomp's users and runc have it.
fn conditions(syscall: &str, arguments: &[LinuxSeccompArg]) -> Result<Vec<SeccompRule>, ProfileError> {
    let error = |error: seccompiler::BackendError| ProfileError::Rule {
        syscall: syscall.to_owned(),
        reason: error.to_string(),
    };
    let mut list = Vec::new();
    let mut seen = Vec::new();
    let mut repeated = false;
    for argument in arguments {
        let index = argument.index();
        repeated |= seen.contains(&index);
        seen.push(index);
        let value = argument.value();
        let (operator, value) = match argument.op() {
            LinuxSeccompOperator::ScmpCmpNe => (SeccompCmpOp::Ne, value),
            LinuxSeccompOperator::ScmpCmpLt => (SeccompCmpOp::Lt, value),
            LinuxSeccompOperator::ScmpCmpLe => (SeccompCmpOp::Le, value),
            LinuxSeccompOperator::ScmpCmpEq => (SeccompCmpOp::Eq, value),
            LinuxSeccompOperator::ScmpCmpGe => (SeccompCmpOp::Ge, value),
            LinuxSeccompOperator::ScmpCmpGt => (SeccompCmpOp::Gt, value),
            LinuxSeccompOperator::ScmpCmpMaskedEq => {
                (SeccompCmpOp::MaskedEq(value), argument.value_two().unwrap_or_default())
            }
        };
        let index = u8::try_from(index).unwrap_or(u8::MAX);
        list.push(SeccompCondition::new(index, SeccompCmpArgLen::Qword, operator, value).map_err(error)?);
    }
    if list.is_empty() {
        return Ok(Vec::new());
    }
    let groups = if repeated {
        list.into_iter().map(|one| vec![one]).collect()
    } else {
        vec![list]
    };
    groups
        .into_iter()
        .map(|group| SeccompRule::new(group).map_err(error))
        .collect()
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<SeccompAction, ProfileError> {
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => SeccompAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => SeccompAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => SeccompAction::Trap,
        LinuxSeccompAction::ScmpActErrno => SeccompAction::Errno(errno.unwrap_or(libc::EPERM as u32)),
        LinuxSeccompAction::ScmpActLog => SeccompAction::Log,
        LinuxSeccompAction::ScmpActAllow => SeccompAction::Allow,
        LinuxSeccompAction::ScmpActNotify => return Err(ProfileError::Action("SCMP_ACT_NOTIFY")),
        LinuxSeccompAction::ScmpActTrace => return Err(ProfileError::Action("SCMP_ACT_TRACE")),
    })
}

/// Compiles rules for this build's architecture.
///
/// # Errors
///
/// What the compiler says of the rules.
pub fn compile(rules: Rules, otherwise: SeccompAction, matched: SeccompAction) -> Result<Program, ProfileError> {
    let compile = |error: seccompiler::BackendError| ProfileError::Compile(error.to_string());
    let architecture = std::env::consts::ARCH.try_into().map_err(compile)?;
    let filter = SeccompFilter::new(rules, otherwise, matched, architecture).map_err(compile)?;
    let program: BpfProgram = filter.try_into().map_err(compile)?;
    Ok(Program::pack(&program))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(json: &str) -> Result<Vec<Program>, ProfileError> {
        programs(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn a_default_of_errno_with_two_other_actions_gives_two_programs() {
        let programs = profile(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
                {"names":["read","no_such_call"],"action":"SCMP_ACT_ALLOW"},
                {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}"#,
        );
        assert_eq!(programs.unwrap().len(), 2);
    }

    #[test]
    fn a_default_of_allow_without_rules_gives_no_program() {
        assert!(profile(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).unwrap().is_empty());
    }

    #[test]
    fn an_action_that_needs_a_supervisor_is_refused_by_name() {
        let json = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_NOTIFY"}]}"#;
        assert!(profile(json).unwrap_err().to_string().contains("SCMP_ACT_NOTIFY"));
    }

    #[test]
    fn a_program_survives_the_journey_in_words() {
        let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["personality"],"action":"SCMP_ACT_ALLOW",
            "args":[{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]}]}"#;
        let program = profile(json).unwrap().remove(0);
        assert_eq!(Program::pack(&program.unpack()), program);
    }

    #[test]
    fn an_entry_without_arguments_absorbs_conditions_on_the_same_call() {
        let mut rules = Rules::new();
        let condition = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 8).unwrap();
        add(&mut rules, 1, &[SeccompRule::new(vec![condition]).unwrap()]);
        add(&mut rules, 1, &[]);
        assert!(rules[&1].is_empty());
    }
}
