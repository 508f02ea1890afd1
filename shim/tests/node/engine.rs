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

/// Makes a million structs, a few hundred bytes of which live at a time, and reads the last.
const STRUCTS: &str = r#"(module
    (type $node (struct (field i32) (field (ref null $node))))
    (func (export "_start") (local $i i32) (local $last (ref null $node))
      (loop $again
        (local.set $last (struct.new $node (local.get $i) (ref.null $node)))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $again (i32.lt_u (local.get $i) (i32.const 1000000))))
      (if (i32.ne (struct.get $node 0 (local.get $last)) (i32.const 999999)) (then unreachable))))"#;

/// As [`STRUCTS`], but each has the one before, without end.
const OBJECTS_WITHOUT_END: &str = r#"(module
    (type $node (struct (field i32) (field (ref null $node))))
    (func (export "_start") (local $last (ref null $node))
      (loop $again
        (local.set $last (struct.new $node (i32.const 1) (local.get $last)))
        (br $again))))"#;

/// Throws through a call, and catches.
const EXCEPTIONS: &str = r#"(module
    (tag $wrong (param i32))
    (func $throws (throw $wrong (i32.const 7)))
    (func (export "_start")
      (block $caught (result i32)
        (try_table (catch $wrong $caught) (call $throws))
        unreachable)
      (if (i32.ne (i32.const 7)) (then unreachable))))"#;

/// Adds atomically, and wakes nobody.
const ATOMICS: &str = r#"(module (memory (export "memory") 1)
    (func (export "_start")
      (drop (i32.atomic.rmw.add (i32.const 8) (i32.const 5)))
      (if (i32.ne (i32.atomic.load (i32.const 8)) (i32.const 5)) (then unreachable))
      (if (memory.atomic.notify (i32.const 8) (i32.const 1)) (then unreachable))))"#;

/// Grows a memory of 64-bit addresses, and uses its last word.
const MEMORY64: &str = r#"(module (memory (export "memory") i64 1)
    (func (export "_start")
      (if (i64.ne (memory.grow (i64.const 15)) (i64.const 1)) (then unreachable))
      (i64.store (i64.const 1048568) (i64.const -1))
      (if (i64.ne (i64.load (i64.const 1048568)) (i64.const -1)) (then unreachable))))"#;

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

    fn a_guest_runs_with_what_the_proposals_that_are_on_are_for(node) {
        for proposal in [STRUCTS, EXCEPTIONS, ATOMICS, MEMORY64] {
            module(node, proposal, None).finish().ok();
        }
    }

    fn objects_that_the_host_collects_count_towards_the_guests_memory(node) {
        let few = Some(("kubewasi.dev/memory-limit", "16Mi"));
        module(node, STRUCTS, few).finish().ok();
        module(node, OBJECTS_WITHOUT_END, few).finish().expect_code(134).expect_error(&["memory"]);
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
