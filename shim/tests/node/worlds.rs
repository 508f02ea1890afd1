//! What a component runs as: by its exports, and by an annotation where these leave the choice.

use serde_json::json;

use crate::containerd::Node;
use crate::cri::{self, exit_code};
use crate::guests::{Probe, Service, wat};
use crate::image_builder::Image;
use crate::pod::{PID_OF_CONTAINER, Pod};
use crate::service::Served;

const COMMAND: &str = "ran as a command\n";

/// A component that is a command and a service, with the entry point that people write for one.
fn both(node: &Node) -> Image {
    let image =
        Image::with_files("both", &[("/main.wasm", &wat(include_str!("tinygo.wat")))]).entrypoint(&["/main.wasm"]);
    node.import(&image);
    image
}

/// A component that exports an empty instance under this name.
fn exporting(name: &str) -> Vec<u8> {
    wat(&format!(r#"(component (instance $i) (export "{name}" (instance $i)))"#))
}

on_every_containerd! {
    fn a_component_that_is_a_command_and_a_service_serves_and_the_log_says_so(node) {
        let image = both(node);
        let served = Served::start_image(node, &image, &[], &[], 8080);
        assert_eq!(served.get("/").status, 200);
        assert_eq!(served.end(), 0);
        node.log_line(&["/main.wasm", "Http02", "Command02", "a handler makes it a service", "kubewasi.dev/world"]);
    }

    fn the_annotation_of_a_container_chooses_the_command(node) {
        let image = both(node);
        let chosen = |world: &str| node.run(&image).flag(&["--annotation", &format!("kubewasi.dev/world={world}")]);
        assert_eq!(chosen("command").finish().ok().stdout, COMMAND);
        // It is compiled for the one or the other, and kept for both.
        let served = Served::start_image(node, &image, &["world=service"], &[], 8080);
        assert_eq!(chosen("command").finish().ok().stdout, COMMAND);
        assert_eq!(served.get("/").status, 200);
        assert_eq!(served.end(), 0);
        chosen("both").fail().expect_refusal(&["kubewasi.dev/world", "both", "auto, command, service"]);
    }

    fn one_container_of_a_pod_runs_the_command_and_another_serves(node) {
        cri::prepare(node);
        let image = Image::with_files("both", &[("/main.wasm", &wat(include_str!("tinygo.wat")))]);
        node.import_into(&image, "k8s.io").ok();
        let pod = Pod::start(node, PID_OF_CONTAINER);
        let port = crate::mixed::port_to_listen_at();
        pod.run("service", &image.name, &["/main.wasm"], |config| {
            config["envs"] = json!([{"key": "PORT", "value": port.to_string()}]);
        });
        crate::command::eventually("the service listens", crate::languages::MOMENTS, || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
        let command = pod.run("command", &image.name, &["/main.wasm"], |config| {
            config["annotations"] = json!({"kubewasi.dev/world": "command"});
        });
        assert_eq!(exit_code(node, &command), 0, "{}", pod.log("command"));
        assert!(pod.log("command").ends_with(COMMAND), "{}", pod.log("command"));
        pod.end();
    }

    fn a_world_that_is_chosen_and_not_there_is_refused_by_name(node) {
        for (name, bytes, world, words) in [
            ("command", Probe::P2.bytes(), "service", ["is service", "wasi:cli/run@0.2."]),
            ("module", Probe::P1.bytes(), "service", ["is service", "core module"]),
            ("service", Service::Http02.bytes(), "command", ["is command", "wasi:http/incoming-handler@0.2."]),
        ] {
            let image = Image::with_files(name, &[("/app.wasm", &bytes)]);
            node.import(&image);
            node.run(&image).flag(&["--annotation", &format!("kubewasi.dev/world={world}")]).args(&["/app.wasm"]).fail()
                .expect_refusal(&words);
        }
    }

    fn a_release_candidate_is_refused_by_its_version_and_those_that_are_supported(node) {
        for (name, export) in [
            ("command-rc", "wasi:cli/run@0.3.0-rc-2025-09-16"),
            ("service-rc", "wasi:http/handler@0.3.0-rc-2026-01-06"),
            ("old-rc", "wasi:cli/run@0.2.0-rc-2023-11-10"),
        ] {
            let image = Image::with_files(name, &[("/app.wasm", &exporting(export))]);
            node.import(&image);
            node.run(&image).args(&["/app.wasm"]).fail()
                .expect_refusal(&["/app.wasm", export, "wasi:cli/run 0.2.x and 0.3.x", "wasi:http/handler 0.3.x"]);
        }
    }
}

on_newest_containerd! {
    fn exports_of_a_later_release_of_the_same_minor_version_run(node) {
        let mut text = include_str!("tinygo.wat").to_owned();
        for instance in ["$command", "$service"] {
            text = text.replace(&format!("@0.2.0\" (instance {instance})"), &format!("@0.2.99\" (instance {instance})"));
        }
        let image = Image::with_files("later", &[("/main.wasm", &wat(&text))]).entrypoint(&["/main.wasm"]);
        node.import(&image);
        let command = node.run(&image).flag(&["--annotation", "kubewasi.dev/world=command"]);
        assert_eq!(command.finish().ok().stdout, COMMAND);
        let served = Served::start_image(node, &image, &[], &[], 8080);
        assert_eq!(served.get("/").status, 200);
        assert_eq!(served.end(), 0);
        node.log_line(&["/main.wasm", "Http02", "Command02"]);
    }
}
