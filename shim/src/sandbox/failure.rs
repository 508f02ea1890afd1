//! The step of a process's confinement that failed, in words for `kubectl describe pod`.

use std::fmt;

/// The step that failed and why.
#[derive(Debug)]
pub struct Failure {
    step: String,
    error: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.error)
    }
}

/// For `map_err`: names the step that an error ended.
pub fn step<E: fmt::Display>(step: impl Into<String>) -> impl FnOnce(E) -> Failure {
    move |error| Failure {
        step: step.into(),
        error: error.to_string(),
    }
}
