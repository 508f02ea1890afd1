//! Containers' records, images and their content, asked of containerd over its gRPC API.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::snapshots::StatSnapshotRequest;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::{
    GetContainerRequest, GetImageRequest, ListImagesRequest, ListNamespacesRequest, ReadContentRequest,
};
use oci_spec::image::{ImageIndex, ImageManifest};
use tokio::sync::OnceCell;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::layers;
use super::manifest::{Config, Manifest};
use super::manifests::{MOST_MANIFESTS, Waiting};
use super::record::{Record, Time};
use super::seen::Seen;
use super::{Digest, Reads, memory};

/// Why containerd could not be asked, or what it answered makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("connecting to containerd at {address:?} failed: {source}")]
    Connect {
        address: PathBuf,
        source: tonic::transport::Error,
    },
    #[error("asking containerd for {what} failed: {} ({:?})", status.message(), status.code())]
    Call { what: String, status: Box<Status> },
    #[error("containerd did not answer within {} s when asked for {what}", TIMEOUT.as_secs())]
    Timeout { what: String },
    #[error("{what} has {size} bytes; at most {most} are read")]
    TooLarge { what: String, size: u64, most: u64 },
    #[error("image {image} has more than {most} {of}: so many are not looked through")]
    TooMany {
        image: String,
        most: usize,
        of: &'static str,
    },
    #[error("{what} is not valid: {source}")]
    Json { what: String, source: serde_json::Error },
    #[error("{what} has the digest {found}: the content store is damaged, pull the image again")]
    Damaged { what: String, found: Digest },
    #[error("keeping {what} in memory failed: {source}")]
    Memory { what: String, source: std::io::Error },
    #[error("containerd's answer has no {what}")]
    Incomplete { what: String },
}

/// The time of an image that containerd gives none: later than every container, so it proves nothing.
const NEVER: Time = (i64::MAX, 0);

/// Longer than any healthy containerd takes, shorter than the clients' patience with Create.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The most bytes of a manifest, index or config (the distribution spec lets registries refuse more).
const MOST_JSON: u64 = 4 << 20;

/// So many wasm layers one image may have, in all its manifests for this node.
const MOST_LAYERS: usize = 256;

/// As many images are remembered; one takes a few hundred bytes.
const MOST_IMAGES: usize = 1024;

/// One that takes more is read anew each time, in bytes.
const MOST_REMEMBERED: usize = 16 << 10;

/// A namespace, the digest of an image's index or manifest, and which of its manifests are meant.
type Target = (String, String, Platforms);

/// Which manifests of an index are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Platforms {
    /// Those for wasm and for this node, of which the CRI plugin chooses.
    Node,
    /// Those of every platform, since clients other than the CRI plugin may be given one.
    All,
}

/// What an image's name means.
pub struct Named {
    /// The digest of the image's index or manifest.
    pub target: String,
    /// When the image was last written, by containerd's clock: with this target, unless it was the same before.
    pub updated: Time,
}

/// The containerd at one address.
pub struct ContentStore {
    address: PathBuf,
    /// Connected at the first call; tonic connects it again after containerd was restarted.
    channel: OnceCell<Channel>,
    /// What images are: the content of a digest never changes.
    images: Mutex<HashMap<Target, Arc<Vec<Manifest>>>>,
    /// What they were, also of images that are gone.
    seen: Seen,
    reads: Arc<Reads>,
}

impl ContentStore {
    pub fn new(address: PathBuf, reads: Arc<Reads>) -> ContentStore {
        ContentStore {
            address,
            channel: OnceCell::new(),
            images: Mutex::default(),
            seen: Seen::default(),
            reads,
        }
    }

    /// A channel to containerd. Made anew by tonic when it breaks.
    pub async fn channel(&self) -> Result<Channel, StoreError> {
        let connect = || async {
            let connecting = containerd_client::connect(&self.address);
            match tokio::time::timeout(TIMEOUT, connecting).await {
                Ok(Ok(channel)) => Ok(channel),
                Ok(Err(source)) => Err(StoreError::Connect {
                    address: self.address.clone(),
                    source,
                }),
                Err(_) => Err(StoreError::Timeout {
                    what: "a connection".to_owned(),
                }),
            }
        };
        self.channel.get_or_try_init(connect).await.cloned()
    }

