//! The agent of a node: it changes its host while it holds a permit, and proves that the host works.
//!
//! ```text
//!  WasmNode ──wish──> agent: host ──> observe ──> plan (pure) ──permit──> work ──> proof ──> report ──> WasmNode
//!                                                                         │ journal
//!                      on the host, in a unit of its own:  helper ──> transaction: restart, verify or roll back
//! ```
//!
//! `config` and `plan` decide and do nothing; `disk`, `dumper`, `durable`, `journal`, `systemd`, `cri` and `smoke` do and
//! decide nothing; `configuration` asks containerd which of `config`'s candidates is the one.

pub mod agent;
pub mod changes;
pub mod check;
pub mod config;
pub mod configuration;
pub mod copy;
pub mod cri;
pub mod disk;
pub mod dry_run;
pub mod dumper;
mod durable;
pub mod evidence;
mod fault;
pub mod health;
pub mod helper;
pub mod host;
pub mod host_path;
pub mod journal;
pub mod layout;
pub mod observe;
pub mod plan;
pub mod proof;
pub mod refusal;
mod report;
pub mod restart;
pub mod rights;
pub mod runtime_socket;
pub mod shim;
pub mod smoke;
pub mod systemd;
pub mod transaction;
pub mod work;
pub mod write_access;
