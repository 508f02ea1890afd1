use super::*;

fn manifest(layers: &[(&str, u8, Option<&str>)]) -> ImageManifest {
    let layers: Vec<_> = layers
        .iter()
        .map(|(media_type, byte, title)| {
            let annotations = title.map(|title| serde_json::json!({ "org.opencontainers.image.title": title }));
            serde_json::json!({
                "mediaType": media_type,
                "digest": Digest([*byte; 32]).to_string(),
                "size": 8,
                "annotations": annotations,
            })
        })
        .collect();
    serde_json::from_value(serde_json::json!({
        "schemaVersion": 2,
        "config": {
            "mediaType": "application/vnd.wasm.config.v0+json",
            "digest": Digest([0; 32]).to_string(),
            "size": 2,
        },
        "layers": layers,
    }))
    .expect("a manifest")
}

fn index(platforms: &[Option<(&str, &str)>]) -> ImageIndex {
    let manifests: Vec<_> = platforms
        .iter()
        .enumerate()
        .map(|(number, platform)| {
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": Digest([number as u8; 32]).to_string(),
                "size": 8,
                "platform": platform.map(|(os, arch)| serde_json::json!({ "os": os, "architecture": arch })),
            })
        })
        .collect();
    serde_json::from_value(serde_json::json!({ "schemaVersion": 2, "manifests": manifests })).expect("an index")
}

fn chosen(platforms: &[Option<(&str, &str)>]) -> Vec<String> {
    candidates(&index(platforms), "amd64")
        .iter()
        .map(|manifest| manifest.digest().to_string())
        .collect()
}

fn number(byte: u8) -> String {
    Digest([byte; 32]).to_string()
}

#[test]
fn every_published_wasm_media_type_is_wasm_and_tar_layers_are_not() {
    for media_type in [
        "application/wasm",
        "application/vnd.wasm.content.layer.v1+wasm",
        "application/vnd.module.wasm.content.layer.v1+wasm",
        "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
        "application/wasm; charset=binary",
        "Application/WASM",
        "application/wasm+gzip",
        "application/wasm+zstd",
        "application/vnd.wasm.content.layer.v1+wasm+zstd;a=b",
    ] {
        assert!(is_wasm(media_type), "{media_type}");
        assert_eq!(
            wasm_layers(&manifest(&[(media_type, 1, None)])).len(),
            1,
            "{media_type}"
        );
    }
    for media_type in [
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.wasm.config.v0+json",
        "text/wasm",
        "application/wasm+encrypted",
        "application/wasmx",
    ] {
        assert!(!is_wasm(media_type), "{media_type}");
    }
}

#[test]
fn a_single_layer_is_taken_whatever_the_first_argument_is() {
    let layers = wasm_layers(&manifest(&[("application/wasm", 1, Some("app.wasm"))]));
    assert_eq!(
        choose(&layers, "/anything").map(|layer| layer.digest),
        Ok(Digest([1; 32]))
    );
}

#[test]
fn one_of_several_layers_is_named_by_title_or_digest() {
    let layers = wasm_layers(&manifest(&[
        ("application/vnd.oci.image.layer.v1.tar", 9, Some("b.wasm")),
        ("application/wasm", 1, Some("a.wasm")),
        ("application/wasm", 2, Some("b.wasm")),
    ]));
    for entry in ["b.wasm", "/b.wasm", &number(2), &Digest([2; 32]).hex(), "020202020202"] {
        assert_eq!(
            choose(&layers, entry).map(|layer| layer.digest),
            Ok(Digest([2; 32])),
            "{entry}"
        );
    }
}

#[test]
fn several_layers_of_which_none_is_named_are_listed() {
    let layers = wasm_layers(&manifest(&[
        ("application/wasm", 1, Some("a.wasm")),
        ("application/wasm", 2, None),
    ]));
    // Eleven digits are too few.
    for entry in ["c.wasm", "02020202020"] {
        let message = choose(&layers, entry).expect_err("nothing is named").to_string();
        let list = format!("a.wasm ({}), without a title ({})", number(1), number(2));
        assert!(message.contains(&list) && message.contains(entry), "{message}");
    }
}

