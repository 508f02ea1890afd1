//! Builds OCI images in every form that carries wasm (docs/images.md), as archives that `ctr image import` reads and as
//! folders that skopeo pushes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::index::Index;

pub const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
pub const WASM: &str = "application/wasm";
pub const IMAGE_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Why a tar that is made in memory does not fail.
const IN_MEMORY: &str = "memory takes what is written";

/// What an image is made of.
#[derive(Clone, Debug)]
pub struct Image {
    pub name: String,
    os: String,
    architecture: String,
    config_type: &'static str,
    /// Fields of the config's `config`: Entrypoint, Env, User, WorkingDir.
    config: serde_json::Map<String, Value>,
    layers: Vec<Layer>,
    diff_ids: DiffIds,
    /// The bytes of another image's config, in place of its own.
    borrowed_config: Option<Vec<u8>>,
    /// The index that the image's name leads to; a manifest without one.
    pub(crate) index: Option<Index>,
}

/// Which layers the config's `rootfs.diff_ids` lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DiffIds {
    /// All, as form C does; the same for an image without wasm layers.
    All,
    /// Those of the root filesystem, which containerd takes beside wasm layers.
    Root,
}

#[derive(Clone, Debug)]
struct Layer {
    media_type: String,
    bytes: Vec<u8>,
    annotations: BTreeMap<String, String>,
}

impl Image {
    /// An image without layers for linux on this architecture.
    pub fn new(name: &str) -> Image {
        Image {
            name: format!("kubewasi.test/{name}:latest"),
            os: "linux".into(),
            architecture: "amd64".into(),
            config_type: IMAGE_CONFIG,
            config: serde_json::Map::new(),
            layers: Vec::new(),
            diff_ids: DiffIds::All,
            borrowed_config: None,
            index: None,
        }
    }

    /// Form A: files in a tar layer, the first of which is the entry point.
    pub fn with_files(name: &str, files: &[(&str, &[u8])]) -> Image {
        Image::new(name).entrypoint(&[files[0].0]).files(files)
    }

    /// Form B: wasm layers under an ordinary image config whose diff_ids are empty.
    pub fn with_wasm_layers(name: &str, layers: &[(&str, &[u8])]) -> Image {
        let image = Image::without_diff_ids(name).entrypoint(&[layers[0].0]);
        layers
            .iter()
            .fold(image, |image, (title, bytes)| image.layer(WASM, Some(title), bytes))
    }

    /// An image for wasi whose config will list diff_ids of tar layers alone, whatever layers are added.
    pub fn without_diff_ids(name: &str) -> Image {
        let mut image = Image::new(name).platform("wasi", "wasm");
        image.diff_ids = DiffIds::Root;
        image
    }

    /// Form C: as B, but the config lists diff_ids.
    pub fn with_listed_wasm_layers(name: &str, layers: &[(&str, &[u8])]) -> Image {
        let mut image = Image::with_wasm_layers(name, layers);
        image.diff_ids = DiffIds::All;
        image
    }

    /// Form D: the CNCF wasm artifact, one wasm layer under a config of its own type.
    pub fn artifact(name: &str, bytes: &[u8]) -> Image {
        let mut image = Image::new(name).platform("wasip2", "wasm").layer(WASM, None, bytes);
        image.config_type = WASM_CONFIG;
        image
    }

    /// Debian's static busybox with the applets that tests name.
    pub fn busybox() -> Image {
        let program = fs::read("/bin/busybox").expect("busybox-static is installed");
        let image = Image::with_files("busybox", &[("/bin/busybox", &program)]).entrypoint(&["/bin/sh"]);
        let applets = [
            "cat", "grep", "id", "kill", "ls", "mkdir", "nc", "ps", "sh", "sleep", "stty", "tail", "tty",
        ];
        applets
            .iter()
            .fold(image, |image, applet| {
                image.symlink(&format!("/bin/{applet}"), "busybox")
            })
            .config("Env", json!(["PATH=/bin"]))
    }

    pub fn platform(mut self, os: &str, architecture: &str) -> Image {
        (self.os, self.architecture) = (os.into(), architecture.into());
        self
    }

    pub fn entrypoint(self, args: &[&str]) -> Image {
        self.config("Entrypoint", json!(args))
    }

    pub fn config(mut self, field: &str, value: Value) -> Image {
        self.config.insert(field.into(), value);
        self
    }

    /// Adds a tar layer of regular files, mode 0755, and the folders they need.
    pub fn files(self, files: &[(&str, &[u8])]) -> Image {
        let layer = tar_layer(files);
        self.layer(TAR, None, &layer)
    }

    /// Adds a tar layer with one symlink.
    pub fn symlink(self, name: &str, target: &str) -> Image {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        archive
            .append_link(&mut header, name.trim_start_matches('/'), target)
            .expect(IN_MEMORY);
        let layer = archive.into_inner().expect(IN_MEMORY);
        self.layer(TAR, None, &layer)
    }

    pub fn layer(mut self, media_type: &str, title: Option<&str>, bytes: &[u8]) -> Image {
        let annotations = title
            .map(|title| ("org.opencontainers.image.title".to_owned(), title.to_owned()))
            .into_iter()
            .collect();
        self.layers.push(Layer {
            media_type: media_type.into(),
            bytes: bytes.to_vec(),
            annotations,
        });
        self
    }

