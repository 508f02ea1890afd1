//! An image: layers, a configuration and a manifest for each platform, and an index of them.

use std::io::Write;

use flate2::{Compression, GzBuilder};
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::layer;
use crate::layout::{self, Docker, Layout};
use crate::source::Source;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The time of creation that every image has, so that the same sources give the same image.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// An image that is to be written.
pub struct Image {
    pub layout: Layout,
    /// In the order of the index's entries.
    pub platforms: Vec<String>,
}

/// A layer in the layout.
struct Built<'a> {
    source: &'a Source,
    descriptor: Value,
    /// The digest of the uncompressed layer.
    diff_id: String,
}

/// Builds the image of `sources`, whose `config` is that of the image's configuration.
pub fn build(sources: &[Source], config: Map<String, Value>, compress: bool) -> Result<Image, Error> {
    let mut layout = Layout::default();
    let mut layers = Vec::new();
    let mut platforms: Vec<String> = Vec::new();
    for source in sources {
        let tar = layer::of(source)?;
        let diff_id = layout::digest(&tar);
        let descriptor = match compress {
            true => layout.add(&format!("{LAYER}+gzip"), gzip(&tar)),
            false => layout.add(LAYER, tar),
        };
        layers.push(Built {
            source,
            descriptor,
            diff_id,
        });
        for platform in &source.platforms {
            if !platforms.contains(platform) {
                platforms.push(platform.clone());
            }
        }
    }
    let entries = platforms
        .iter()
        .map(|platform| entry(&mut layout, &layers, &config, platform));
    let mut entries: Vec<Value> = entries.collect();
    layout.target = if entries.len() == 1 {
        entries.remove(0)
    } else {
        let index = json!({"schemaVersion": 2, "mediaType": layout::INDEX, "manifests": entries});
        layout.add(layout::INDEX, index.to_string().into_bytes())
    };
    Ok(Image { layout, platforms })
}

/// Adds the manifest of `platform` and its configuration, and returns its descriptor.
fn entry(layout: &mut Layout, layers: &[Built<'_>], config: &Map<String, Value>, platform: &str) -> Value {
    let layers: Vec<&Built<'_>> = layers
        .iter()
        .filter(|layer| layer.source.platforms.iter().any(|named| named == platform))
        .collect();
    let (os, architecture) = platform.split_once('/').unwrap_or((platform, ""));
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    let configuration = json!({
        "created": CREATED, "os": os, "architecture": architecture, "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let configuration = layout.add(CONFIG, configuration.to_string().into_bytes());
    let descriptors: Vec<&Value> = layers.iter().map(|layer| &layer.descriptor).collect();
    // `docker load` of a release that reads no OCI layout gets the platform that Docker's own builds have here.
    let is_host = os == "linux" && architecture == host();
    if is_host || (os == "linux" && layout.docker.is_none()) {
        layout.docker = Some(Docker {
            config: configuration.clone(),
            layers: descriptors.iter().copied().cloned().collect(),
        });
    }
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": configuration, "layers": descriptors,
    });
    let mut descriptor = layout.add(MANIFEST, manifest.to_string().into_bytes());
    descriptor["platform"] = json!({"os": os, "architecture": architecture});
    descriptor
}

/// This machine's architecture, by the name that images have for it.
fn host() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Without a name or a time: the same bytes for the same layer.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::default());
    let written = encoder.write_all(bytes).and_then(|()| encoder.finish());
    written.expect("memory takes what is written")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn sources(folder: &std::path::Path) -> Vec<Source> {
        let file = folder.join("hello.wasm");
        fs::write(&file, "\0asm").unwrap();
        vec![file.display().to_string().parse().unwrap()]
    }

    fn blob(layout: &Layout, descriptor: &Value) -> Value {
        serde_json::from_slice(layout.blob(descriptor["digest"].as_str().unwrap()).unwrap()).unwrap()
    }

    #[test]
    fn the_entries_of_the_index_share_their_layers_and_have_configurations_of_their_platforms() {
        let folder = tempfile::tempdir().unwrap();
        let image = build(&sources(folder.path()), Map::new(), true).unwrap();
        let index = blob(&image.layout, &image.layout.target);
        let entries = index["manifests"].as_array().unwrap();
        let mut layers = Vec::new();
        for (entry, (os, architecture)) in
            entries
                .iter()
                .zip([("linux", "amd64"), ("linux", "arm64"), ("wasi", "wasm")])
        {
            assert_eq!(entry["platform"], json!({"os": os, "architecture": architecture}));
            let manifest = blob(&image.layout, entry);
            let config = blob(&image.layout, &manifest["config"]);
            assert_eq!(
                (&config["os"], &config["architecture"]),
                (&json!(os), &json!(architecture))
            );
            layers.push(manifest["layers"].clone());
        }
        assert_eq!(entries.len(), 3);
        assert!(layers.iter().all(|other| *other == layers[0]), "{layers:?}");
    }

    #[test]
    fn the_same_sources_give_the_same_image() {
        let digest = |folder: &std::path::Path| {
            let image = build(&sources(folder), Map::new(), true).unwrap();
            image.layout.target_digest().to_owned()
        };
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(digest(one.path()), digest(two.path()));
    }

    #[test]
    fn an_image_for_one_platform_is_a_manifest() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("program"), "").unwrap();
        let source = format!("linux/amd64={}", folder.path().display());
        let image = build(&[source.parse().unwrap()], Map::new(), false).unwrap();
        assert_eq!(image.layout.target["mediaType"], MANIFEST);
        assert_eq!(image.platforms, ["linux/amd64"]);
    }
}
