//! What the control plane writes on objects that are not its own: label, annotation and finalizer names.

/// The value of [`ready`] on a node that proved the runtime.
pub const READY: &str = "ready";

/// The value of [`agent`] on a node that is to run the runtime's agent.
pub const WANTED: &str = "wanted";

/// On every object of a runtime: the runtime's name.
pub const RUNTIME: &str = "kubewasi.dev/runtime";

/// On a WasmRuntime: any new value lets a halted rollout try failed nodes again.
pub const RETRY: &str = "kubewasi.dev/retry";

/// On a DaemonSet: the hash of what the controller last applied.
pub const APPLIED: &str = "kubewasi.dev/applied";

/// On a custom resource definition: the number of its schema, which never goes down.
pub const SCHEMA: &str = "kubewasi.dev/schema";

/// On a WasmRuntime: its nodes still have the shim.
pub const FINALIZER: &str = "kubewasi.dev/uninstall";

/// Pods of a runtime run where this label is [`READY`]; it is set on proof alone.
pub fn ready(runtime: &str) -> String {
    format!("runtime.kubewasi.dev/{runtime}")
}

/// The version of the shim that the node proved.
pub fn version(runtime: &str) -> String {
    format!("version.kubewasi.dev/{runtime}")
}

/// The DaemonSet of the runtime runs where this label is [`WANTED`]: also on nodes that are to be cleaned.
pub fn agent(runtime: &str) -> String {
    format!("agent.kubewasi.dev/{runtime}")
}
