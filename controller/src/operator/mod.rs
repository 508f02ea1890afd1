//! The controller: from listed objects to a plan of writes, and from the plan to the API server.
//!
//! ```text
//! run ─> definitions, lead, serve
//!  └──> reconcile: watch, asked ──> View ──> plan (pure) ──> Write ──> perform ──> API server
//!                                                                └──> events, metrics
//! ```

mod asked;
mod definitions;
mod events;
mod heard;
mod lead;
mod metrics;
mod perform;
pub mod plan;
mod reconcile;
pub mod run;
mod serve;
mod settings;
pub mod uninstall;
mod unreadable;
mod view;
mod watch;
pub mod write;
