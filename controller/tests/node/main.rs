//! The node agent's dangerous part on real containerds: a handler is written into their configuration, they restart, and
//! wasm runs by it; or all is as it was.
//!
//! systemd is not here: the tests restart containerd themselves, where the helper has systemd do it.

#![allow(clippy::unwrap_used, reason = "in a test a failed unwrap is the report")]
#![allow(
    unreachable_pub,
    reason = "nothing is public in a test binary: `pub` marks what a file offers the others"
)]

mod advice;
mod check;
mod containerd;
mod failed_proof;
mod foreign_edits;
mod foreign_handlers;
mod full_disk;
mod generated;
mod generator;
mod image_pull;
mod imports;
mod install;
mod leftovers;
mod lifecycle;
mod proof;
mod restart;
mod resume;
mod rollback;
mod runtime;
mod steps;
mod unusable;
mod unwritable;

/// Makes a test of each function, on each of these containerds.
macro_rules! on_every_containerd {
    ($($(#[$attribute:meta])* async fn $name:ident($node:ident) $body:block)*) => { $(
        mod $name {
            use super::*;
            use crate::containerd::{Node, Version};

            async fn scenario($node: &Node) $body

            #[tokio::test]
            async fn on_1_6() { Node::with(Version::V1_6, scenario).await; }
            #[tokio::test]
            async fn on_1_7() { Node::with(Version::V1_7, scenario).await; }
            #[tokio::test]
            async fn on_2_4() { Node::with(Version::V2_4, scenario).await; }
        }
    )* };
}
use on_every_containerd;
