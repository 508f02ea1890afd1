//! What a container's first argument leads to: the file that the container sees at that path, whatever its image has
//! there, and errors by which clients know that there is none.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::command::Finished;
use crate::containerd::{Node, Version};
use crate::cri::prepare;
use crate::exec::exec;
use crate::guests::Probe;
use crate::image_builder::Image;
use crate::images::exits;
use crate::pod::{PID_OF_CONTAINER, Pod, volume};

/// What the programs of the image and of the volume exit with.
const IMAGE: i32 = 3;
const VOLUME: i32 = 4;

/// An image with programs in `/v` and `/opt`, and a link from `/link` to `/v`.
fn image(node: &Node) -> Image {
    let program = exits(IMAGE);
    let image = Image::with_files("mounted", &[("/v/app.wasm", &program), ("/opt/app.wasm", &program)])
        .symlink("/link", "/v")
        .config("Env", json!(["PATH=/v:/bin"]));
    node.import(&image);
    image
}

/// A directory of the node with programs, of which `tool` has no telling name.
fn programs(node: &Node) -> PathBuf {
    let folder = node.folder.join("programs");
    fs::create_dir_all(folder.join("sub")).unwrap();
    for name in ["app.wasm", "tool", "sub/app.wasm"] {
        fs::write(folder.join(name), exits(VOLUME)).unwrap();
    }
    folder
}

/// The flag of `ctr run` that mounts `source`.
fn bind(source: &Path, destination: &str) -> String {
    format!("type=bind,src={},dst={destination},options=rbind:ro", source.display())
}

#[track_caller]
fn run(node: &Node, image: &Image, mounts: &[String], program: &str) -> Finished {
    let run = mounts
        .iter()
        .fold(node.run(image), |run, mount| run.flag(&["--mount", mount]));
    let finished = crate::command::run(&mut run.args(&[program]).foreground());
    for id in node.ctr(&["container", "ls", "--quiet"]).ok().stdout.lines() {
        node.ctr(&["container", "delete", id]);
    }
    finished
}

on_every_containerd! {
    fn a_program_in_a_volume_runs_and_hides_the_images(node) {
        let (image, programs) = (image(node), programs(node));
        run(node, &image, &[], "/v/app.wasm").expect_code(IMAGE);
        let at_v = || vec![bind(&programs, "/v")];
        for (mounts, program, expected) in [
            (at_v(), "/v/app.wasm", VOLUME),
            (at_v(), "/link/app.wasm", VOLUME),
            (at_v(), "app.wasm", VOLUME),
            (at_v(), "/v/sub/../app.wasm", VOLUME),
            (at_v(), "/opt/app.wasm", IMAGE),
            // Only in the volume.
            (at_v(), "/v/tool", VOLUME),
            (at_v(), "tool", VOLUME),
            (vec![bind(&programs, "/made/for/it")], "/made/for/it/app.wasm", VOLUME),
            // A file, a directory of a volume (subPath), and through a link of the image.
            (vec![bind(&programs.join("tool"), "/opt/app.wasm")], "/opt/app.wasm", VOLUME),
            (vec![bind(&programs.join("sub"), "/v")], "/v/app.wasm", VOLUME),
            (vec![bind(&programs, "/link")], "/v/app.wasm", VOLUME),
        ] {
            let finished = run(node, &image, &mounts, program);
            assert_eq!(finished.code, Some(expected), "{program} with {mounts:?}: {finished}");
        }
    }

    fn a_volume_of_a_pod_has_the_program_that_runs(node) {
        prepare(node);
        let image = Image::with_files("volume", &[("/v/app.wasm", &exits(IMAGE))]);
        node.import_into(&image, "k8s.io").ok();
        let folder = programs(node);
        let pod = Pod::start(node, PID_OF_CONTAINER);
        for (name, program) in [("hides", "/v/app.wasm"), ("alone", "/v/tool")] {
            let id = pod.run(name, &image.name, &[program], |config| volume(config, &folder, "/v"));
            assert_eq!(crate::cri::exit_code(node, &id), i64::from(VOLUME), "{program}");
        }
        pod.end();
    }

    fn a_native_container_whose_image_was_removed_starts_and_starts_again(node) {
        let image = Image::busybox();
        node.import(&image);
        let options = node.options();
        let create = ["container", "create", "--runtime", "io.containerd.wasi.v1", "--runtime-config-path"];
        let create = [&create[..], &[options.to_str().unwrap(), &image.name, "gone", "/bin/sleep", "100"]].concat();
        node.ctr(&create).ok();
        node.ctr(&["image", "rm", "--sync", &image.name]).ok();
        for _ in 0..2 {
            node.ctr(&["task", "start", "--detach", "--null-io", "gone"]).ok();
            exec(node, "gone", &["/bin/id"]).ok();
            node.ctr(&["task", "kill", "--signal", "SIGKILL", "gone"]).ok();
            node.wait_until("gone", "STOPPED");
            node.ctr(&["task", "delete", "gone"]);
        }
        node.ctr(&["container", "delete", "gone"]).ok();
    }

    fn a_layer_of_a_spelled_out_or_compressed_media_type_runs(node) {
        let gzip = || {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(&exits(9)).unwrap();
            encoder.finish().unwrap()
        };
        let zstd = || ruzstd::encoding::compress_to_vec(exits(9).as_slice(), ruzstd::encoding::CompressionLevel::Fastest);
        for (number, (media_type, bytes)) in [
            ("application/wasm; charset=binary", exits(9)),
            ("Application/WASM", exits(9)),
            ("application/wasm+gzip", gzip()),
            ("application/wasm+zstd", zstd()),
            ("application/vnd.wasm.content.layer.v1+wasm+gzip;a=b", gzip()),
        ].into_iter().enumerate() {
            let image = Image::without_diff_ids(&format!("type{number}"))
                .layer(media_type, Some("app.wasm"), &bytes).entrypoint(&["app.wasm"]);
            node.import(&image);
            let run = node.run(&image).finish();
            match node.version {
                Version::V1_6 => drop(run.expect_refusal(&["mismatched image rootfs and manifest layers"])),
                _ => drop(run.expect_code(9)),
            }
        }
        if node.version != Version::V1_6 {
            let image = Image::without_diff_ids("type").layer("text/wasm", None, &exits(9)).entrypoint(&["app.wasm"]);
            node.import(&image);
            node.run(&image).fail().expect_refusal(&["executable file not found in $PATH", "text/wasm", "application/wasm"]);
            let broken = Image::without_diff_ids("cut").layer("application/wasm+gzip", None, &gzip()[..20]).entrypoint(&["app.wasm"]);
            node.import(&broken);
            node.run(&broken).fail().expect_refusal(&["decompressing the gzip data failed"]);
        }
    }
}

