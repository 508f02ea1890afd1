//! Which image a container was created from: proven, or refused by name.
//!
//! A name may mean another manifest by the time a container starts, and in the CRI an image's id is the digest of its
//! config, which any number of manifests may share: whoever pushes an image can repeat the bytes of another one's
//! config. What proves the manifest is, by client:
//!
//! - the CRI plugin: the digest in the name that was asked for; or the tag that was asked for, when it has not changed
//!   since the container was created; or the config, when it lists its layers; else nothing, and all manifests with
//!   this config that the node has, or that this server has seen, must mean the same wasm.
//! - others: the name in the record, when it has not changed since. Of several platforms' manifests, the one on whose
//!   root filesystem the container's snapshot was made.

use std::sync::Arc;

use super::content_store::{ContentStore, Named, StoreError};
use super::layers::{self, Choice, ChoiceError, WasmLayer};
use super::manifest::{Commitment, Manifest};
use super::record::{Asked, Client, Record, Reference};

/// What a container was created from.
#[derive(Debug)]
pub enum Origin {
    /// Its record names no image.
    None,
    /// The image is no longer on the node.
    Gone {
        image: String,
    },
    Image(Image),
}

/// An image as far as wasm is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// As the container's client named it.
    pub name: String,
    /// The manifests that may be the container's: nothing tells them apart.
    pub manifests: Arc<Vec<Manifest>>,
}

