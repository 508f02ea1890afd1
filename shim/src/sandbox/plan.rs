//! What a container's process needs, decided from its OCI spec before anything is done (pure).

use std::path::Path;

use oci_spec::runtime::Spec;

use crate::compile::World;
use crate::image::Mount;

/// What the process runs once it is confined.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Role {
    /// Holds a pod's namespaces until it is killed; nothing of the pause image runs.
    Holder,
    /// Runs an artifact of `world`, `export` or the world's entry point.
    Guest { world: World, export: Option<String> },
}

/// What a plan is made from.
pub struct Request<'a> {
    pub namespace: &'a str,
    pub id: &'a str,
    pub spec: &'a Spec,
    pub bundle: &'a Path,
    pub rootfs: &'a [Mount],
    pub role: Role,
}

/// Everything the forked process does to confine itself, in data.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Plan {}

/// What the spec asks for and is refused, by its name in the OCI runtime spec.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("process is missing in config.json")]
    NoProcess,
}

/// Turns a spec into a plan, or names what is not supported.
pub fn plan(_request: Request<'_>) -> Result<Plan, PlanError> {
    todo!()
}
