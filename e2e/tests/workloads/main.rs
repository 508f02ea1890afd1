//! Scenarios of wasm workloads on a cluster with the release, one a file, each in a namespace of its own.

mod autoscaling;
mod bad_input;
mod beside_ordinary_pods;
mod cpu;
mod debugging;
mod drain;
mod endings;
mod exec;
mod http;
mod init_containers;
mod jobs;
mod logs;
mod pod_security;
mod probes;
mod quota;
mod registry;
mod resize;
mod sidecars;
mod volumes;
