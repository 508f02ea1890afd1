//! What a handler's options of the engine change.

use serde_json::json;

use crate::container::{Run, root_folder, spec};
use crate::containerd::Node;
use crate::guests::wat;

/// A container of the module `text`; `annotation` is one of the pod's.
fn module<'a>(node: &'a Node, text: &str, annotation: Option<(&str, &str)>) -> Run<'a> {
    let root = root_folder(node, &[("a.wasm", &wat(text))]);
    let mut spec = spec(node, &root, &["/a.wasm"]);
    if let Some((key, value)) = annotation {
        spec["annotations"] = json!({key: value});
    }
    Run::of_spec(node, &spec)
}

/// Calls itself so many times.
fn recursing(times: u32) -> String {
    format!(
        r#"(module (func $f (param i32)
             (if (local.get 0) (then (call $f (i32.sub (local.get 0) (i32.const 1))) (drop (i32.add (local.get 0) (i32.const 1))))))
           (func (export "_start") (call $f (i32.const {times}))))"#
    )
}

on_newest_containerd! {
    fn a_proposal_is_the_handlers_to_allow(node) {
        let tail_call = r#"(module (func $f) (func (export "_start") return_call $f))"#;
        module(node, tail_call, None).finish().ok();
        let wide = r#"(module (func (export "_start")
            (drop (drop (i64.add128 (i64.const 1) (i64.const 2) (i64.const 3) (i64.const 4))))))"#;
        module(node, wide, None).fail().expect_refusal(&["wide arithmetic"]);
        node.configure("idle_timeout = 0\nwasm_tail_call = false\nwasm_wide_arithmetic = true");
        module(node, tail_call, None).fail().expect_refusal(&["tail calls"]);
        module(node, wide, None).finish().ok();
    }

    fn a_stack_is_as_deep_as_the_handler_says_or_the_pod(node) {
        module(node, &recursing(6000), None).finish().ok();
        module(node, &recursing(100_000), None).finish().expect_code(134).expect_error(&["call stack exhausted"]);
        node.configure("idle_timeout = 0\nstack_size = '64Ki'");
        module(node, &recursing(6000), None).finish().expect_code(134).expect_error(&["call stack exhausted"]);
        node.configure("idle_timeout = 0\nstack_size = '64Mi'");
        module(node, &recursing(100_000), None).finish().ok();
        let shallow = Some(("kubewasi.dev/stack-size", "64Ki"));
        module(node, &recursing(6000), shallow).finish().expect_code(134).expect_error(&["call stack exhausted"]);
        node.configure("idle_timeout = 0");
        module(node, &recursing(100_000), Some(("kubewasi.dev/stack-size", "64Mi"))).finish().ok();
        module(node, &recursing(1), Some(("kubewasi.dev/stack-size", "65Mi"))).fail()
            .expect_refusal(&["kubewasi.dev/stack-size: 65Mi is out of range", "64Mi"]);
    }

    fn code_that_is_not_optimized_runs_as_well(node) {
        node.configure("idle_timeout = 0\noptimization = 'none'");
        module(node, &recursing(10), None).finish().ok();
    }
}
