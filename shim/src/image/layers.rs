//! Which layers of an image are wasm, and which of them a container runs (pure).

use std::fmt::Write;

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};

use super::Digest;
use super::entry::split_export;

/// A wasm layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WasmLayer {
    /// Of the blob as it is, compressed or not.
    pub digest: Digest,
    /// In bytes, as the manifest says.
    pub size: u64,
    /// The annotation `org.opencontainers.image.title`: the file's name when it was pushed.
    pub title: Option<String>,
}

/// The layer that a container runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub layer: WasmLayer,
    /// From `layer#export`.
    pub export: Option<String>,
}

impl Choice {
    /// Whether both run the same bytes from the same function, whatever the layers are titled.
    pub fn is_same_program(&self, other: &Choice) -> bool {
        self.layer.digest == other.layer.digest && self.export == other.export
    }
}

/// Why no single layer is meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    #[error("the image has no wasm layer")]
    None,
    #[error("the image has {count} wasm layers and {entry:?} names none of them: {list}; set the first argument (in Kubernetes, the container's command) to a title or digest", count = layers.len(), list = list(layers))]
    Several { entry: String, layers: Vec<WasmLayer> },
    #[error(
        "which program the image {image} means is not known: the manifests {} (wasm layers: {}) and {} (wasm layers: {}) may both be the container's, and nothing that containerd records tells them apart. Publish each image with a config of its own that lists its layers in \"layerDigests\", or with the program in a tar layer (docs/images.md), and remove the other one from this node",
        one.0, list(&one.1), other.0, list(&other.1)
    )]
    Ambiguous {
        image: String,
        /// Digest and wasm layers of a manifest.
        one: (String, Vec<WasmLayer>),
        other: (String, Vec<WasmLayer>),
    },
}

/// The shortest piece of a digest that names a layer, in hex digits, as the tools show them.
const SHORTEST_DIGEST: usize = 12;

/// The longest title that is one, in bytes: no path is longer (PATH_MAX). A manifest may hold megabytes.
const LONGEST_TITLE: usize = 4096;

/// So many layers are listed in a message.
const MOST_LISTED: usize = 16;

/// The longest media type and the most of them that a message quotes.
const QUOTED_BYTES: usize = 128;
const QUOTED_TYPES: usize = 8;

/// Whether a layer of this media type holds a wasm binary: `application/wasm` (CNCF wasm artifacts) or one of the older
/// names, which all are `application/vnd.…+wasm`, with a suffix when it is compressed. Parameters say nothing, and upper
/// case is the same as lower case (RFC 6838, section 4.2).
pub fn is_wasm(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default();
    let essence = essence.trim().to_ascii_lowercase();
    // Which of them it is, its first bytes say.
    let kind = ["+gzip", "+zstd"]
        .iter()
        .find_map(|suffix| essence.strip_suffix(suffix));
    let kind = kind.unwrap_or(&essence);
    kind == "application/wasm" || (kind.starts_with("application/vnd.") && kind.ends_with("+wasm"))
}

/// Whether a layer of this media type is part of the root filesystem (containerd, core/images/mediatypes.go).
fn is_of_root(media_type: &str) -> bool {
    [
        "application/vnd.oci.image.layer.",
        "application/vnd.docker.image.rootfs.",
        "application/vnd.erofs.layer.",
    ]
    .iter()
    .any(|prefix| media_type.starts_with(prefix))
}

/// The media types of layers that are neither wasm nor part of the root filesystem, the first few.
pub fn unknown(manifest: &ImageManifest) -> Vec<String> {
    let types = manifest.layers().iter().map(|layer| layer.media_type().to_string());
    let unknown = types.filter(|kind| !is_wasm(kind) && !is_of_root(kind));
    unknown
        .take(QUOTED_TYPES)
        .map(|kind| kind.chars().take(QUOTED_BYTES).collect())
        .collect()
}

/// Whether an image config's os says that its programs are wasm.
pub fn is_wasm_os(os: &str) -> bool {
    matches!(os, "wasi" | "wasip1" | "wasip2" | "wasip3" | "wasm")
}

/// The wasm layers of a manifest, in its order. One whose title is longer than a path can be has none.
pub fn wasm_layers(manifest: &ImageManifest) -> Vec<WasmLayer> {
    let layer = |layer: &Descriptor| {
        let title = layer
            .annotations()
            .as_ref()
            .and_then(|all| all.get("org.opencontainers.image.title"))
            .filter(|title| title.len() <= LONGEST_TITLE);
        let digest = layer.digest().to_string().parse().ok()?;
        is_wasm(layer.media_type().as_ref()).then(|| WasmLayer {
            digest,
            size: layer.size(),
            title: title.cloned(),
        })
    };
    manifest.layers().iter().filter_map(layer).collect()
}

