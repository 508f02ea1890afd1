//! How a guest serves HTTP.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The options of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Http {
    /// The port it listens on; else its environment says which.
    pub port: Option<u16>,
    /// The port on which it serves its metrics, if any.
    pub metrics_port: Option<u16>,
    /// So many requests an instance answers; else its world says how many.
    pub requests_per_instance: Option<u64>,
    /// Until its answer begins, between two pieces of it, and to go on after it.
    pub request_timeout: Duration,
    /// So many connections are open at the same time.
    pub max_connections: u64,
    /// So many requests are answered at the same time.
    pub max_concurrent_requests: u64,
    /// So many more wait for their turn.
    pub max_queued_requests: u64,
    /// The most bytes of a request's head.
    pub max_header_size: u64,
    /// The most bytes of a request's body.
    pub max_body_size: u64,
    /// How long it may answer what was begun when it is told to end.
    pub drain_timeout: Duration,
    /// Its threads look for the next request before they sleep, where each has a cpu.
    pub busy_poll: bool,
    /// Each request is a line on its stdout.
    pub access_log: bool,
}
