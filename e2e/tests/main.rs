//! Scenarios on a real cluster, one a file, each in a namespace of its own. `make e2e` runs them.

mod bad_input;
mod beside_ordinary_pods;
mod debugging;
mod endings;
mod exec;
mod init_containers;
mod jobs;
mod pod_security;
mod probes;
mod resize;
mod sidecars;
mod volumes;
