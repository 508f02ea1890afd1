//! Where tests have the agent and its helper die: `KUBEWASI_FAULT_AFTER` names the point, and nothing else sets it.

use std::process;

/// The environment variable; only tests set it.
pub const VARIABLE: &str = "KUBEWASI_FAULT_AFTER";

/// Dies as by SIGKILL when the environment asks for it after `point`: a step of the plan, or a phase of the helper.
pub fn after(point: &str) {
    if std::env::var_os(VARIABLE).is_some_and(|asked| asked == point) {
        tracing::error!(point, "{VARIABLE} asks for an end here");
        process::abort();
    }
}
