//! Scenarios of installing, changing and removing the release: one after another, since each has all nodes of the
//! cluster to itself. `make e2e` runs them before the workloads.

mod agent_rights;
mod agents;
mod by_hand;
mod changes;
mod eviction;
mod faults;
mod forbidden;
mod idle;
mod leaders;
mod losses;
mod manifest;
mod membership;
mod outage;
mod refusals;
mod rescue;
mod second_runtime;
mod steady;
mod uninstall;
mod unproven;
