//! Why a request fails, and the one table from kinds to ttrpc codes.

use std::io;

use containerd_shim_protos::ttrpc;
use kubewasi_options::AnnotationError;
use tokio::task::JoinError;
use ttrpc::Code;

use super::phase::InvalidMove;
use crate::bootstrap::bundle::BundleError;
use crate::compile::CompileError;
use crate::image::ImageError;
use crate::native::NativeError;
use crate::sandbox::control::SandboxError;
use crate::sandbox::limits::LimitError;
use crate::sandbox::plan::PlanError;
use crate::stdio::StreamError;

/// Why a request of containerd cannot be met.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    #[error("container {id} in namespace {namespace} is not known")]
    NoContainer { namespace: String, id: String },
    #[error("container {id} has no process {exec_id}")]
    NoProcess { id: String, exec_id: String },
    /// containerd tolerates nothing but NotFound here.
    #[error("process already finished: container {id} has exited")]
    Finished { id: String },
    #[error("container {id} in namespace {namespace} exists already")]
    Exists { namespace: String, id: String },
    #[error("container {id} has a process {exec_id} already")]
    ExecExists { id: String, exec_id: String },
    #[error("an exec into container {id} has no exec_id")]
    NoExecId { id: String },
    #[error("the exec's spec is {0:?}, it must be a Process of the OCI runtime spec")]
    ProcessType(String),
    #[error("an exec into container {id}: its spec is malformed: {cause}")]
    ProcessMalformed { id: String, cause: serde_json::Error },
    #[error("container {id}: {cause}")]
    Phase { id: String, cause: InvalidMove },
    #[error("container {id} is {phase}, it has no process yet")]
    NoProcessYet { id: String, phase: &'static str },
    #[error("container {0} was given up before it was created: its client went away")]
    GivenUp(String),
    #[error("the process of container {id} ended before it was started")]
    DeadAtStart { id: String },
    #[error("the process {id} was deleted while it was being started")]
    Discarded { id: String },
    #[error("signal {0} is not a signal, it must be 1 to 64")]
    Signal(u32),
    #[error("{0:?} is not a bundle's absolute path")]
    BundlePath(String),
    #[error("the limits are {0:?}, they must be LinuxResources of the OCI runtime spec")]
    LimitsType(String),
    /// The kernel's word on one of them.
    #[error("container {id}: cannot change its limits: {cause}")]
    Limits { id: String, cause: io::Error },
    #[error("{0} is not supported by io.containerd.wasi.v1 yet")]
    NotYet(String),
    /// As `NotYet`, in a Create.
    #[error("{0} is not supported by io.containerd.wasi.v1 yet")]
    CannotCreateYet(String),
    #[error(transparent)]
    Native(#[from] NativeError),
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Limit(#[from] LimitError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("container {id}: cannot {act}: {cause}")]
    Io {
        id: String,
        act: &'static str,
        cause: io::Error,
    },
    #[error("internal error, the request panicked; the server's log has more")]
    Panicked(#[from] JoinError),
}

impl TaskError {
    /// The table.
    fn code(&self) -> Code {
        match self {
            TaskError::NoContainer { .. } | TaskError::NoProcess { .. } | TaskError::Finished { .. } => Code::NOT_FOUND,
            TaskError::Exists { .. } | TaskError::ExecExists { .. } => Code::ALREADY_EXISTS,
            TaskError::Phase { .. }
            | TaskError::NoProcessYet { .. }
            | TaskError::DeadAtStart { .. }
            | TaskError::Discarded { .. } => Code::FAILED_PRECONDITION,
            // The client may try again.
            TaskError::Compile(CompileError::Unfinished { .. } | CompileError::Queued { .. }) => Code::UNAVAILABLE,
            TaskError::Signal(_)
            | TaskError::BundlePath(_)
            | TaskError::LimitsType(_)
            | TaskError::NoExecId { .. }
            | TaskError::ProcessType(_)
            | TaskError::ProcessMalformed { .. }
            | TaskError::Limits { .. }
            | TaskError::Limit(_)
            | TaskError::Annotation(_)
            | TaskError::Bundle(_)
            | TaskError::Stream(_)
            | TaskError::Image(_)
            | TaskError::Compile(_)
            | TaskError::Plan(_)
            // Never UNIMPLEMENTED: containerd 2.x takes that from a Create to mean the API's version, and asks again in
            // the older one (core/runtime/v2/task_manager.go), by when an idle server may be ending.
            | TaskError::CannotCreateYet(_) => Code::INVALID_ARGUMENT,
            TaskError::NotYet(_) => Code::UNIMPLEMENTED,
            TaskError::ShuttingDown => Code::UNAVAILABLE,
            TaskError::GivenUp(_)
            | TaskError::Native(NativeError::GivenUp)
            | TaskError::Sandbox(SandboxError::GivenUp(_)) => Code::CANCELLED,
            TaskError::Native(NativeError::NoRuntime { .. } | NativeError::Run { .. }) => Code::FAILED_PRECONDITION,
            TaskError::Native(NativeError::Rootfs(_)) => Code::INVALID_ARGUMENT,
            // As containerd's own runc shim has it.
            TaskError::Native(_) => Code::UNKNOWN,
            TaskError::Sandbox(_) | TaskError::Io { .. } | TaskError::Panicked(_) => Code::INTERNAL,
        }
    }
}

impl From<TaskError> for ttrpc::Error {
    fn from(error: TaskError) -> ttrpc::Error {
        let mut message = error.to_string();
        // The causes that the message does not tell already.
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            let text = error.to_string();
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            cause = error.source();
        }
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code(), message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(error: TaskError) -> (Code, String) {
        match ttrpc::Error::from(error) {
            ttrpc::Error::RpcStatus(status) => (status.code(), status.message().to_owned()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn containerd_gets_the_codes_it_relies_on() {
        let id = || "c1".to_owned();
        let (code, message) = status(TaskError::Finished { id: id() });
        assert_eq!(
            (code, message.as_str()),
            (Code::NOT_FOUND, "process already finished: container c1 has exited")
        );
        assert_eq!(
            status(TaskError::NoContainer {
                namespace: "n".into(),
                id: id()
            })
            .0,
            Code::NOT_FOUND
        );
        assert_eq!(
            status(TaskError::Exists {
                namespace: "n".into(),
                id: id()
            })
            .0,
            Code::ALREADY_EXISTS
        );
        let cause = InvalidMove {
            phase: "running",
            attempt: "delete",
        };
        assert_eq!(
            status(TaskError::Phase { id: id(), cause }).0,
            Code::FAILED_PRECONDITION
        );
        assert_eq!(status(TaskError::Signal(99)).0, Code::INVALID_ARGUMENT);
        assert_eq!(status(TaskError::NotYet("exec".into())).0, Code::UNIMPLEMENTED);
        assert_eq!(
            status(TaskError::CannotCreateYet("a terminal".into())).0,
            Code::INVALID_ARGUMENT
        );
    }

    #[test]
    fn a_cause_is_told_once() {
        let message = status(SandboxError::LauncherGone(io::Error::other("broken pipe")).into()).1;
        assert_eq!(message.matches("broken pipe").count(), 1, "{message}");
        let cause = io::Error::other("no space");
        let error = TaskError::Io {
            id: "c1".into(),
            act: "clean up",
            cause,
        };
        assert_eq!(status(error).1, "container c1: cannot clean up: no space");
    }
}