    /// The record of a container.
    pub async fn record(&self, namespace: &str, container: &str) -> Result<Record, StoreError> {
        let what = || format!("container {container}");
        let channel = self.channel().await?;
        let answer = call(&what, || {
            let id = container.to_owned();
            let request = within(namespace, GetContainerRequest { id });
            let mut client = ContainersClient::new(channel.clone());
            async move { client.get(request).await }
        })
        .await?;
        let record = answer.container.map(Record::of);
        record.ok_or_else(|| StoreError::Incomplete { what: what() })
    }

    /// What the image's name means now; `None` when there is no image of this name.
    pub async fn named(&self, namespace: &str, name: &str) -> Result<Option<Named>, StoreError> {
        let what = || format!("image {name}");
        let channel = self.channel().await?;
        let answer = call(&what, || {
            let request = within(namespace, GetImageRequest { name: name.to_owned() });
            let mut client = ImagesClient::new(channel.clone());
            async move { client.get(request).await }
        })
        .await;
        let Some(answer) = present(answer)? else {
            return Ok(None);
        };
        let incomplete = || StoreError::Incomplete { what: what() };
        let image = answer.image.ok_or_else(incomplete)?;
        Ok(Some(Named {
            target: image.target.ok_or_else(incomplete)?.digest,
            updated: image.updated_at.map_or(NEVER, |at| (at.seconds, at.nanos)),
        }))
    }

    /// The parent of a container's snapshot, empty where it has none; `None` when there is no such snapshot.
    pub async fn parent(&self, namespace: &str, snapshotter: &str, key: &str) -> Result<Option<String>, StoreError> {
        let what = || format!("snapshot {key}");
        let channel = self.channel().await?;
        let answer = call(&what, || {
            let request = StatSnapshotRequest {
                snapshotter: snapshotter.to_owned(),
                key: key.to_owned(),
            };
            let request = within(namespace, request);
            let mut client = SnapshotsClient::new(channel.clone());
            async move { client.stat(request).await }
        })
        .await;
        let Some(answer) = present(answer)? else {
            return Ok(None);
        };
        let info = answer.info.ok_or_else(|| StoreError::Incomplete { what: what() })?;
        Ok(Some(info.parent))
    }

    /// The manifests with this config that images of the namespace lead to, or have led to since the server started.
    pub async fn with_config(&self, namespace: &str, config: &str) -> Result<Vec<Manifest>, StoreError> {
        let mut found = self.seen.with_config(namespace, config);
        for (name, target) in self.targets(namespace).await? {
            for manifest in self.manifests_if_sound(namespace, &name, &target).await?.iter() {
                if manifest.config == config && !found.iter().any(|known| known.digest == manifest.digest) {
                    found.push(manifest.clone());
                }
            }
        }
        Ok(found)
    }

    /// Reads all images of all namespaces, so that their manifests stay known after they are removed. `since` is the time
    /// from which on image events are received.
    pub async fn see_all(&self, since: Time) -> Result<(), StoreError> {
        self.all_wasm().await?;
        self.seen.all_since(Some(since));
        Ok(())
    }

    /// Records that image events are no longer received.
    pub fn sees_no_more(&self) {
        self.seen.all_since(None);
    }

    /// Whether every image that has been here since `created` has been seen.
    pub fn has_seen_all_since(&self, created: Time) -> bool {
        self.seen.has_seen_all_since(created)
    }

    /// The digests of all wasm layers of all images in all namespaces.
    pub async fn all_wasm(&self) -> Result<HashSet<Digest>, StoreError> {
        let channel = self.channel().await?;
        let namespaces = call(&|| "its namespaces".to_owned(), || {
            let mut client = NamespacesClient::new(channel.clone());
            async move { client.list(ListNamespacesRequest::default()).await }
        })
        .await?;
        let mut digests = HashSet::new();
        for namespace in namespaces.namespaces.into_iter().map(|namespace| namespace.name) {
            for (name, target) in self.targets(&namespace).await? {
                let manifests = self.manifests_if_sound(&namespace, &name, &target).await?;
                digests.extend(
                    manifests
                        .iter()
                        .flat_map(|manifest| &manifest.wasm)
                        .map(|layer| layer.digest),
                );
            }
        }
        Ok(digests)
    }

