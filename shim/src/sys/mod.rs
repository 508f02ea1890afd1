//! The kernel's objects, one file each. The only room that may use `unsafe`, beside the loading of an artifact.

#![allow(unsafe_code, reason = "this room is where the kernel's interfaces are made safe")]

pub mod standard;
