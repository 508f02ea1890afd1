//! An OCI image layout in memory, and how it is written: as a directory, or as an archive that `docker load` reads too.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, Header};

use crate::error::Error;
use crate::name::Name;

pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The blobs of an image, and what its name leads to.
#[derive(Default)]
pub struct Layout {
    /// By digest.
    blobs: BTreeMap<String, Vec<u8>>,
    /// The descriptor of the index, or of the one manifest.
    pub target: Value,
    /// The entry that Docker takes, if there is one for Linux.
    pub docker: Option<Docker>,
}

/// What `docker load` needs to know of one entry.
pub struct Docker {
    pub config: Value,
    pub layers: Vec<Value>,
}

impl Layout {
    /// Adds a blob and returns its descriptor.
    pub fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = digest(&bytes);
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        self.blobs.insert(digest, bytes);
        descriptor
    }

    /// The digest by which registries know the image.
    pub fn target_digest(&self) -> &str {
        self.target["digest"].as_str().unwrap_or_default()
    }

    #[cfg(test)]
    pub fn blob(&self, digest: &str) -> Option<&[u8]> {
        self.blobs.get(digest).map(Vec::as_slice)
    }

    /// Writes the layout into a directory, which is created. Of a layout that is there already the index is replaced.
    ///
    /// # Errors
    ///
    /// When a file cannot be written.
    pub fn write_directory(&self, directory: &Path, name: &Name) -> Result<(), Error> {
        for (path, bytes) in self.files(name) {
            let path = directory.join(path);
            let parent = path.parent().unwrap_or(directory);
            fs::create_dir_all(parent)
                .and_then(|()| fs::write(&path, bytes))
                .map_err(Error::write(&path))?;
        }
        Ok(())
    }

    /// Writes the layout as a tar archive. It has Docker's `manifest.json` too, for releases of Docker that read no layout.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write_archive(&self, path: &Path, name: &Name) -> Result<(), Error> {
        let mut files = self.files(name);
        if let Some(docker) = &self.docker {
            files.insert("manifest.json".to_owned(), docker.manifest(name).into());
        }
        let write = || -> io::Result<()> {
            let mut archive = Builder::new(io::BufWriter::new(File::create(path)?));
            for (path, bytes) in files {
                let mut header = Header::new_gnu();
                header.set_mode(0o644);
                header.set_size(bytes.len() as u64);
                header.set_mtime(0);
                archive.append_data(&mut header, path, bytes.as_ref())?;
            }
            archive.into_inner()?.flush()
        };
        write().map_err(Error::write(path))
    }

    /// The files of the layout (OCI image-spec, image-layout.md).
    fn files(&self, name: &Name) -> BTreeMap<String, std::borrow::Cow<'_, [u8]>> {
        let mut target = self.target.clone();
        // The first is containerd's, the second everyone's.
        target["annotations"] =
            json!({"io.containerd.image.name": name.full, "org.opencontainers.image.ref.name": name.short});
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [target]});
        let blobs = self.blobs.iter();
        let mut files: BTreeMap<_, _> = blobs
            .map(|(digest, bytes)| (path(digest), bytes.as_slice().into()))
            .collect();
        files.insert("index.json".to_owned(), index.to_string().into_bytes().into());
        files.insert(
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.as_slice().into(),
        );
        files
    }
}

impl Docker {
    /// Docker's image specification 1.2, section "Combined Image JSON + Filesystem Changeset Format".
    fn manifest(&self, name: &Name) -> Vec<u8> {
        let path = |descriptor: &Value| path(descriptor["digest"].as_str().unwrap_or_default());
        let layers: Vec<String> = self.layers.iter().map(path).collect();
        json!([{"Config": path(&self.config), "RepoTags": [name.short], "Layers": layers}])
            .to_string()
            .into_bytes()
    }
}

/// Where a layout has the blob of this digest.
fn path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

/// The digest of `bytes` as `sha256:HEX`.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