on_newest_containerd! {
    fn mounts_over_one_another_show_the_last_one(node) {
        let (image, programs) = (image(node), programs(node));
        let empty = "type=tmpfs,src=tmpfs,dst=/v,options=mode=755".to_owned();
        for mounts in [vec![empty.clone()], vec![bind(&programs, "/v"), empty.clone()]] {
            run(node, &image, &mounts, "/v/app.wasm").expect_refusal(&["stat /v/app.wasm: no such file or directory"]);
        }
        run(node, &image, &[empty.clone(), bind(&programs, "/v")], "/v/app.wasm").expect_code(VOLUME);
        run(node, &image, &[empty, bind(&programs, "/v/sub")], "/v/sub/app.wasm").expect_code(VOLUME);
    }

    fn a_link_in_a_volume_leads_nowhere_but_into_the_container(node) {
        let (image, programs) = (image(node), programs(node));
        let outside = node.folder.join("outside.wasm");
        fs::write(&outside, exits(VOLUME)).unwrap();
        let hostile = node.folder.join("hostile");
        fs::create_dir(&hostile).unwrap();
        symlink(&outside, hostile.join("app.wasm")).unwrap();
        symlink("../../../../../../../..", hostile.join("above")).unwrap();
        symlink("/opt/app.wasm", hostile.join("inside.wasm")).unwrap();
        let mounts = [bind(&hostile, "/v")];
        run(node, &image, &mounts, "/v/app.wasm").expect_refusal(&["no such file or directory"]);
        let above = format!("/v/above{}", outside.display());
        run(node, &image, &mounts, &above).expect_refusal(&["no such file or directory"]);
        run(node, &image, &mounts, "/v/inside.wasm").expect_code(IMAGE);
        drop(programs);
    }

    fn what_is_executed_later_is_seen_through_mounts_too(node) {
        let image = Image::with_files("later", &[("/probe.wasm", &Probe::P1.bytes()), ("/v/app.wasm", &exits(IMAGE))]);
        node.import(&image);
        let programs = programs(node);
        let mount = bind(&programs, "/v");
        let (id, _) = node.run(&image).flag(&["--mount", &mount]).args(&["/probe.wasm", "idle"]).detach();
        exec(node, &id, &["/v/app.wasm"]).expect_code(VOLUME);
        exec(node, &id, &["/v/tool"]).expect_code(VOLUME);
        exec(node, &id, &["none"]).expect_refusal(&["\"none\"", "executable file not found in $PATH"]);
        exec(node, &id, &["/none"]).expect_refusal(&["stat /none: no such file or directory"]);
        node.remove(&id);
    }

    fn a_native_program_in_a_volume_is_the_native_runtimes(node) {
        let image = image(node);
        let folder = node.folder.join("native");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("app.wasm"), exits(VOLUME)).unwrap();
        fs::copy("/bin/busybox", folder.join("true")).unwrap();
        fs::set_permissions(folder.join("true"), PermissionsExt::from_mode(0o755)).unwrap();
        run(node, &image, &[bind(&folder, "/v")], "/v/true").expect_code(0);
    }

    fn a_missing_program_is_told_in_the_words_of_runc(node) {
        let image = image(node);
        for (program, words) in [
            ("/none.wasm", "exec: \"/none.wasm\": stat /none.wasm: no such file or directory"),
            ("none", "exec: \"none\": executable file not found in $PATH"),
            ("/v", "exec: \"/v\": is a directory"),
        ] {
            run(node, &image, &[], program).expect_refusal(&[words]);
        }
    }

    fn a_command_for_a_shell_that_the_image_lacks_is_answered_with_its_programs(node) {
        let image = Image::with_files("shell-form", &[("/app.wasm", &exits(0)), ("/srv/other.wasm", &exits(0))])
            .entrypoint(&["/bin/sh", "-c", "/app.wasm --flag"]);
        node.import(&image);
        node.run(&image).fail().expect_refusal(&[
            "exec: \"/bin/sh\": stat /bin/sh: no such file or directory", "has no shell", "/app.wasm, /srv/other.wasm",
        ]);
    }
}
