//! What a pod's annotations change for its guests, as CRI hands them on.

use std::fs;

use serde_json::json;

use crate::container::{Run, root_folder, spec};
use crate::containerd::Node;
use crate::cri::{self, Pod, crictl, file};
use crate::guests::Probe;
use crate::image_builder::Image;

fn image(node: &mut Node) -> Image {
    cri::prepare(node);
    let image = Image::with_files("annotated", &[("/probe.wasm", &Probe::P2.bytes())]);
    node.import_into(&image, "k8s.io").ok();
    image
}

on_every_containerd! {
    fn annotations_of_pod_and_container_are_read_by_wasi_config_and_the_containers_win(node) {
        let image = image(node);
        let edit = |pod: &mut Pod| {
            pod.sandbox["annotations"] = json!({"kubewasi.dev/config.greeting": "hello", "kubewasi.dev/config.both": "pod",
                                                "example.com/other": "x"});
            pod.container["annotations"] = json!({"kubewasi.dev/config.both": "container"});
        };
        cri::with_edited_pod(node, &image.name, &["/probe.wasm", "config"], edit, |id, log| {
            assert_eq!(cri::exit_code(node, id), 0);
            let said = fs::read_to_string(log).unwrap();
            assert!(said.contains("both=container\n") && said.contains("greeting=hello\n"), "{said}");
            assert!(!said.contains("other"), "{said}");
        });
    }

    fn a_pod_with_a_wrong_annotation_fails_with_key_value_and_range(node) {
        let image = image(node);
        let mut pod = Pod::new(node, &image.name, &["/probe.wasm", "config"]);
        pod.container["annotations"] = json!({"kubewasi.dev/memory-limit": "1Ki"});
        pod.fail(node, &["kubewasi.dev/memory-limit", "1Ki", "64Ki to 1024Gi"]);
        pod.container["annotations"] = json!({"kubewasi.dev/memory-limt": "1Gi"});
        pod.fail(node, &["kubewasi.dev/memory-limt", "did you mean kubewasi.dev/memory-limit?"]);
        pod.container["annotations"] = json!({"kubewasi.dev/cache-dir": "/etc"});
        pod.fail(node, &["kubewasi.dev/cache-dir=/etc", "only the handler's options"]);
        // A pod's own fails at its sandbox.
        pod.sandbox["annotations"] = json!({"kubewasi.dev/memory-limit": "2000Gi"});
        let sandbox = file(node, "pod.json", &pod.sandbox);
        crictl(node, &["runp", "--runtime", "wasi", &sandbox])
            .expect_refusal(&["kubewasi.dev/memory-limit", "2000Gi", "64Ki to 1024Gi"]);
    }
}

on_newest_containerd! {
    fn a_memory_limit_is_the_guests_beside_its_cgroups(node) {
        for world in Probe::WASM {
            let root = root_folder(node, &[("probe.wasm", &world.bytes())]);
            let mut spec = spec(node, &root, &["/probe.wasm", "fill", "64"]);
            spec["annotations"] = json!({"kubewasi.dev/memory-limit": "16Mi"});
            let full = Run::of_spec(node, &spec).finish().expect_code(1);
            let held: u32 = full.stderr.split("out of memory after ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
            assert!((8..16).contains(&held), "{world:?}: {full}");
            spec["annotations"] = json!({"kubewasi.dev/memory-limit": "64Ki"});
            Run::of_spec(node, &spec).finish().expect_code(134).expect_error(&["memory_limit", "65536"]);
        }
    }

    fn values_are_kept_in_memory_by_wasi_keyvalue(node) {
        for world in [Probe::P2, Probe::P3] {
            let root = root_folder(node, &[("probe.wasm", &world.bytes())]);
            let said = Run::of_spec(node, &spec(node, &root, &["/probe.wasm", "keyvalue"])).finish().ok().stdout;
            assert_eq!(said, "value\n7\nfalse [\"count\"]\nSome(Error::NoSuchStore)\n", "{world:?}");
        }
    }
}
