//! The resources of `kubewasi.dev/v1alpha1`, and the names that the control plane writes elsewhere.
//!
//! ```text
//! user ── WasmRuntime.spec ──> controller ── WasmNode.spec: wish, permit ──> agent of the node
//!             status  <──────────                WasmNode.status: plan, proof <──────
//! ```
//!
//! The schemas of the custom resource definitions are generated from these types; `charts/kubewasi/crds` is a copy.

pub(crate) mod bounds;
pub mod crds;
pub mod labels;
pub mod shim_options;
mod toleration;
pub mod wasm_node;
pub mod wasm_runtime;

pub use shim_options::ShimOptions;
pub use wasm_node::{WasmNode, WasmNodeSpec, WasmNodeStatus};
pub use wasm_runtime::{WasmRuntime, WasmRuntimeSpec, WasmRuntimeStatus};

/// The API group of everything of kubewasi's.
pub const GROUP: &str = "kubewasi.dev";
