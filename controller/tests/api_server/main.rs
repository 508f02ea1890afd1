//! The controller as a process, against a real API server with its etcd.
//!
//! There is no kubelet and no other controller: nodes are objects, and the agents are the tests'. Every test has an API
//! server of its own.

#![allow(clippy::unwrap_used, reason = "in a test a failed unwrap is the report")]

mod agents;
mod control_plane;
mod controller;
mod crds;
mod faults;
mod lifecycle;
mod overwritten;
mod package;
mod readable;
mod refused;
mod reports;
