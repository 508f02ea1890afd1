//! From a container to its wasm bytes: the entry point in the root filesystem, or a wasm layer of the image.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A sha256 digest, shown as `sha256:<hex>` (OCI image spec, descriptor digests).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One mount of a container's root filesystem, as containerd sends it in Create (`containerd.types.Mount`).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mount {
    /// The file system type, `overlay` or `bind` in practice.
    pub kind: String,
    pub source: String,
    pub options: Vec<String>,
}

/// What a container asks to run.
pub struct Request<'a> {
    /// containerd's namespace, from the ttrpc metadata.
    pub namespace: &'a str,
    /// The container's id.
    pub id: &'a str,
    /// `process.args` of the OCI spec; the first one names the entry point.
    pub args: &'a [String],
    /// `process.cwd` of the OCI spec.
    pub cwd: &'a str,
    /// `PATH` of `process.env`, in which an entry point without a slash is looked up.
    pub path: Option<&'a str>,
    /// The mounts of the root filesystem, empty when the bundle's `rootfs` folder is used as it is.
    pub rootfs: &'a [Mount],
    /// The bundle's root filesystem folder (`root.path`), used when `rootfs` is empty.
    pub root: &'a Path,
}

/// What a container runs: decided from facts alone.
#[derive(Debug)]
pub enum Program {
    /// A module or component for our own guests.
    Wasm(Wasm),
    /// Anything else: the node's runc or crun runs it.
    Native,
}

/// A wasm binary: where its bytes are and their digest.
#[derive(Clone, Debug)]
pub struct Wasm {
    /// The sha256 of the bytes.
    pub digest: Digest,
    /// Where the bytes are read from when they must be compiled.
    pub source: Source,
    /// The entry point or layer, as messages name it.
    pub name: String,
    /// The export to call, from `app.wasm#export`; `None` for the default one.
    pub export: Option<String>,
}

/// Where the bytes of a wasm binary are.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file of the root filesystem, open for reading.
    File(Arc<OwnedFd>),
    /// A blob in containerd's content store.
    Content { namespace: String },
}

/// Resolves containers to programs; asks containerd (gRPC at `address`) only for what the root filesystem cannot tell.
pub struct Images {
    #[expect(dead_code, reason = "the gRPC client comes with the resolver")]
    address: PathBuf,
}

/// Why a container's program could not be found.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("the container has no entry point: set process.args (in Kubernetes, the container's command)")]
    NoEntryPoint,
}

impl Images {
    /// A resolver that asks the containerd at `address`, a unix socket, when it has to.
    pub fn new(address: PathBuf) -> Images {
        Images { address }
    }

    /// Decides what the container runs and finds its bytes' digest, reading them only when it was never seen.
    pub async fn resolve(&self, _request: Request<'_>) -> Result<Program, ImageError> {
        todo!()
    }

    /// Opens the bytes of `wasm` for reading: the file itself, or a sealed memfd filled from the content store.
    pub async fn open(&self, _wasm: &Wasm) -> Result<OwnedFd, ImageError> {
        todo!()
    }
}
