use super::*;
use crate::image::Digest;

fn layer(byte: u8, title: &str) -> WasmLayer {
    WasmLayer {
        digest: Digest([byte; 32]),
        size: 8,
        title: Some(title.to_owned()),
    }
}

fn manifest(chain: &str, wasm: &[WasmLayer]) -> Manifest {
    Manifest {
        digest: format!("sha256:manifest-{chain}-{}", wasm.len()),
        config: "sha256:config".to_owned(),
        for_wasm: true,
        chain: chain.to_owned(),
        commitment: Commitment::None,
        wasm: wasm.to_vec(),
        unknown: Vec::new(),
    }
}

fn image(manifests: &[Manifest]) -> Image {
    Image {
        name: "example.com/app:1".to_owned(),
        manifests: Arc::new(manifests.to_vec()),
    }
}

fn chosen(image: &Image, entry: &str) -> u8 {
    let choice = image.choose(entry).expect("one is meant").expect("there are layers");
    choice.layer.digest.0[0]
}

#[test]
fn a_layer_is_chosen_when_all_manifests_that_may_be_the_containers_mean_it() {
    let one = manifest("", &[layer(1, "a.wasm")]);
    assert_eq!(chosen(&image(std::slice::from_ref(&one)), "x"), 1);
    assert_eq!(chosen(&image(&[one.clone(), one.clone()]), "x"), 1);
    // Its title says nothing of a single layer.
    assert_eq!(
        chosen(&image(&[one.clone(), manifest("", &[layer(1, "b.wasm")])]), "x"),
        1
    );
    let both = [layer(1, "a.wasm"), layer(2, "b.wasm")];
    assert_eq!(chosen(&image(&[manifest("", &both), one]), "a.wasm"), 1);
}

#[test]
fn manifests_that_mean_different_programs_are_refused_with_their_layers() {
    let (one, two) = (layer(1, "a.wasm"), layer(2, "a.wasm"));
    let swapped = [
        [layer(1, "a.wasm"), layer(2, "b.wasm")],
        [layer(2, "a.wasm"), layer(1, "b.wasm")],
    ];
    for image in [
        image(&[manifest("", std::slice::from_ref(&one)), manifest("", &[two])]),
        image(&[manifest("", std::slice::from_ref(&one)), manifest("", &[])]),
        image(&[manifest("", &[]), manifest("", &[one])]),
        image(&[manifest("", &swapped[0]), manifest("", &swapped[1])]),
    ] {
        let message = image.choose("a.wasm").expect_err("ambiguous").to_string();
        for word in ["example.com/app:1", "a.wasm (sha256:", "layerDigests"] {
            assert!(message.contains(word), "{word}: {message}");
        }
    }
}

#[test]
fn a_choice_that_all_manifests_refuse_alike_is_refused_for_its_own_reason() {
    let both = [layer(1, "a.wasm"), layer(2, "b.wasm")];
    let same = image(&[manifest("", &both), manifest("x", &both)]);
    assert!(matches!(same.choose("c.wasm"), Err(ChoiceError::Several { .. })));
    assert_eq!(image(&[manifest("", &[])]).choose("a.wasm"), Ok(None));
    assert_eq!(image(&[]).choose("a.wasm"), Ok(None));
}

#[test]
fn an_export_is_part_of_the_program() {
    let one = image(&[manifest("", &[layer(1, "a.wasm")])]);
    let choice = one.choose("a.wasm#run").expect("one").expect("layers");
    assert_eq!(choice.export.as_deref(), Some("run"));
}

#[test]
fn a_snapshot_tells_the_manifests_of_an_index_apart() {
    let (native, wasm) = (manifest("sha256:root", &[]), manifest("", &[layer(1, "a.wasm")]));
    let both = [native.clone(), wasm.clone()];
    assert_eq!(of_root(&both, Some("sha256:root")), std::slice::from_ref(&native));
    assert_eq!(of_root(&both, Some("")), std::slice::from_ref(&wasm));
    assert_eq!(of_root(&both, Some("sha256:other")), []);
    assert_eq!(of_root(&both, None), both);
}
