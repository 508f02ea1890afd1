//! Node tests: the shim under real containerd daemons, each private to its test.
//!
//! A test in which containerd has a part runs for each version of [`containerd::Version`]; `cargo test --test node on_1_6`
//! picks one.
//! Those that need systemd or cgroup v2 are ignored here and run in a virtual machine that has it, by `make test-cgroup2`.
//! Tests need root and take turns, since each compares the machine before and after (see [`machine`]).

#![allow(clippy::unwrap_used, reason = "in a test a failed unwrap is the report")]
#![allow(
    unreachable_pub,
    reason = "nothing is public in a test binary: `pub` marks what a file offers the others"
)]

/// Makes one test a containerd version of a function that is given a running [`containerd::Node`].
macro_rules! on_every_containerd {
    (alone $($tests:tt)*) => {
        on_every_containerd! { @ alone $($tests)* }
    };
    (fn $($tests:tt)*) => {
        on_every_containerd! { @ with fn $($tests)* }
    };
    (@ $how:ident $(fn $name:ident($node:ident) $body:block)*) => {
        $(
            mod $name {
                #[allow(unused_imports, reason = "not every test needs all that its file imports")]
                use super::*;

                fn scenario($node: &mut $crate::containerd::Node) $body

                #[test]
                fn on_1_6() {
                    $crate::containerd::Node::$how($crate::containerd::Version::V1_6, scenario);
                }

                #[test]
                fn on_1_7() {
                    $crate::containerd::Node::$how($crate::containerd::Version::V1_7, scenario);
                }

                #[test]
                fn on_2_4() {
                    $crate::containerd::Node::$how($crate::containerd::Version::V2_4, scenario);
                }
            }
        )*
    };
}

/// Makes a test of a function that is given a running [`containerd::Node`] of the newest version: for what containerd has
/// no part in.
macro_rules! on_newest_containerd {
    ($($(#[$attribute:meta])* fn $name:ident($node:ident) $body:block)*) => {
        $(
            #[test]
            $(#[$attribute])*
            fn $name() {
                fn scenario($node: &mut $crate::containerd::Node) $body

                $crate::containerd::Node::with($crate::containerd::Version::V2_4, scenario);
            }
        )*
    };
}

use kubewasi_testbed::image as image_builder;

mod command;
mod container;
mod containerd;
mod guests;
mod nameserver;
mod network;
mod pod;
mod server;
mod service;

mod annotations;
mod apparmor;
mod attach;
mod bad_input;
mod cache;
mod compiling;
mod confinement;
mod control;
mod cri;
mod docker;
mod engine;
mod entry_points;
mod environment;
mod exec;
mod factors;
mod faults;
mod forbidden;
mod forks;
mod harness;
mod hooks;
mod http;
mod http_hostile;
mod http_limits;
mod images;
mod images_of_one_config;
mod language_services;
mod languages;
mod load;
mod loggers;
mod manifest;
mod metrics;
mod mixed;
mod native;
mod outages;
mod outbound;
mod pulls;
mod run;
mod sandbox;
mod security;
mod sockets;
mod starting;
mod stdio;
mod stock;
mod systemd;
mod task_api;
mod terminal;
mod tracer;
mod unified;
mod users;
mod volumes;
mod working_directory;
mod worlds;

use kubewasi_testbed::machine;
