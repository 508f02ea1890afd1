//! Pods by CRI: the CNCF artifact, which only CRI runs.

/// The image of the pods' sandboxes; nothing of it is ever executed.
pub const PAUSE: &str = "kubewasi.test/pause:latest";
