//! Maps a trusted artifact into the process that runs it.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

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
/// A component is opened once more by its number in `open_files`, since wasmtime maps components from paths only:
/// `/proc/self/fd`, or a relative path to it where the root has changed and only the working directory leads there.
///
/// # Errors
/// When the file is of another wasmtime, CPU or profile, or `open_files` is not that folder.
#[expect(unsafe_code, reason = "mapping compiled code is the one unsafe thing this room does")]
pub fn load(engine: &Engine, artifact: OwnedFd, open_files: &Path, world: World) -> wasmtime::Result<Loaded> {
    match world {
        World::Module => {
            // SAFETY: the file is an artifact that `Artifacts` compiled itself and whose length and sha256 it verified,
            // in a folder that only root writes, or a sealed memfd: it is unchanged and stays so.
            unsafe { Module::deserialize_open_file(engine, File::from(artifact)) }.map(Loaded::Module)
        }
        World::Command02 | World::Command03 | World::Http02 | World::Http03 => {
            let path = open_files.join(artifact.as_raw_fd().to_string());
            // SAFETY: as above; the path names the very file that `artifact` has open.
            unsafe { Component::deserialize_file(engine, path) }.map(Loaded::Component)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{Profile, engine::engine, worker};
    use crate::image::memory;
    use kubewasi_options::{Engine as Options, WorldChoice};
    use std::io::Write;

    fn artifact(text: &str) -> (OwnedFd, World) {
        let wasm = wat::parse_str(text).expect("valid text");
        let (bytes, worlds) = worker::compile(&wasm, &Options::default(), WorldChoice::Auto).expect("compiled");
        let mut file = memory::file("artifact").expect("memfd");
        file.write_all(&bytes).expect("write");
        memory::seal(&file).expect("seal");
        (file.into(), worlds.world)
    }

    #[test]
    fn a_module_and_a_component_load_from_a_sealed_file() {
        let engine = engine(Profile::Command, &Options::default()).expect("engine");
        let (file, world) = artifact(r#"(module (memory 1) (data (i32.const 0) "x") (func (export "_start")))"#);
        assert!(matches!(
            load(&engine, file, Path::new("/proc/self/fd"), world),
            Ok(Loaded::Module(_))
        ));
        let component = r#"(component (core module $m (func (export "run") (result i32) i32.const 0))
            (core instance $i (instantiate $m))
            (func $run (result (result)) (canon lift (core func $i "run")))
            (instance $e (export "run" (func $run)))
            (export "wasi:cli/run@0.2.0" (instance $e)))"#;
        let (file, world) = artifact(component);
        assert_eq!(world, World::Command02);
        assert!(matches!(
            load(&engine, file, Path::new("/proc/self/fd"), world),
            Ok(Loaded::Component(_))
        ));
    }

    #[test]
    fn a_command_and_a_service_load_with_the_engine_of_their_world_alone() {
        let service = r#"(component (instance $e) (export "wasi:http/incoming-handler@0.2.0" (instance $e)))"#;
        for text in ["(module)", service] {
            let loads = |profile| {
                let (file, world) = artifact(text);
                let engine = engine(profile, &Options::default()).expect("engine");
                let loaded = load(&engine, file, Path::new("/proc/self/fd"), world);
                assert_eq!(loaded.is_ok(), profile == world.profile(), "{text}");
            };
            loads(Profile::Command);
            loads(Profile::Service);
        }
    }
}
