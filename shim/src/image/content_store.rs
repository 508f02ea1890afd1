//! What containerd knows of a container's image, asked over its gRPC API.

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
use containerd_client::services::v1::{
    GetContainerRequest, GetImageRequest, ListImagesRequest, ListNamespacesRequest, ReadContentRequest,
};
use oci_spec::image::{ImageIndex, ImageManifest};
use tokio::sync::OnceCell;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::layers::{self, WasmLayer};
use super::manifests::{MOST_MANIFESTS, Waiting};
use super::{Digest, Reads, memory};

/// One manifest of an image that may be the container's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The os of the image config is one for wasm.
    pub for_wasm: bool,
    pub wasm: Vec<WasmLayer>,
}

/// An image as far as wasm is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub name: String,
    /// The manifests whose content is on the node, the likeliest first.
    pub manifests: Arc<Vec<Manifest>>,
}

impl Image {
    /// The wasm layers of the likeliest manifest that has any.
    pub fn wasm(&self) -> &[WasmLayer] {
        let mut layers = self.manifests.iter().map(|manifest| manifest.wasm.as_slice());
        layers.find(|wasm| !wasm.is_empty()).unwrap_or_default()
    }
}

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

/// A namespace and the digest of an image's index or manifest.
type Target = (String, String);

/// The containerd at one address.
pub struct ContentStore {
    address: PathBuf,
    /// Connected at the first call; tonic connects it again after containerd was restarted.
    channel: OnceCell<Channel>,
    /// What images are: the content of a digest never changes.
    images: Mutex<HashMap<Target, Arc<Vec<Manifest>>>>,
    reads: Arc<Reads>,
}

impl ContentStore {
    pub fn new(address: PathBuf, reads: Arc<Reads>) -> ContentStore {
        ContentStore {
            address,
            channel: OnceCell::new(),
            images: Mutex::default(),
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

    /// The image of a container; `None` when its record names none.
    pub async fn image_of(&self, namespace: &str, container: &str) -> Result<Option<Image>, StoreError> {
        let what = || format!("container {container}");
        let channel = self.channel().await?;
        let record = call(&what, || {
            let request = within(
                namespace,
                GetContainerRequest {
                    id: container.to_owned(),
                },
            );
            let mut client = ContainersClient::new(channel.clone());
            async move { client.get(request).await }
        })
        .await?;
        let record = record
            .container
            .ok_or_else(|| StoreError::Incomplete { what: what() })?;
        if record.image.is_empty() {
            return Ok(None);
        }
        self.image(namespace, &record.image).await.map(Some)
    }

    /// The image of this name.
    pub async fn image(&self, namespace: &str, name: &str) -> Result<Image, StoreError> {
        let what = || format!("image {name}");
        let channel = self.channel().await?;
        let answer = call(&what, || {
            let request = within(namespace, GetImageRequest { name: name.to_owned() });
            let mut client = ImagesClient::new(channel.clone());
            async move { client.get(request).await }
        })
        .await?;
        let target = answer.image.and_then(|image| image.target);
        let target = target.ok_or_else(|| StoreError::Incomplete { what: what() })?;
        let manifests = self.manifests(namespace, name, &target.digest).await?;
        Ok(Image {
            name: name.to_owned(),
            manifests,
        })
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
            let images = call(&|| format!("the images of namespace {namespace}"), || {
                let request = within(&namespace, ListImagesRequest::default());
                let mut client = ImagesClient::new(channel.clone());
                async move { client.list(request).await }
            })
            .await?;
            for image in images.images {
                let Some(target) = image.target else { continue };
                let manifests = match self.manifests(&namespace, &image.name, &target.digest).await {
                    // Of what is refused nothing was ever compiled, and the others are not to wait for it.
                    Err(StoreError::TooMany { .. } | StoreError::TooLarge { .. }) => continue,
                    manifests => manifests?,
                };
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

    /// The manifests behind the descriptor with this digest, which `image` means.
    async fn manifests(&self, namespace: &str, image: &str, target: &str) -> Result<Arc<Vec<Manifest>>, StoreError> {
        let key = (namespace.to_owned(), target.to_owned());
        if let Some(known) = self.images.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(known.clone());
        }
        let (manifests, whole) = self.read_manifests(namespace, image, target).await?;
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
        namespace: &str,
        image: &str,
        target: &str,
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
                let chosen = layers::candidates(&index, architecture());
                let named = chosen.iter().map(|manifest| manifest.digest().to_string());
                waiting
                    .add(named, depth)
                    .map_err(|_| too_many(MOST_MANIFESTS, "manifests for this node"))?;
                continue;
            }
            let manifest: ImageManifest = serde_json::from_value(value).map_err(json_error)?;
            let config = self.json(namespace, manifest.config().digest().as_ref()).await?;
            whole &= config.is_some();
            let os = config
                .and_then(|bytes| serde_json::from_slice::<Config>(&bytes).ok())
                .and_then(|config| config.os);
            let wasm = layers::wasm_layers(&manifest);
            layers += wasm.len();
            if layers > MOST_LAYERS {
                return Err(too_many(MOST_LAYERS, "wasm layers"));
            }
            manifests.push(Manifest {
                for_wasm: os.is_some_and(|os| layers::is_wasm_os(&os)),
                wasm,
            });
        }
        Ok((manifests, whole))
    }

    /// A small blob; `None` when it is not on the node.
    async fn json(&self, namespace: &str, digest: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let mut bytes = Vec::new();
        let read = self.read(namespace, digest, MOST_JSON, |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        });
        match read.await {
            Ok(()) => Ok(Some(bytes)),
            Err(StoreError::Call { status, .. }) if status.code() == Code::NotFound => Ok(None),
            Err(error) => Err(error),
        }
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

/// The one field of an image config, or of an artifact's config, that says anything of wasm.
#[derive(serde::Deserialize)]
struct Config {
    os: Option<String>,
}

/// About how many bytes of memory an image's manifests take.
fn weight(manifests: &[Manifest]) -> usize {
    let layers = || manifests.iter().flat_map(|manifest| &manifest.wasm);
    let titles: usize = layers().filter_map(|layer| layer.title.as_ref()).map(String::len).sum();
    size_of_val(manifests) + layers().count() * size_of::<WasmLayer>() + titles
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
