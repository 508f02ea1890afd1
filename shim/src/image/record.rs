//! What containerd's record of a container says of the image that the container was created from (pure).

use containerd_client::services::v1::Container;
use oci_spec::distribution;

use super::Digest;

/// The key under which the CRI plugin keeps its own metadata in a container's record (containerd, internal/cri/labels:
/// the same in 1.6 to 2.x).
const CRI_METADATA: &str = "io.cri-containerd.container.metadata";

/// Seconds and nanoseconds since the epoch, by containerd's clock.
pub type Time = (i64, i32);

/// Of a container whose record has no time: before everything that could prove what it was created from.
const UNKNOWN: Time = (i64::MIN, 0);

/// A container's record.
#[derive(Debug, PartialEq, Eq)]
pub struct Record {
    /// The image's name; empty when the container has none. The CRI plugin writes the first in sort order of all names
    /// that lead to the image's config here, whichever name was asked for.
    pub image: String,
    pub created: Time,
    /// Snapshotter and key of the root filesystem.
    pub snapshot: Option<(String, String)>,
    pub client: Client,
}

/// Who created the container.
#[derive(Debug, PartialEq, Eq)]
pub enum Client {
    /// The CRI plugin.
    Cri(Asked),
    /// The CRI plugin, in a format that is not understood.
    UnknownCri { error: String },
    /// Any other client: `ctr`, nerdctl, Docker. Its record's image is the one that was asked for.
    Other,
}

/// What a CRI client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The digest of the image's config, which is the image's id in the CRI.
    pub config: Digest,
    /// How the client named the image; `None` when it gave the id alone, as the kubelet does with containerd 1.x.
    pub reference: Option<Reference>,
}

/// An image's name as the CRI plugin normalizes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// The digest of a manifest or index.
    Digest { name: String, digest: String },
    /// A repository and tag, with both defaults filled in.
    Tag(String),
}

#[derive(serde::Deserialize)]
struct Versioned {
    #[serde(rename = "Metadata")]
    metadata: Metadata,
}

#[derive(serde::Deserialize)]
struct Metadata {
    #[serde(rename = "ImageRef")]
    image_ref: Digest,
    #[serde(rename = "Config")]
    config: Config,
}

#[derive(serde::Deserialize)]
struct Config {
    image: Option<ImageSpec>,
}

#[derive(Default, serde::Deserialize)]
struct ImageSpec {
    #[serde(default)]
    image: String,
    #[serde(default)]
    user_specified_image: String,
}

impl Record {
    pub fn of(container: Container) -> Record {
        let client = match container.extensions.get(CRI_METADATA) {
            None => Client::Other,
            Some(metadata) => match serde_json::from_slice::<Versioned>(&metadata.value) {
                Ok(Versioned { metadata }) => Client::Cri(Asked::of(metadata)),
                Err(error) => Client::UnknownCri {
                    error: error.to_string(),
                },
            },
        };
        let has_snapshot = !container.snapshot_key.is_empty();
        Record {
            image: container.image,
            created: container.created_at.map_or(UNKNOWN, |at| (at.seconds, at.nanos)),
            snapshot: has_snapshot.then_some((container.snapshotter, container.snapshot_key)),
            client,
        }
    }
}

impl Asked {
    fn of(metadata: Metadata) -> Asked {
        let config = metadata.image_ref;
        let spec = metadata.config.image.unwrap_or_default();
        // The plugin resolves `image`; where that is the id, the kubelet's own name for it says more.
        let named = [spec.image, spec.user_specified_image];
        let reference = named.iter().find_map(|name| Reference::parse(name, &config));
        Asked { config, reference }
    }
}

impl Reference {
    /// What `name` refers to, normalized as Docker and the CRI plugin do; `None` when it is the id `config` or a prefix
    /// of it, or not a reference.
    fn parse(name: &str, config: &Digest) -> Option<Reference> {
        if name == config.to_string() || config.hex().starts_with(name) {
            return None;
        }
        let parsed: distribution::Reference = name.parse().ok()?;
        // With both, the plugin drops the tag (distribution's ParseDockerRef).
        Some(match parsed.digest() {
            Some(digest) => Reference::Digest {
                name: name.to_owned(),
                digest: digest.to_owned(),
            },
            None => Reference::Tag(parsed.whole()),
        })
    }
}

#[cfg(test)]
mod tests;
