//! From an OCI spec and an artifact to an isolated process.

pub mod control;
pub mod launcher;
pub mod plan;
pub mod record;
