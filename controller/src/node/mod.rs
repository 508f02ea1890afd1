//! The agent of a node: it changes its host while it holds a permit, and proves that the host works.

pub mod config;
