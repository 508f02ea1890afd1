//! What scenarios on a real cluster are written with.
//!
//! A scenario applies manifests as a user would, in a namespace of its own, and looks at what the cluster says. kubectl
//! is called where its output or its own work is what is tested; all else goes through the API.

pub mod cluster;
pub mod deployment;
pub mod forward;
pub mod metrics;
pub mod namespace;
pub mod node;
pub mod registry;
pub mod release;
pub mod runtime;
pub mod wait;
pub mod workload;