    /// Names and targets of all images of the namespace.
    async fn targets(&self, namespace: &str) -> Result<Vec<(String, String)>, StoreError> {
        let channel = self.channel().await?;
        let answer = call(&|| format!("the images of namespace {namespace}"), || {
            let request = within(namespace, ListImagesRequest::default());
            let mut client = ImagesClient::new(channel.clone());
            async move { client.list(request).await }
        })
        .await?;
        let images = answer.images.into_iter();
        Ok(images
            .filter_map(|image| Some((image.name, image.target?.digest)))
            .collect())
    }

    /// As [`ContentStore::manifests`]; none of an image that is refused by itself: nothing of it ever runs, and the
    /// others do not wait for it.
    async fn manifests_if_sound(
        &self,
        namespace: &str,
        image: &str,
        target: &str,
    ) -> Result<Arc<Vec<Manifest>>, StoreError> {
        match self.manifests(namespace, image, target).await {
            Err(
                StoreError::TooMany { .. }
                | StoreError::TooLarge { .. }
                | StoreError::Json { .. }
                | StoreError::Damaged { .. },
            ) => Ok(Arc::default()),
            manifests => manifests,
        }
    }

    /// A wasm layer, checked against its digest, in a sealed memfd.
    pub async fn layer(&self, namespace: &str, digest: Digest, most: u64) -> Result<File, StoreError> {
        let what = || format!("layer {digest}");
        let memory_error = |source| StoreError::Memory { what: what(), source };
        let mut file = memory::file("wasm layer").map_err(memory_error)?;
        self.read(namespace, &digest.to_string(), most, |piece| {
            file.write_all(piece).map_err(memory_error)
        })
        .await?;
        memory::seal(&file).map_err(memory_error)?;
        self.reads.layer();
        Ok(file)
    }

    /// The manifests behind the descriptor with this digest, which `image` means, for wasm and for this node.
    pub async fn manifests(
        &self,
        namespace: &str,
        image: &str,
        target: &str,
    ) -> Result<Arc<Vec<Manifest>>, StoreError> {
        let key = (namespace.to_owned(), target.to_owned(), Platforms::Node);
        self.manifests_of(key, image).await
    }

    /// As [`ContentStore::manifests`], of every platform.
    pub async fn all_manifests(
        &self,
        namespace: &str,
        image: &str,
        target: &str,
    ) -> Result<Arc<Vec<Manifest>>, StoreError> {
        let key = (namespace.to_owned(), target.to_owned(), Platforms::All);
        self.manifests_of(key, image).await
    }

