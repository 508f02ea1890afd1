//! What people see first: an image runs, on every containerd, in every world.

use crate::guests::{Probe, wat};
use crate::image_builder::Image;

fn image(probe: Probe) -> Image {
    let name = probe.file().replace(".wasm", "");
    Image::with_files(&name, &[("/probe.wasm", &probe.bytes())]).platform("wasi", "wasm")
}

on_every_containerd! {
    fn every_world_gets_its_arguments_and_speaks_on_both_streams(node) {
        for probe in Probe::WASM {
            let image = image(probe);
            node.import(&image);
            let said = node.run(&image).args(&["/probe.wasm", "args", "one", "two words", ""]).finish().ok();
            assert_eq!(said.stdout, "/probe.wasm\nargs\none\ntwo words\n\n", "{probe:?}");
            let said = node.run(&image).args(&["/probe.wasm", "say", "out", "err"]).finish().ok();
            assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("out\n", "err\n"), "{probe:?}");
        }
    }

    fn the_entry_point_of_the_image_runs_without_arguments(node) {
        for (number, probe) in Probe::WASM.into_iter().enumerate() {
            let image = Image::with_files(&format!("entry{number}"), &[("/probe.wasm", &probe.bytes())])
                .entrypoint(&["/probe.wasm", "say", "from the image"]);
            node.import(&image);
            assert_eq!(node.run(&image).finish().ok().stdout, "from the image\n", "{probe:?}");
        }
    }

    fn the_environment_of_image_and_client_reaches_the_guest(node) {
        for probe in Probe::WASM {
            let image = image(probe).config("Env", serde_json::json!(["FROM_IMAGE=1", "BOTH=image"]));
            node.import(&image);
            let said = node.run(&image).flag(&["--env", "BOTH=client", "--env", "SPACE=a b"])
                .args(&["/probe.wasm", "env"]).finish().ok();
            for line in ["FROM_IMAGE=1", "BOTH=client", "SPACE=a b"] {
                assert!(said.stdout.lines().any(|found| found == line), "{probe:?}: no {line} in {said}");
            }
        }
    }

    fn an_exit_code_is_the_containers_exit_code(node) {
        let first = image(Probe::P1);
        node.import(&first);
        // A shell's 127 and 128 + n are codes as good as any.
        for code in [7, 127, 255] {
            node.run(&first).args(&["/probe.wasm", "exit", &code.to_string()]).finish().expect_code(code);
        }
        for probe in [Probe::P2, Probe::P3] {
            let image = image(probe);
            node.import(&image);
            node.run(&image).args(&["/probe.wasm", "exit-with-code", "7"]).finish().expect_code(7);
            // wasi:cli/exit's `exit` knows success and failure alone.
            node.run(&image).args(&["/probe.wasm", "exit", "7"]).finish().expect_code(1);
            node.run(&image).args(&["/probe.wasm", "exit", "0"]).finish().expect_code(0);
        }
    }

    fn a_trap_is_134_and_says_where(node) {
        for probe in Probe::WASM {
            let image = image(probe);
            node.import(&image);
            node.run(&image).args(&["/probe.wasm", "trap"]).finish().expect_code(134)
                .expect_error(&["wasm trap", "unreachable", "outer", "inner"]);
            node.run(&image).args(&["/probe.wasm", "panic"]).finish().expect_code(134)
                .expect_error(&["the probe was told to panic", "wasm trap"]);
        }
    }

    fn a_trap_is_in_the_log_with_the_containers_name(node) {
        let image = image(Probe::P1);
        node.import(&image);
        let run = node.run(&image).args(&["/probe.wasm", "trap"]);
        let id = run.id.clone();
        run.finish().expect_code(134);
        node.log_line(&["134", &id, &node.namespace, "unreachable"]);
    }

    fn the_working_directory_of_the_image_is_the_guests(node) {
        for probe in Probe::WASM {
            let image = image(probe).files(&[("/data/file", b"here")]).config("WorkingDir", "/data".into());
            node.import(&image);
            assert_eq!(node.run(&image).args(&["/probe.wasm", "cwd"]).finish().ok().stdout, "/data\n", "{probe:?}");
        }
    }

    fn a_named_export_of_a_core_module_is_called(node) {
        let module = wat(r#"(module
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 1)
            (func (export "_start") (call $exit (i32.const 1)))
            (func (export "other") (call $exit (i32.const 42))))"#);
        let image = Image::with_files("export", &[("/app.wasm", &module)]);
        node.import(&image);
        node.run(&image).finish().expect_code(1);
        node.run(&image).args(&["/app.wasm#other"]).finish().expect_code(42);
        node.run(&image).args(&["/app.wasm#missing"]).finish().expect_refusal(&["missing"]);
    }

    fn a_0_3_component_uses_its_own_streams(node) {
        let image = image(Probe::P3);
        node.import(&image);
        let echo = node.run(&image).args(&["/probe.wasm", "stream"]).stdin(b"through 0.3").finish().ok();
        assert_eq!(echo.stdout, "through 0.3");
        node.run(&image).args(&["/probe.wasm", "complain"]).finish().expect_code(1).expect_error(&["0.3 says no"]);
    }

    fn the_task_api_tells_states_and_pids(node) {
        let image = image(Probe::P1);
        node.import(&image);
        let (id, pid) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        assert_eq!(node.task(&id), Some((pid, "RUNNING".into())));
        assert!(node.ctr(&["task", "ps", &id]).ok().stdout.contains(&pid.to_string()));
        assert!(node.ctr(&["task", "metrics", &id]).ok().stdout.contains("memory"));
        node.ctr(&["task", "delete", &id]).expect_refusal(&["stopped"]);
        node.ctr(&["task", "kill", "--signal", "SIGTERM", &id]).ok();
        node.wait_until(&id, "STOPPED");
        // Deleting tells the exit code: 128 + SIGTERM.
        assert_eq!(node.delete(&id), 143);
    }
}
