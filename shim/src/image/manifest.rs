//! One manifest of an image, as far as it matters which wasm a container of it runs (pure).

use oci_spec::image::ImageManifest;
use sha2::{Digest as _, Sha256};

use super::Digest;
use super::layers::{self, WasmLayer};

/// A manifest that may be a container's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub digest: String,
    /// The digest of its config: the image's id in the CRI.
    pub config: String,
    /// The os of the image config is one for wasm.
    pub for_wasm: bool,
    /// The chain id of the config's diff_ids (OCI image spec, config.md): the name of the snapshot on which containerd
    /// prepares the root filesystem. Empty when there are none.
    pub chain: String,
    pub commitment: Commitment,
    pub wasm: Vec<WasmLayer>,
    /// The media types of layers that are neither wasm nor part of the root filesystem, for messages.
    pub unknown: Vec<String>,
}

/// Whether the config says which layers its manifest has: `layerDigests`, as CNCF's wasm config has it
/// (application/vnd.wasm.config.v0+json). Then another manifest cannot share the config and differ in its wasm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commitment {
    /// It does not say.
    None,
    /// The manifest has these layers.
    Kept,
    /// The manifest has other layers: it is not what the config was made for.
    Broken,
}

/// The fields of a config that are used. Of an image config and of CNCF's wasm config alike.
#[derive(Default, serde::Deserialize)]
pub struct Config {
    os: Option<String>,
    #[serde(default)]
    rootfs: Rootfs,
    #[serde(rename = "layerDigests", default)]
    layer_digests: Vec<String>,
}

#[derive(Default, serde::Deserialize)]
struct Rootfs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

impl Config {
    /// Whether the os is one for wasm.
    pub fn is_for_wasm(&self) -> bool {
        self.os.as_deref().is_some_and(layers::is_wasm_os)
    }

    fn commitment(&self, manifest: &ImageManifest, wasm: &[WasmLayer]) -> Commitment {
        if self.layer_digests.is_empty() {
            return Commitment::None;
        }
        let all = manifest.layers().iter().map(|layer| layer.digest().to_string());
        let wasm = wasm.iter().map(|layer| layer.digest.to_string());
        match self.layer_digests.iter().cloned().eq(all) || self.layer_digests.iter().cloned().eq(wasm) {
            true => Commitment::Kept,
            false => Commitment::Broken,
        }
    }
}

impl Manifest {
    /// The manifest with this digest, and its config.
    pub fn new(digest: &str, manifest: &ImageManifest, config: &Config) -> Manifest {
        let wasm = layers::wasm_layers(manifest);
        Manifest {
            digest: digest.to_owned(),
            config: manifest.config().digest().to_string(),
            for_wasm: config.is_for_wasm(),
            chain: chain(config.rootfs.diff_ids.as_deref().unwrap_or_default()),
            commitment: config.commitment(manifest, &wasm),
            wasm,
            unknown: layers::unknown(manifest),
        }
    }

    /// About how many bytes of memory it takes.
    pub fn weight(&self) -> usize {
        let titles = self.wasm.iter().filter_map(|layer| layer.title.as_ref());
        let texts = [&self.digest, &self.config, &self.chain]
            .into_iter()
            .chain(&self.unknown)
            .chain(titles);
        size_of::<Manifest>() + self.wasm.len() * size_of::<WasmLayer>() + texts.map(String::len).sum::<usize>()
    }
}

/// The chain id of these diff_ids; empty for none.
fn chain(diff_ids: &[String]) -> String {
    let mut ids = diff_ids.iter();
    let first = ids.next().cloned().unwrap_or_default();
    ids.fold(first, |chain, next| {
        Digest(Sha256::digest(format!("{chain} {next}")).into()).to_string()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const WASM: &str = "application/wasm";
    const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

    fn number(byte: u8) -> String {
        Digest([byte; 32]).to_string()
    }

    /// A manifest of layers with these digests, under `config`.
    fn manifest(layers: &[(&str, u8)], config: Value) -> Manifest {
        let layers: Vec<Value> = layers
            .iter()
            .map(|(kind, byte)| json!({"mediaType": kind, "digest": number(*byte), "size": 8}))
            .collect();
        let descriptor =
            json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": number(0), "size": 2});
        let manifest = json!({"schemaVersion": 2, "config": descriptor, "layers": layers});
        let config: Config = serde_json::from_value(config).expect("a config");
        Manifest::new(
            "sha256:m",
            &serde_json::from_value(manifest).expect("a manifest"),
            &config,
        )
    }

    #[test]
    fn a_config_that_lists_its_layers_keeps_to_those_alone() {
        let commitment = |digests: &[u8], layers: &[(&str, u8)]| {
            let digests: Vec<String> = digests.iter().copied().map(number).collect();
            manifest(layers, json!({ "layerDigests": digests })).commitment
        };
        assert_eq!(commitment(&[], &[(WASM, 1)]), Commitment::None);
        assert_eq!(commitment(&[1], &[(WASM, 1)]), Commitment::Kept);
        assert_eq!(
            commitment(&[1], &[(TAR, 2), (WASM, 1)]),
            Commitment::Kept,
            "the wasm alone"
        );
        assert_eq!(
            commitment(&[2, 1], &[(TAR, 2), (WASM, 1)]),
            Commitment::Kept,
            "every layer"
        );
        for other in [&[(WASM, 2)][..], &[(WASM, 1), (WASM, 2)], &[(TAR, 3)], &[]] {
            assert_eq!(commitment(&[1], other), Commitment::Broken, "{other:?}");
        }
    }

    #[test]
    fn the_chain_id_is_the_one_that_snapshots_are_named_by() {
        let chain = |ids: &[&str]| manifest(&[], json!({"rootfs": {"type": "layers", "diff_ids": ids}})).chain;
        assert_eq!(chain(&[]), "");
        assert_eq!(chain(&["sha256:a"]), "sha256:a");
        let pair = Digest::of(b"sha256:a sha256:b").to_string();
        assert_eq!(chain(&["sha256:a", "sha256:b"]), pair);
        assert_eq!(
            chain(&["sha256:a", "sha256:b", "sha256:c"]),
            Digest::of(format!("{pair} sha256:c").as_bytes()).to_string()
        );
        assert_eq!(manifest(&[], json!({"rootfs": {"diff_ids": null}})).chain, "");
    }

    #[test]
    fn the_os_of_the_config_says_whether_an_image_is_for_wasm() {
        assert!(manifest(&[], json!({"os": "wasi"})).for_wasm);
        assert!(!manifest(&[(WASM, 1)], json!({"os": "linux"})).for_wasm);
    }
}
