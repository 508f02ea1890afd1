//! Executing a native binary in a wasm container: confined as an ordinary container's process, without the filter of guests.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{Access, FileType, access, stat};

use super::child::install_profile;
use super::failure::{Failure, step};
use super::plan::Confinement;
use crate::sys::credentials;

/// The exit code when there is something that cannot be executed, and when there is nothing (POSIX shell, 2.8.2).
const CANNOT_EXECUTE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// Takes the credentials. Without no_new_privs a filter needs the privilege that they may lack, so it comes first then.
pub fn confine(confinement: &Confinement) -> Result<(), Failure> {
    if confinement.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(step("set no_new_privs"))?;
    } else {
        install_profile(confinement)?;
    }
    credentials::take(&confinement.ids, &confinement.capabilities).map_err(|(name, error)| step(name)(error))
}

/// Looks whether `path` can be executed, while that can still be told before the start.
pub fn check(path: &Path) -> Result<(), Failure> {
    let what = || format!("execute {}", path.display());
    if FileType::from_raw_mode(stat(path).map_err(step(what()))?.st_mode) != FileType::RegularFile {
        return Err(step(what())("it is not a file"));
    }
    access(path, Access::EXEC_OK).map_err(step(what()))
}

/// Executes `path`; comes back when that failed, with the exit code for it.
pub fn execute(path: &Path, confinement: &Confinement, environment: &[(String, String)]) -> (Failure, i32) {
    // As late as can be: the profile need not allow what was done before.
    if confinement.no_new_privileges
        && let Err(failure) = install_profile(confinement)
    {
        return (failure, CANNOT_EXECUTE);
    }
    let mut command = Command::new(path);
    if let Some((name, rest)) = confinement.arguments.split_first() {
        command.arg0(name).args(rest);
    }
    let environment = environment.iter().map(|(name, value)| (name, value));
    let error = command.env_clear().envs(environment).exec();
    let code = match error.kind() {
        io::ErrorKind::NotFound => NOT_FOUND,
        _ => CANNOT_EXECUTE,
    };
    (step(format!("execute {}", path.display()))(error), code)
}
