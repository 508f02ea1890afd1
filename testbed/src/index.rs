//! Indexes: one name for several platforms' manifests, as docker buildx, buildah and `kubewasi-image` publish them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::image::{IMAGE_CONFIG, INDEX, Image, MANIFEST, blob};

/// The platforms of an index that runs on every node.
pub const EVERY_NODE: [(&str, &str); 3] = [("linux", "amd64"), ("linux", "arm64"), ("wasi", "wasm")];

/// What an image's index lists.
#[derive(Clone, Debug)]
pub struct Index {
    /// The operating system and the architecture of each entry.
    platforms: Vec<(String, String)>,
    /// Whether every entry's config is of the entry's platform; else all are of the image's own.
    matching: bool,
    attested: bool,
}

impl Image {
    /// Lists the image in an index, once for each of `platforms`; the entries share their layers, and each has a config
    /// of its platform.
    pub fn indexed(self, platforms: &[(&str, &str)]) -> Image {
        self.with_index(platforms, true)
    }

    /// As [`Image::indexed`], but the configs are all of the image's own platform, whatever the entries say.
    pub fn indexed_under(self, platforms: &[(&str, &str)]) -> Image {
        self.with_index(platforms, false)
    }

    /// Adds what buildx adds by default: for each entry, a manifest of the platform unknown/unknown that attests how the
    /// entry was built.
    pub fn attested(mut self) -> Image {
        if let Some(index) = &mut self.index {
            index.attested = true;
        }
        self
    }

    fn with_index(mut self, platforms: &[(&str, &str)], matching: bool) -> Image {
        self.index = Some(Index {
            platforms: platforms
                .iter()
                .map(|(os, architecture)| ((*os).to_owned(), (*architecture).to_owned()))
                .collect(),
            matching,
            attested: false,
        });
        self
    }
}

impl Index {
    /// The files of the blobs of `image`, the index among them, and the descriptor of the index.
    pub(crate) fn of(&self, image: &Image) -> (BTreeMap<String, Vec<u8>>, Value) {
        let mut files = BTreeMap::new();
        let (mut entries, mut attestations) = (Vec::new(), Vec::new());
        for (os, architecture) in &self.platforms {
            let entry = match self.matching {
                true => image.clone().platform(os, architecture),
                false => image.clone(),
            };
            let (blobs, mut manifest) = entry.blobs();
            files.extend(blobs);
            manifest["platform"] = json!({"os": os, "architecture": architecture});
            if self.attested {
                attestations.push(attestation(&mut files, &manifest));
            }
            entries.push(manifest);
        }
        entries.extend(attestations);
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
        let descriptor = blob(&mut files, INDEX, index.to_string().as_bytes());
        (files, descriptor)
    }
}

/// The descriptor of a manifest that attests how `subject` was built (BuildKit's docs/attestations/attestation-storage.md).
fn attestation(files: &mut BTreeMap<String, Vec<u8>>, subject: &Value) -> Value {
    let statement = json!({"_type": "https://in-toto.io/Statement/v0.1", "subject": [subject["digest"]]});
    let mut layer = blob(files, "application/vnd.in-toto+json", statement.to_string().as_bytes());
    layer["annotations"] = json!({"in-toto.io/predicate-type": "https://slsa.dev/provenance/v0.2"});
    let config = json!({
        "architecture": "unknown", "os": "unknown", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let config = blob(files, IMAGE_CONFIG, config.to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
    let mut descriptor = blob(files, MANIFEST, manifest.to_string().as_bytes());
    descriptor["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    descriptor["annotations"] = json!({
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": subject["digest"],
    });
    descriptor
}
