//! The forms in which images carry wasm, each where containerd takes it (docs/images.md is this file in words).

use crate::containerd::Version;
use crate::exec::exec;
use crate::guests::{Probe, wat};
use crate::image_builder::{Image, WASM};

const SAY: [&str; 3] = ["/probe.wasm", "say", "hello"];

/// A core module that exits with `code`.
pub fn exits(code: i32) -> Vec<u8> {
    wat(&format!(
        r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 1)
            (func (export "_start") (call $exit (i32.const {code}))))"#
    ))
}

on_every_containerd! {
    fn form_a_runs_for_wasi_and_for_linux(node) {
        for (os, architecture) in [("wasi", "wasm"), ("wasip1", "wasm"), ("linux", "amd64")] {
            let image = Image::with_files(&format!("a-{os}"), &[("/probe.wasm", &Probe::P2.bytes())])
                .platform(os, architecture).files(&[("/data/greeting", b"from another file")]);
            node.import(&image);
            assert_eq!(node.run(&image).args(&SAY).finish().ok().stdout, "hello\n", "{os}");
            let read = node.run(&image).args(&["/probe.wasm", "read", "/data/greeting"]).finish().ok();
            assert_eq!(read.stdout, "from another file", "{os}");
        }
    }

    fn form_a_finds_its_entry_point_on_the_path_and_in_the_working_directory(node) {
        let image = Image::with_files("path", &[("/bin/probe.wasm", &Probe::P1.bytes())])
            .config("Env", serde_json::json!(["PATH=/usr/bin:/bin"]));
        node.import(&image);
        assert_eq!(node.run(&image).args(&["probe.wasm", "say", "found"]).finish().ok().stdout, "found\n");
        let image = Image::with_files("cwd", &[("/srv/probe.wasm", &Probe::P1.bytes())])
            .config("WorkingDir", "/srv".into());
        node.import(&image);
        assert_eq!(node.run(&image).args(&["./probe.wasm", "say", "found"]).finish().ok().stdout, "found\n");
    }

    fn form_b_runs_where_containerd_takes_it(node) {
        let image = Image::with_wasm_layers("b", &[("probe.wasm", &Probe::P2.bytes())]);
        node.import(&image);
        let run = node.run(&image).args(&SAY).finish();
        match node.version {
            Version::V1_6 => {
                run.expect_refusal(&["mismatched image rootfs and manifest layers"]);
            }
            _ => assert_eq!(run.ok().stdout, "hello\n"),
        }
    }

    fn form_b_with_several_layers_runs_the_one_that_is_named(node) {
        if node.version == Version::V1_6 {
            // Refused by containerd itself, see form_b_runs_where_containerd_takes_it.
            let image = Image::with_wasm_layers("several", &[("three.wasm", &exits(3)), ("four.wasm", &exits(4))]);
            node.import(&image);
            node.run(&image).args(&["three.wasm"]).finish().expect_refusal(&["mismatched"]);
            return;
        }
        let (three, four) = (exits(3), exits(4));
        let image = Image::with_wasm_layers("several", &[("three.wasm", &three), ("four.wasm", &four)]);
        node.import(&image);
        node.run(&image).args(&["three.wasm"]).finish().expect_code(3);
        node.run(&image).args(&["four.wasm"]).finish().expect_code(4);
        let digest = format!("sha256:{}", crate::image_builder::hex_digest(&four));
        node.run(&image).args(&[&digest]).finish().expect_code(4);
        node.run(&image).args(&["five.wasm"]).finish()
            .expect_refusal(&["2 wasm layers", "five.wasm", "three.wasm", "four.wasm", &digest]);
    }

    fn an_exec_runs_a_layer_of_the_image_that_its_container_was_made_from(node) {
        let image = Image::with_wasm_layers("moved", &[("probe.wasm", &Probe::P1.bytes())]);
        node.import(&image);
        if node.version == Version::V1_6 {
            // Refused by containerd itself, see form_b_runs_where_containerd_takes_it.
            node.run(&image).args(&SAY).finish().expect_refusal(&["mismatched"]);
            return;
        }
        let (id, _) = node.run(&image).args(&["probe.wasm", "idle"]).detach();
        // As the CRI does, which names images by their digests too: the content stays when the name moves on.
        node.ctr(&["image", "tag", &image.name, "kubewasi.test/kept:latest"]).ok();
        node.import(&Image::with_wasm_layers("moved", &[("probe.wasm", &exits(3)), ("other.wasm", &exits(4))]));
        assert_eq!(exec(node, &id, &["probe.wasm", "say", "as it was"]).ok().stdout, "as it was\n");
        exec(node, &id, &["other.wasm"]).expect_refusal(&["\"other.wasm\"", "cannot be executed", "probe.wasm"]);
        node.remove(&id);
    }

    fn form_b_with_older_media_types_runs(node) {
        for (number, media_type) in [
            "application/vnd.wasm.content.layer.v1+wasm",
            "application/vnd.module.wasm.content.layer.v1+wasm",
            "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
        ].into_iter().enumerate() {
            let image = Image::without_diff_ids(&format!("e{number}"))
                .layer(media_type, Some("app.wasm"), &exits(9)).entrypoint(&["app.wasm"]);
            node.import(&image);
            let run = node.run(&image).finish();
            match node.version {
                Version::V1_6 => drop(run.expect_refusal(&["mismatched image rootfs and manifest layers"])),
                _ => drop(run.expect_code(9)),
            }
        }
    }

    fn form_c_is_refused_by_containerd(node) {
        let image = Image::with_listed_wasm_layers("c", &[("probe.wasm", &Probe::P2.bytes())]);
        node.import(&image);
        let run = node.run(&image).args(&SAY).finish();
        match node.version {
            Version::V1_6 => drop(run.expect_refusal(&["no processor for media-type"])),
            _ => drop(run.expect_refusal(&["mismatched image rootfs and manifest layers"])),
        }
    }

    fn form_d_is_refused_by_ctr(node) {
        let image = Image::artifact("d", &Probe::P2.bytes());
        node.import(&image);
        let reason = match node.version {
            Version::V1_6 => "mismatched image rootfs and manifest layers",
            _ => "unknown image config media type",
        };
        node.run(&image).args(&SAY).finish().expect_refusal(&[reason]);
    }

    fn bare_wasm_that_calls_itself_a_tar_layer_is_refused_by_containerd(node) {
        // What `oras push` writes when it is not told media types.
        let image = Image::new("not-a-tar").layer(crate::image_builder::TAR, None, &exits(0)).entrypoint(&["/app.wasm"]);
        node.import(&image);
        node.run(&image).finish().expect_refusal(&["failed to extract layer"]);
        assert_ne!(crate::image_builder::TAR, WASM);
    }
}
