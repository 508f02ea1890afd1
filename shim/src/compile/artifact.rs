//! Maps a trusted artifact into the process that runs it.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use wasmtime::component::Component;
use wasmtime::{Engine, Module};

use super::World;

/// Compiled code, ready to instantiate.
pub enum Loaded {
    Module(Module),
    Component(Component),
}

/// Maps an artifact of [`super::Artifacts`] for `engine`, which must be of the artifact's profile. The file's pages are
/// shared by all who map it, also those of the guest's first memory.
///
/// A component is opened once more through /proc/self/fd, since wasmtime maps components from paths only: call this in
/// the guest's process, but before its root, user or mounts change.
///
/// # Errors
/// When the file is of another wasmtime, CPU or profile, or /proc is not there.
#[expect(unsafe_code, reason = "mapping compiled code is the one unsafe thing this room does")]
pub fn load(engine: &Engine, artifact: OwnedFd, world: World) -> wasmtime::Result<Loaded> {
    match world {
        World::Module => {
            // SAFETY: the file is an artifact that `Artifacts` compiled itself and whose length and sha256 it verified,
            // in a folder that only root writes, or a sealed memfd: it is unchanged and stays so.
            unsafe { Module::deserialize_open_file(engine, File::from(artifact)) }.map(Loaded::Module)
        }
        World::Command02 | World::Command03 => {
            let path = format!("/proc/self/fd/{}", artifact.as_raw_fd());
            // SAFETY: as above; the path names the very file that `artifact` has open.
            unsafe { Component::deserialize_file(engine, path) }.map(Loaded::Component)
        }
    }
}