    async fn manifests_of(&self, key: Target, image: &str) -> Result<Arc<Vec<Manifest>>, StoreError> {
        if let Some(known) = self.images.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(known.clone());
        }
        let (manifests, whole) = self.read_manifests(&key, image).await?;
        self.seen.add(&key.0, &manifests);
        let manifests = Arc::new(manifests);
        // What is not on the node today may be pulled tomorrow: only the whole truth is remembered.
        if whole && weight(&manifests) <= MOST_REMEMBERED {
            let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
            if images.len() >= MOST_IMAGES {
                images.clear();
            }
            images.insert(key, manifests.clone());
        }
        Ok(manifests)
    }

    /// The manifests, and whether all that were looked for are on the node.
    async fn read_manifests(
        &self,
        (namespace, target, platforms): &Target,
        image: &str,
    ) -> Result<(Vec<Manifest>, bool), StoreError> {
        let too_many = |most, of| StoreError::TooMany {
            image: image.to_owned(),
            most,
            of,
        };
        let mut waiting = Waiting::new(target);
        let (mut manifests, mut whole, mut layers) = (Vec::new(), true, 0);
        while let Some((digest, depth)) = waiting.next() {
            let what = || format!("manifest {digest}");
            let Some(bytes) = self.json(namespace, &digest).await? else {
                whole = false;
                continue;
            };
            let json_error = |source| StoreError::Json { what: what(), source };
            let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(json_error)?;
            if value.get("manifests").is_some() {
                let index: ImageIndex = serde_json::from_value(value).map_err(json_error)?;
                let chosen = match platforms {
                    Platforms::Node => layers::candidates(&index, architecture()),
                    Platforms::All => layers::programs(&index, architecture()),
                };
                let named = chosen.iter().map(|manifest| manifest.digest().to_string());
                waiting
                    .add(named, depth)
                    .map_err(|_| too_many(MOST_MANIFESTS, "manifests for this node"))?;
                continue;
            }
            let manifest: ImageManifest = serde_json::from_value(value).map_err(json_error)?;
            let config = self.config(namespace, manifest.config().digest().as_ref()).await?;
            whole &= config.is_some();
            let manifest = Manifest::new(&digest, &manifest, &config.unwrap_or_default());
            layers += manifest.wasm.len();
            if layers > MOST_LAYERS {
                return Err(too_many(MOST_LAYERS, "wasm layers"));
            }
            manifests.push(manifest);
        }
        Ok((manifests, whole))
    }

    /// An image's or an artifact's config; `None` when it is not on the node. One that cannot be read says nothing.
    pub async fn config(&self, namespace: &str, digest: &str) -> Result<Option<Config>, StoreError> {
        let bytes = self.json(namespace, digest).await?;
        Ok(bytes.map(|bytes| serde_json::from_slice(&bytes).unwrap_or_default()))
    }

    /// A small blob; `None` when it is not on the node.
    async fn json(&self, namespace: &str, digest: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let mut bytes = Vec::new();
        let read = self.read(namespace, digest, MOST_JSON, |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        });
        let read = present(read.await)?;
        Ok(read.map(|()| bytes))
    }

    /// Reads a blob of at most `most` bytes in pieces and checks its digest.
    async fn read(
        &self,
        namespace: &str,
        digest: &str,
        most: u64,
        mut each: impl FnMut(&[u8]) -> Result<(), StoreError> + Send,
    ) -> Result<(), StoreError> {
        use sha2::{Digest as _, Sha256};
        let what = || format!("content {digest}");
        let channel = self.channel().await?;
        let mut pieces = call(&what, || {
            let request = ReadContentRequest {
                digest: digest.to_owned(),
                offset: 0,
                size: 0,
            };
            let request = within(namespace, request);
            let mut client = ContentClient::new(channel.clone());
            async move { client.read(request).await }
        })
        .await?;
        let (mut hasher, mut size) = (Sha256::new(), 0);
        while let Some(piece) = answered(&what, pieces.message()).await? {
            size += piece.data.len() as u64;
            if size > most {
                return Err(StoreError::TooLarge {
                    what: what(),
                    size,
                    most,
                });
            }
            hasher.update(&piece.data);
            each(&piece.data)?;
        }
        let found = Digest(hasher.finalize().into());
        // Other algorithms than sha256 are containerd's to check; wasm layers never use one here.
        if digest.starts_with("sha256:") && digest != found.to_string() {
            return Err(StoreError::Damaged { what: what(), found });
        }
        self.reads.blob(size);
        Ok(())
    }
}

/// About how many bytes of memory an image's manifests take.
fn weight(manifests: &[Manifest]) -> usize {
    manifests.iter().map(Manifest::weight).sum()
}

/// The node's architecture as Go and image indexes name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn within<T>(namespace: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    // containerd's namespaces are identifiers, which are always valid header values; without the header it refuses.
    if let Ok(value) = namespace.parse() {
        request.metadata_mut().insert("containerd-namespace", value);
    }
    request
}

/// `None` where containerd says that there is no such thing.
fn present<T>(answer: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(StoreError::Call { status, .. }) if status.code() == Code::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Calls containerd, once more when the connection was found broken, each time within [`TIMEOUT`].
async fn call<T, F>(what: &impl Fn() -> String, mut attempt: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<tonic::Response<T>, Status>>,
{
    match answered(what, attempt()).await {
        Err(StoreError::Call { status, .. }) if status.code() == Code::Unavailable => answered(what, attempt()).await,
        result => result,
    }
    .map(tonic::Response::into_inner)
}

/// Waits for an answer, within [`TIMEOUT`].
async fn answered<T>(
    what: &impl Fn() -> String,
    answer: impl Future<Output = Result<T, Status>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(TIMEOUT, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(status)) => Err(StoreError::Call {
            what: what(),
            status: Box::new(status),
        }),
        Err(_) => Err(StoreError::Timeout { what: what() }),
    }
}
