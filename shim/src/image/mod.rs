//! From a container to its wasm bytes: the entry point in the root filesystem, or a wasm layer of the image.
//!
//! ```text
//! resolve ──> rootfs (mounts to layers) ──> lookup (path to file) ──> remembered (file to digest)
//!        └──> origin (container to image) ──> content_store (gRPC) ──> manifest ──> layers (which of them are wasm)
//! watch   ──> content_store ──> seen (what images were)
//! ```

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{collections::HashSet, io};

mod content_store;
mod copies;
mod digest;
mod entry;
mod executable;
mod layers;
mod lookup;
mod manifest;
mod manifests;
pub mod memory;
mod missing;
mod origin;
mod record;
mod remembered;
mod resolve;
mod rootfs;
mod seen;
mod volume;
mod watch;

pub use content_store::StoreError;
pub use copies::Copy;
pub use digest::Digest;
pub use executable::Executable;
pub use origin::Image;
pub use remembered::Identity;
pub use volume::{Content, Volume};
pub use watch::Change;

use tokio::sync::Semaphore;

use content_store::ContentStore;
use copies::Room;
use entry::Places;
use missing::{Missing, absence};
use remembered::Remembered;

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
    /// What is mounted in the root filesystem, in the order of the spec.
    pub volumes: &'a Arc<Vec<Volume>>,
    /// The image from which the container was created, where that is known already; else containerd is asked.
    pub image: Option<&'a Image>,
}

impl Request<'_> {
    /// What is to be found.
    fn entry(&self) -> Result<&str, ImageError> {
        let entry = self.args.first().filter(|entry| !entry.is_empty());
        entry.map(String::as_str).ok_or(ImageError::NoEntryPoint)
    }

    /// Where it may be.
    fn places(&self) -> Result<Arc<Places>, ImageError> {
        Ok(Arc::new(Places::new(self.entry()?, self.cwd, self.path)?))
    }
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
    /// The container's image, when it is a layer of that: by the time of an exec its name may mean another image.
    pub image: Option<Image>,
}

/// Where the bytes of a wasm binary are.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file of a committed layer, open for reading; it does not change.
    File(Arc<OwnedFd>),
    /// A sealed copy of a file that somebody else can write.
    Copy(Arc<Copy>),
    /// A blob in containerd's content store.
    Content { namespace: String },
}

/// How much was read to find out what containers run, since the server started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counters {
    /// Wasm files of root filesystems that were read whole.
    pub files_read: u64,
    /// Wasm layers that were read from the content store.
    pub layers_read: u64,
    /// Blobs of the content store: those layers, manifests, indexes and configs.
    pub blobs_read: u64,
    /// Bytes of files and blobs.
    pub bytes_read: u64,
}

/// Counts reads; shared by the threads that do them.
#[derive(Debug, Default)]
struct Reads {
    files: AtomicU64,
    layers: AtomicU64,
    blobs: AtomicU64,
    bytes: AtomicU64,
}

impl Reads {
    fn file(&self, size: u64) {
        self.files.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(size, Ordering::Relaxed);
    }

    fn layer(&self) {
        self.layers.fetch_add(1, Ordering::Relaxed);
    }

    fn blob(&self, size: u64) {
        self.blobs.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(size, Ordering::Relaxed);
    }
}

/// The largest wasm binary that is read, in bytes: four times the largest that toolchains make today, and what a
/// server holds in memory at once stays bounded.
pub const MOST_WASM: u64 = 256 << 20;

/// Resolves containers to programs; asks containerd (gRPC at `address`) only for what the root filesystem cannot tell.
pub struct Images {
    store: ContentStore,
    remembered: Arc<Remembered>,
    reads: Arc<Reads>,
    /// For copies of files in root filesystems.
    room: Room,
    /// For those of files in volumes: one that hangs keeps what it has taken.
    volume_room: Room,
    /// Limits lookups in volumes, which may hang.
    volume_places: Arc<Semaphore>,
}