/// Why it is not known from which image a container was created.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    #[error(
        "the image {image} has changed since the container was created, and its wasm layers may be another program's: create the container again"
    )]
    Changed { image: String },
    #[error("the root filesystem of the container was not made from the image {image}: create the container again")]
    OtherRoot { image: String },
    #[error(
        "the layers of every manifest with the config {config} differ from the config's own \"layerDigests\": publish the image {image} again"
    )]
    BrokenConfig { image: String, config: String },
    #[error(
        "the CRI metadata of container {container}, which says from which image it was created, cannot be read: {error}"
    )]
    Metadata { container: String, error: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Image {
    /// All wasm layers of all manifests, each once.
    pub fn layers(&self) -> Vec<WasmLayer> {
        let mut layers: Vec<WasmLayer> = Vec::new();
        for layer in self.manifests.iter().flat_map(|manifest| &manifest.wasm) {
            if !layers.contains(layer) {
                layers.push(layer.clone());
            }
        }
        layers
    }

    /// The media types of layers whose use is unknown.
    pub fn unknown(&self) -> Vec<String> {
        let mut unknown: Vec<String> = self.manifests.iter().flat_map(|m| m.unknown.clone()).collect();
        unknown.sort();
        unknown.dedup();
        unknown
    }

    /// The layer that `entry` means in every manifest; `None` when none has wasm layers.
    ///
    /// # Errors
    ///
    /// When it means none or several, or another one in another manifest.
    pub fn choose(&self, entry: &str) -> Result<Option<Choice>, ChoiceError> {
        let Some(first) = self.manifests.iter().find(|manifest| !manifest.wasm.is_empty()) else {
            return Ok(None);
        };
        let choice = layers::choose_for(&first.wasm, entry);
        let same = |other: &Manifest| {
            other.wasm == first.wasm
                || match (&choice, layers::choose_for(&other.wasm, entry)) {
                    (Ok(choice), Ok(other)) => choice.is_same_program(&other),
                    _ => false,
                }
        };
        match self.manifests.iter().find(|other| !same(other)) {
            None => choice.map(Some),
            Some(other) => Err(ChoiceError::Ambiguous {
                image: self.name.clone(),
                one: (first.digest.clone(), first.wasm.clone()),
                other: (other.digest.clone(), other.wasm.clone()),
            }),
        }
    }
}

impl ContentStore {
    /// From which image the container `id` was created.
    ///
    /// # Errors
    ///
    /// When containerd cannot be asked, or nothing proves which image it is.
    pub async fn origin(&self, namespace: &str, id: &str) -> Result<Origin, OriginError> {
        let record = self.record(namespace, id).await?;
        match &record.client {
            Client::Cri(asked) => self.origin_by_request(namespace, &record, asked).await,
            Client::UnknownCri { error } => Err(OriginError::Metadata {
                container: id.to_owned(),
                error: error.clone(),
            }),
            Client::Other if record.image.is_empty() => Ok(Origin::None),
            Client::Other => self.origin_by_name(namespace, &record).await,
        }
    }

    /// Whether the config of the image from which the container `id` was created is for wasm; false when that is not
    /// known.
    ///
    /// # Errors
    ///
    /// When containerd cannot be asked.
    pub async fn is_for_wasm(&self, namespace: &str, id: &str) -> Result<bool, StoreError> {
        let record = self.record(namespace, id).await?;
        match &record.client {
            Client::Cri(asked) => {
                let config = self.config(namespace, &asked.config.to_string()).await?;
                Ok(config.is_some_and(|config| config.is_for_wasm()))
            }
            Client::UnknownCri { .. } => Ok(false),
            Client::Other if record.image.is_empty() => Ok(false),
            Client::Other => match self.named(namespace, &record.image).await? {
                Some(named) if named.updated <= record.created => {
                    let manifests = self.manifests(namespace, &record.image, &named.target).await?;
                    Ok(!manifests.is_empty() && manifests.iter().all(|manifest| manifest.for_wasm))
                }
                _ => Ok(false),
            },
        }
    }

    /// Of a client whose record has the name that was asked for.
    async fn origin_by_name(&self, namespace: &str, record: &Record) -> Result<Origin, OriginError> {
        let image = record.image.clone();
        let Some(Named { target, updated }) = self.named(namespace, &image).await? else {
            return Ok(Origin::Gone { image });
        };
        let manifests = self.all_manifests(namespace, &image, &target).await?;
        let has_wasm = manifests.iter().any(|manifest| !manifest.wasm.is_empty());
        if updated > record.created && has_wasm {
            return Err(OriginError::Changed { image });
        }
        let parent = match &record.snapshot {
            Some((snapshotter, key)) if has_wasm => self.parent(namespace, snapshotter, key).await?,
            _ => None,
        };
        let rooted = of_root(&manifests, parent.as_deref());
        match rooted.is_empty() && has_wasm {
            true => Err(OriginError::OtherRoot { image }),
            false => Ok(found(image, rooted)),
        }
    }

    /// Of the CRI plugin, whose record says what was asked for.
    async fn origin_by_request(&self, namespace: &str, record: &Record, asked: &Asked) -> Result<Origin, OriginError> {
        let (name, target, proven) = match &asked.reference {
            None => {
                return self
                    .origin_by_config(namespace, record, asked, asked.config.to_string())
                    .await;
            }
            Some(Reference::Digest { name, digest }) => (name, digest.clone(), true),
            Some(Reference::Tag(name)) => match self.named(namespace, name).await? {
                Some(Named { target, updated }) => (name, target, updated <= record.created),
                None => return Ok(Origin::Gone { image: name.clone() }),
            },
        };
        let manifests = self.manifests(namespace, name, &target).await?;
        let config = asked.config.to_string();
        let own: Vec<Manifest> = manifests.iter().filter(|m| m.config == config).cloned().collect();
        match (own.is_empty(), proven, manifests.is_empty()) {
            (true, _, true) => Ok(Origin::Gone { image: name.clone() }),
            (true, _, false) => Err(OriginError::Changed { image: name.clone() }),
            (false, true, _) => Ok(found(name.clone(), own)),
            (false, false, _) => self.origin_by_config(namespace, record, asked, name.clone()).await,
        }
    }

    /// Of a CRI container of which the config alone is known: every manifest that has it.
    async fn origin_by_config(
        &self,
        namespace: &str,
        record: &Record,
        asked: &Asked,
        name: String,
    ) -> Result<Origin, OriginError> {
        let config = asked.config.to_string();
        let mut manifests = self.with_config(namespace, &config).await?;
        if manifests.iter().all(|manifest| manifest.wasm.is_empty()) {
            return Ok(found(name, manifests));
        }
        // They share the config: it commits all of them or none.
        if manifests.iter().any(|manifest| manifest.commitment != Commitment::None) {
            manifests.retain(|manifest| manifest.commitment == Commitment::Kept);
            return match manifests.is_empty() {
                true => Err(OriginError::BrokenConfig { image: name, config }),
                false => Ok(found(name, manifests)),
            };
        }
        // What was here when the container was created has either been seen, or is still here under the same name.
        if !self.has_seen_all_since(record.created) {
            match self.named(namespace, &record.image).await? {
                Some(named) if named.updated <= record.created => {}
                _ => return Err(OriginError::Changed { image: name }),
            }
        }
        Ok(found(name, manifests))
    }
}

fn found(name: String, manifests: Vec<Manifest>) -> Origin {
    Origin::Image(Image {
        name,
        manifests: Arc::new(manifests),
    })
}

/// The manifests on whose root filesystem a snapshot with this `parent` was made; all when that is not known.
fn of_root(manifests: &[Manifest], parent: Option<&str>) -> Vec<Manifest> {
    let matches = |manifest: &&Manifest| parent.is_none_or(|parent| parent == manifest.chain);
    manifests.iter().filter(matches).cloned().collect()
}

#[cfg(test)]
mod tests;
