//! What is wrong is refused in words that name the thing, the value and the mend.

use std::fmt::Write;

use crate::command::Finished;
use crate::containerd::Node;
use crate::guests::{Probe, wat};
use crate::image_builder::Image;

/// Runs a file under `name` that cannot be run.
#[track_caller]
fn run_file(node: &Node, name: &str, bytes: &[u8]) -> Finished {
    let image = Image::with_files("bad", &[(name, bytes)]);
    node.import(&image);
    let finished = node.run(&image).fail();
    node.ctr(&["image", "rm", "--sync", &image.name]).ok();
    finished
}

/// A module whose one function takes the compiler far longer than a second and far more than 64 MiB.
pub fn slow_to_compile() -> Vec<u8> {
    let mut text =
        String::from("(module (memory (export \"memory\") 1) (func (export \"_start\") (local i64 i64 i64 i64)\n");
    for index in 0..400_000 {
        let (a, b) = (index % 4, (index * 7 + 1) % 4);
        writeln!(
            text,
            "(local.set {a} (i64.add (i64.mul (local.get {a}) (local.get {b})) (i64.load (i32.wrap_i64 (local.get {b})))))"
        )
        .unwrap();
    }
    text.push_str("))");
    wat(&text)
}

on_every_containerd! {
    fn an_empty_file_is_refused(node) {
        run_file(node, "/empty.wasm", b"").expect_refusal(&["/empty.wasm", "the file is empty"]);
    }

    fn text_named_wasm_is_refused(node) {
        run_file(node, "/text.wasm", b"hello, I am text\n").expect_refusal(&["/text.wasm", "not a wasm module", "hello"]);
    }

    fn a_truncated_module_is_refused(node) {
        let whole = Probe::P1.bytes();
        run_file(node, "/half.wasm", &whole[..whole.len() / 2]).expect_refusal(&["/half.wasm", "unexpected end"]);
        run_file(node, "/head.wasm", &whole[..6]).expect_refusal(&["/head.wasm", "not a valid wasm module"]);
    }

    fn a_component_of_an_unknown_world_is_refused_with_its_imports_and_exports(node) {
        let component = wat(r#"(component
            (import "acme:db/query" (instance (export "run" (func))))
            (core module $m (func (export "f")))
            (core instance $i (instantiate $m))
            (func $f (canon lift (core func $i "f")))
            (instance $out (export "go" (func $f)))
            (export "acme:job/work" (instance $out)))"#);
        run_file(node, "/odd.wasm", &component).expect_refusal(&["/odd.wasm", "acme:job/work", "acme:db/query", "wasi:cli/run"]);
    }

    fn a_module_without_an_entry_function_is_refused(node) {
        let module = wat(r#"(module (memory (export "memory") 1) (func (export "other")))"#);
        run_file(node, "/no-start.wasm", &module).expect_refusal(&["_start"]);
    }

    fn a_module_that_imports_what_the_host_lacks_is_refused_by_its_name(node) {
        let module = wat(r#"(module (import "env" "launch_rocket" (func $f)) (memory (export "memory") 1)
            (func (export "_start") (call $f)))"#);
        run_file(node, "/import.wasm", &module).expect_refusal(&["env", "launch_rocket"]);
        let component = wat(r#"(component
            (import "acme:db/query@1.0.0" (instance $q (export "ask" (func))))
            (core func $ask (canon lower (func $q "ask")))
            (core module $m (import "" "ask" (func $ask)) (func (export "run") (result i32) (call $ask) (i32.const 0)))
            (core instance $i (instantiate $m (with "" (instance (export "ask" (func $ask))))))
            (func $run (result (result)) (canon lift (core func $i "run")))
            (instance $out (export "run" (func $run)))
            (export "wasi:cli/run@0.2.0" (instance $out)))"#);
        run_file(node, "/component.wasm", &component).expect_refusal(&["acme:db/query@1.0.0"]);
    }

    fn a_missing_entry_point_is_refused(node) {
        let root = crate::container::root_folder(node, &[("probe.wasm", &Probe::P1.bytes())]);
        let spec = crate::container::spec(node, &root, &[]);
        crate::container::Run::of_spec(node, &spec).fail().expect_refusal(&["no entry point", "command"]);
    }

    fn an_entry_point_that_is_not_in_the_image_is_refused(node) {
        let image = Image::with_files("absent", &[("/probe.wasm", &Probe::P1.bytes())]);
        node.import(&image);
        node.run(&image).args(&["/nowhere.wasm"]).fail().expect_refusal(&["/nowhere.wasm", "no such file or directory"]);
        node.run(&image).args(&["nowhere.wasm"]).fail().expect_refusal(&["nowhere.wasm", "executable file not found in $PATH"]);
    }

    fn a_compilation_over_its_processor_time_is_ended(node) {
        node.configure("idle_timeout = 0\ncompile_timeout = 1\ncompile_memory = \"8Gi\"");
        run_file(node, "/slow.wasm", &slow_to_compile()).expect_refusal(&["/slow.wasm", "more than 1 s of processor time", "compile_timeout"]);
    }

    fn a_compilation_over_its_memory_limit_is_ended(node) {
        node.configure("idle_timeout = 0\ncompile_memory = \"64Mi\"");
        run_file(node, "/large.wasm", &slow_to_compile()).expect_refusal(&["/large.wasm", "64 MiB", "compile_memory"]);
        // The limit is that module's own failure: the next one compiles.
        let image = Image::with_files("small", &[("/small.wasm", &wat(r#"(module (func (export "_start")))"#))]);
        node.import(&image);
        node.run(&image).finish().ok();
    }

    fn an_unknown_option_is_refused_with_the_ones_there_are(node) {
        node.configure("cache_sise = \"1Gi\"");
        let image = Image::with_files("options", &[("/probe.wasm", &Probe::P1.bytes())]);
        node.import(&image);
        node.run(&image).args(&["/probe.wasm", "args"]).fail().expect_refusal(&["cache_sise", "cache_size"]);
        node.configure("compile_timeout = 0");
        node.run(&image).args(&["/probe.wasm", "args"]).fail().expect_refusal(&["compile_timeout", "0", "1"]);
        node.configure("log = [");
        node.run(&image).args(&["/probe.wasm", "args"]).fail().expect_refusal(&["TOML"]);
    }

    fn after_all_refusals_a_good_image_runs(node) {
        node.configure("idle_timeout = 2");
        run_file(node, "/empty.wasm", b"").expect_refusal(&["empty"]);
        run_file(node, "/text.wasm", b"text").expect_refusal(&["not a wasm module"]);
        let server = crate::server::pid(node);
        let image = Image::with_files("good", &[("/probe.wasm", &Probe::P2.bytes())]);
        node.import(&image);
        assert_eq!(node.run(&image).args(&["/probe.wasm", "say", "good"]).finish().ok().stdout, "good\n");
        assert_eq!(crate::server::pid(node), server, "the server outlived them");
    }
}