    /// Writes an OCI layout archive of one image `name` whose index has the manifests of `images`, each for its platform.
    pub fn write_index(name: &str, images: &[Image], path: &Path) -> io::Result<()> {
        let (mut files, mut manifests) = (BTreeMap::new(), Vec::new());
        for image in images {
            let (blobs, mut manifest) = image.blobs();
            files.extend(blobs);
            manifest["platform"] = json!({"os": image.os, "architecture": image.architecture});
            manifests.push(manifest);
        }
        let index = |manifests: &[Value]| json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        let bytes = index(&manifests).to_string().into_bytes();
        let digest = hex_digest(&bytes);
        let descriptor = json!({"mediaType": INDEX, "digest": format!("sha256:{digest}"), "size": bytes.len(),
                                "annotations": {"io.containerd.image.name": name}});
        files.insert(format!("blobs/sha256/{digest}"), bytes);
        files.insert("index.json".into(), index(&[descriptor]).to_string().into_bytes());
        files.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        archive(&files, path)
    }

    /// The platform, as `ctr` wants it.
    pub fn os_and_architecture(&self) -> String {
        format!("{}/{}", self.os, self.architecture)
    }

    /// Writes an OCI layout archive.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        archive(&self.layout(), path)
    }

    /// Writes an OCI layout folder, which skopeo reads.
    pub fn write_folder(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder.join("blobs/sha256"))?;
        for (name, bytes) in self.layout() {
            fs::write(folder.join(name), bytes)?;
        }
        Ok(())
    }

    /// The digest of the config, by which the CRI knows the image.
    pub fn id(&self) -> String {
        format!("sha256:{}", hex_digest(&self.config_bytes()))
    }

    /// Gives the image the config of `other`, byte for byte.
    pub fn with_config_of(mut self, other: &Image) -> Image {
        self.borrowed_config = Some(other.config_bytes());
        self
    }

    /// The digest of the manifest or index: what a registry knows the image by, whatever its tags are.
    pub fn digest(&self) -> String {
        let (_, target) = self.target();
        target["digest"].as_str().unwrap_or_default().to_owned()
    }

    /// The files of the blobs, and the descriptor of what the image's name leads to.
    fn target(&self) -> (BTreeMap<String, Vec<u8>>, Value) {
        match &self.index {
            Some(index) => index.of(self),
            None => {
                let (files, mut manifest) = self.blobs();
                manifest["platform"] = json!({"os": self.os, "architecture": self.architecture});
                (files, manifest)
            }
        }
    }

    /// The files of the layout: blobs, index and version.
    fn layout(&self) -> BTreeMap<String, Vec<u8>> {
        let (mut files, mut target) = self.target();
        // containerd takes the image's name from its own annotation, skopeo the tag from the standard one.
        target["annotations"] =
            json!({"io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": "latest"});
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [target]});
        files.insert("index.json".into(), index.to_string().into_bytes());
        files.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        files
    }

    fn config_bytes(&self) -> Vec<u8> {
        if let Some(config) = &self.borrowed_config {
            return config.clone();
        }
        let config = match self.config_type {
            WASM_CONFIG => json!({
                "created": "2026-01-01T00:00:00Z", "architecture": self.architecture, "os": self.os,
                "layerDigests": self.layers.iter().map(Layer::digest).collect::<Vec<_>>(),
            }),
            _ => {
                let layers = self.layers.iter();
                let listed = layers.filter(|layer| self.diff_ids == DiffIds::All || layer.media_type == TAR);
                let diff_ids: Vec<String> = listed.map(Layer::digest).collect();
                json!({
                    "architecture": self.architecture, "os": self.os, "config": self.config,
                    "rootfs": {"type": "layers", "diff_ids": diff_ids},
                })
            }
        };
        config.to_string().into_bytes()
    }

    /// The files of the blobs, and the manifest's descriptor.
    pub(crate) fn blobs(&self) -> (BTreeMap<String, Vec<u8>>, Value) {
        let mut files = BTreeMap::new();
        let mut blob = |media_type: &str, bytes: &[u8]| blob(&mut files, media_type, bytes);
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| {
                let mut descriptor = blob(&layer.media_type, &layer.bytes);
                if !layer.annotations.is_empty() {
                    descriptor["annotations"] = json!(layer.annotations);
                }
                descriptor
            })
            .collect();
        let config = blob(self.config_type, &self.config_bytes());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        });
        let manifest = blob(MANIFEST, manifest.to_string().as_bytes());
        (files, manifest)
    }
}

/// Adds a blob to the files of a layout, and returns its descriptor.
pub(crate) fn blob(files: &mut BTreeMap<String, Vec<u8>>, media_type: &str, bytes: &[u8]) -> Value {
    let digest = hex_digest(bytes);
    files.insert(format!("blobs/sha256/{digest}"), bytes.to_vec());
    json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()})
}

impl Layer {
    fn digest(&self) -> String {
        format!("sha256:{}", hex_digest(&self.bytes))
    }
}

/// The lower-case hexadecimal sha256 of `bytes`.
pub fn hex_digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes `files` as a tar archive.
fn archive(files: &BTreeMap<String, Vec<u8>>, path: &Path) -> io::Result<()> {
    let mut archive = tar::Builder::new(File::create(path)?);
    for (name, bytes) in files {
        append(&mut archive, name, bytes, 0o644)?;
    }
    archive.into_inner()?.sync_all()
}

fn tar_layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        append(&mut archive, name.trim_start_matches('/'), bytes, 0o755).expect(IN_MEMORY);
    }
    archive.into_inner().expect(IN_MEMORY)
}

fn append(archive: &mut tar::Builder<impl io::Write>, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    archive.append_data(&mut header, name, bytes)
}
