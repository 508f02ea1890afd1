//! Why something cannot be done with a native container.

use std::io;
use std::path::PathBuf;

use super::rootfs::RootfsError;
use crate::stdio::StreamError;

/// Why a request for a native container failed.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    #[error(
        "the OCI runtime {binary:?} is not to be found on the server's PATH: install runc or crun on the node, or name it by the option runc_binary"
    )]
    NoRuntime { binary: String },
    #[error("the OCI runtime {binary:?} (option runc_binary) cannot be run: {cause}")]
    Run { binary: String, cause: io::Error },
    /// The runtime's own words; containerd's runc shim begins as we do.
    #[error("OCI runtime {act} failed: {message}")]
    Refused { act: &'static str, message: String },
    #[error("it was given up before it was created: its client went away")]
    GivenUp,
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("the OCI runtime {binary:?} sent no terminal: {cause}")]
    NoTerminal { binary: String, cause: io::Error },
    #[error("cannot {act} {}: {cause}", path.display())]
    Bundle {
        act: &'static str,
        path: PathBuf,
        cause: io::Error,
    },
    #[error("the OCI runtime {binary:?} gave no pid in {}: {text:?}", path.display())]
    NoPid {
        binary: String,
        path: PathBuf,
        text: String,
    },
    #[error("cannot watch the process {pid} of the OCI runtime {binary:?}: {cause}")]
    Watch { binary: String, pid: i32, cause: io::Error },
    #[error("the OCI runtime {binary:?} left the container in the cgroup {}, which is not the container's own", path.display())]
    ForeignCgroup { binary: String, path: PathBuf },
}