/// Why a container's program could not be found.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("the container has no entry point: set process.args (in Kubernetes, the container's command)")]
    NoEntryPoint,
    #[error("exec: {entry:?}: {}: {missing}", absence(entry))]
    Missing { entry: String, missing: Missing },
    #[error(
        "exec: {entry:?}: {}: it cannot be executed, since it is neither a file of the container nor a wasm layer of its image. What can be: {offered}, or the path of a file in the container",
        absence(entry)
    )]
    NothingToExecute { entry: String, offered: String },
    #[error("{name} cannot be executed: it begins with {head}, neither wasm nor a native binary nor a script with #!")]
    NotExecutable { name: String, head: String },
    #[error("exec: {name:?}: is a directory: name the file in it")]
    Directory { name: String },
    #[error("exec: {name:?}: permission denied: it is a device, socket or fifo, not a file")]
    Special { name: String },
    #[error("{name}: the file is empty, not a wasm module or component")]
    Empty { name: String },
    #[error("{name}: not a wasm module or component: it begins with {head}, not with \\0asm")]
    NotWasm { name: String, head: String },
    #[error("{name}: {size} bytes of wasm; at most {MOST_WASM} are supported")]
    TooLarge { name: String, size: u64 },
    #[error(
        "{name}: the server holds copies of other wasm files, and had no room for one of {size} bytes within {seconds} seconds: try again"
    )]
    NoRoom { name: String, size: u64, seconds: u64 },
    #[error(transparent)]
    Choice(#[from] layers::ChoiceError),
    #[error(transparent)]
    Path(#[from] entry::PathError),
    #[error(transparent)]
    View(#[from] rootfs::ViewError),
    #[error(transparent)]
    Lookup(#[from] lookup::LookupError),
    #[error("reading {path:?} failed: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Origin(#[from] origin::OriginError),
    #[error(
        "looking for {entry:?} in the container's volumes took over {seconds} seconds: check that their servers answer"
    )]
    Hangs { entry: String, seconds: u64 },
    #[error("{what} failed: {error}")]
    Internal { what: &'static str, error: String },
}

impl Images {
    /// A resolver that asks the containerd at `address`, a unix socket, when it has to.
    pub fn new(address: PathBuf) -> Images {
        let reads = Arc::<Reads>::default();
        Images {
            store: ContentStore::new(address, reads.clone()),
            remembered: Arc::default(),
            reads,
            room: Room::default(),
            volume_room: Room::default(),
            volume_places: Arc::new(Semaphore::new(resolve::VOLUME_PLACES)),
        }
    }

    /// Remembers digests of files in `folder` too, so that a restarted server reads no file again. A folder that cannot
    /// be used costs that alone.
    pub fn remember_in(mut self, folder: &Path) -> Images {
        match Remembered::kept_in(folder) {
            Ok(remembered) => self.remembered = Arc::new(remembered),
            Err(error) => tracing::warn!(%error, "digests of wasm files are not kept over restarts"),
        }
        self
    }

    /// Opens the bytes of `wasm` for reading: the file itself, or a sealed memfd filled from the content store. The
    /// file's offset is shared with other readers: read by position.
    pub async fn open(&self, wasm: &Wasm) -> Result<OwnedFd, ImageError> {
        let read_error = |source| ImageError::Read {
            path: PathBuf::from(&wasm.name),
            source,
        };
        match &wasm.source {
            Source::File(fd) => fd.try_clone().map_err(read_error),
            // What is being compiled is bounded by itself when the copy's room is given back before.
            Source::Copy(copy) => copy.fd.try_clone().map_err(read_error),
            Source::Content { namespace } => {
                let file: File = self.store.layer(namespace, wasm.digest, MOST_WASM).await?;
                Ok(file.into())
            }
        }
    }

    /// The digests of all wasm that images on this node are known to hold: all wasm layers, and all files that were
    /// read from a layer which is still there.
    ///
    /// # Errors
    /// When containerd could not be asked: then nothing is known to be gone.
    pub async fn live(&self) -> Result<HashSet<Digest>, ImageError> {
        let mut digests = self.store.all_wasm().await?;
        let files = self.remembered.live();
        digests.extend(files.map_err(|source| ImageError::Read {
            path: PathBuf::from("digests.json"),
            source,
        })?);
        Ok(digests)
    }

    /// What was read so far.
    pub fn counters(&self) -> Counters {
        Counters {
            files_read: self.reads.files.load(Ordering::Relaxed),
            layers_read: self.reads.layers.load(Ordering::Relaxed),
            blobs_read: self.reads.blobs.load(Ordering::Relaxed),
            bytes_read: self.reads.bytes.load(Ordering::Relaxed),
        }
    }
}