/// The layer that `entry` means: the one it names by title or digest (whole, or 12 hex digits and more), else the
/// single one.
pub fn choose<'a>(layers: &'a [WasmLayer], entry: &str) -> Result<&'a WasmLayer, ChoiceError> {
    if layers.is_empty() {
        return Err(ChoiceError::None);
    }
    match (named(layers, entry).as_slice(), layers) {
        ([one], _) => Ok(*one),
        ([], [one]) => Ok(one),
        _ => Err(ChoiceError::Several {
            entry: entry.to_owned(),
            layers: layers.to_vec(),
        }),
    }
}

/// As [`choose`], for an `entry` that may name an export.
///
/// # Errors
///
/// As [`choose`].
pub fn choose_for(layers: &[WasmLayer], entry: &str) -> Result<Choice, ChoiceError> {
    let (name, export) = match split_export(entry) {
        Some((file, export)) => (file, Some(export.to_owned())),
        None => (entry, None),
    };
    let layer = choose(layers, name)?.clone();
    Ok(Choice { layer, export })
}

/// The layers that `entry` names by title or digest.
pub fn named<'a>(layers: &'a [WasmLayer], entry: &str) -> Vec<&'a WasmLayer> {
    let names = |layer: &&WasmLayer| {
        layer
            .title
            .as_deref()
            .is_some_and(|title| title == entry || Some(title) == entry.strip_prefix('/'))
            || names_digest(entry, &layer.digest)
    };
    // Two layers of one digest are the same bytes: either will do. Two of one title are not.
    let mut matches: Vec<&WasmLayer> = layers.iter().filter(names).collect();
    matches.dedup_by_key(|layer| layer.digest);
    matches
}

fn names_digest(entry: &str, digest: &Digest) -> bool {
    let hex = entry.strip_prefix("sha256:").unwrap_or(entry);
    hex.len() >= SHORTEST_DIGEST && digest.hex().starts_with(hex)
}

/// The manifests of an index that may be a container's on this node, the likeliest first: those for wasm, then those
/// for Linux on `architecture` (as Go names it), else the single one. Attestations (os `unknown`) never are.
pub fn candidates(index: &ImageIndex, architecture: &str) -> Vec<Descriptor> {
    let (mut wasm, mut linux, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    for manifest in index.manifests() {
        match manifest.platform() {
            Some(platform) => {
                let (os, arch) = (platform.os().to_string(), platform.architecture().to_string());
                if is_wasm_os(&os) || arch == "wasm" || arch == "wasm32" {
                    wasm.push(manifest.clone());
                } else if os == "linux" && arch == architecture {
                    linux.push(manifest.clone());
                }
            }
            None => plain.push(manifest.clone()),
        }
    }
    wasm.append(&mut linux);
    match (wasm.is_empty(), plain.len(), index.manifests().len()) {
        (true, 1, _) => plain,
        (true, _, 1) => index.manifests().clone(),
        _ => wasm,
    }
}

/// The manifests of an index that may be a container's on any node: all but attestations (os `unknown`), the likeliest
/// here first.
pub fn programs(index: &ImageIndex, architecture: &str) -> Vec<Descriptor> {
    let mut programs = candidates(index, architecture);
    for manifest in index.manifests() {
        let is_attestation = manifest
            .platform()
            .as_ref()
            .is_some_and(|platform| platform.os().to_string() == "unknown");
        if !is_attestation && !programs.contains(manifest) {
            programs.push(manifest.clone());
        }
    }
    programs
}

/// `title (digest)` of each layer, separated by commas, of the first ones when they are many; `none` for none.
pub fn list(layers: &[WasmLayer]) -> String {
    let mut text = String::new();
    for layer in layers.iter().take(MOST_LISTED) {
        let comma = if text.is_empty() { "" } else { ", " };
        let title = layer.title.as_deref().unwrap_or("without a title");
        // Writing to a String cannot fail.
        let _ = write!(text, "{comma}{title} ({})", layer.digest);
    }
    match layers.len() {
        0 => "none".to_owned(),
        count if count > MOST_LISTED => format!("{text} and {} more", count - MOST_LISTED),
        _ => text,
    }
}

#[cfg(test)]
mod tests;