#[test]
fn two_layers_of_one_title_are_ambiguous_and_the_same_layer_twice_is_not() {
    let layers = wasm_layers(&manifest(&[
        ("application/wasm", 1, Some("a.wasm")),
        ("application/wasm", 2, Some("a.wasm")),
    ]));
    assert!(matches!(choose(&layers, "a.wasm"), Err(ChoiceError::Several { .. })));
    let layers = wasm_layers(&manifest(&[
        ("application/wasm", 1, Some("a.wasm")),
        ("application/wasm", 1, Some("a.wasm")),
    ]));
    assert_eq!(choose(&layers, "a.wasm").map(|layer| layer.digest), Ok(Digest([1; 32])));
}

#[test]
fn a_title_longer_than_a_path_is_none_and_its_layer_is_named_by_digest() {
    let long = "t".repeat(LONGEST_TITLE + 1);
    let layers = wasm_layers(&manifest(&[
        ("application/wasm", 1, Some(&long)),
        ("application/wasm", 2, Some(&long[1..])),
    ]));
    assert_eq!(
        (layers[0].title.as_ref(), layers[1].title.as_deref()),
        (None, Some(&long[1..]))
    );
    assert!(choose(&layers, &number(1)).is_ok());
}

#[test]
fn a_long_list_of_layers_is_cut() {
    let layers = wasm_layers(&manifest(&[("application/wasm", 1, None); MOST_LISTED + 3]));
    assert!(list(&layers).ends_with(") and 3 more"), "{}", list(&layers));
}

#[test]
fn an_image_without_wasm_layers_has_nothing_to_choose() {
    assert_eq!(choose(&[], "app.wasm"), Err(ChoiceError::None));
    assert_eq!(list(&[]), "none");
}

#[test]
fn wasm_manifests_come_before_the_nodes_own_and_others_never() {
    let platforms = [
        Some(("linux", "arm64")),
        Some(("linux", "amd64")),
        Some(("wasi", "wasm")),
        Some(("unknown", "unknown")),
    ];
    assert_eq!(chosen(&platforms), [number(2), number(1)]);
    assert_eq!(
        chosen(&[Some(("linux", "wasm32")), Some(("wasip1", "wasm"))]),
        [number(0), number(1)]
    );
}

#[test]
fn a_single_manifest_is_taken_whatever_its_platform() {
    assert_eq!(chosen(&[Some(("plan9", "mips"))]), [number(0)]);
    assert_eq!(chosen(&[None, Some(("unknown", "unknown"))]), [number(0)]);
    assert_eq!(
        chosen(&[Some(("linux", "arm64")), Some(("linux", "s390x"))]),
        [] as [String; 0]
    );
}

#[test]
fn media_types_that_mean_nothing_are_quoted_and_cut() {
    let long = format!("text/{}", "x".repeat(1000));
    let unknown = unknown(&manifest(&[
        ("application/vnd.oci.image.layer.v1.tar+gzip", 1, None),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", 2, None),
        ("application/wasm", 3, None),
        ("text/wasm", 4, None),
        (&long, 5, None),
    ]));
    assert_eq!(unknown, ["text/wasm", &long[..QUOTED_BYTES]]);
}

#[test]
fn all_platforms_but_attestations_may_be_a_containers() {
    let platforms = [
        Some(("linux", "arm64")),
        Some(("linux", "amd64")),
        Some(("unknown", "unknown")),
        None,
    ];
    let found: Vec<String> = programs(&index(&platforms), "amd64")
        .iter()
        .map(|manifest| manifest.digest().to_string())
        .collect();
    assert_eq!(found, [number(1), number(0), number(3)]);
}
