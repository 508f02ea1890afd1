//! What every guest needs and no guest owns: built once in the launcher, shared by its children's pages.
//!
//! No context, no random state and no hash map of consequence is in here: they would be equal in every guest.

use wasmtime::{Engine, Linker, component};
use wasmtime_wasi::I32Exit;

use super::context::{Component, Module};
use crate::compile::Profile;
use crate::compile::engine::engine;

/// The engine and the linkers.
pub struct Warm {
    pub engine: Engine,
    /// WASI 0.1 for core modules.
    pub modules: Linker<Module>,
    /// WASI 0.2 and 0.3 for components, a 0.3 component imports 0.2 interfaces too; wasi:config and wasi:keyvalue.
    pub components: component::Linker<Component>,
}

impl Warm {
    /// Builds the engine and links every interface that guests are offered.
    ///
    /// # Errors
    ///
    /// What wasmtime says of the configuration or a definition.
    pub fn new() -> wasmtime::Result<Warm> {
        let engine = engine(Profile::Command)?;
        let mut modules = Linker::new(&engine);
        wasmtime_wasi::p1::add_to_linker_async(&mut modules, |module: &mut Module| &mut module.wasi)?;
        // wasmtime's own refuses codes from 126 on, by which shells tell that a command was not found or was killed.
        modules.allow_shadowing(true).func_wrap(
            "wasi_snapshot_preview1",
            "proc_exit",
            |code: i32| -> wasmtime::Result<()> { Err(I32Exit(code).into()) },
        )?;
        let mut components = component::Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut components)?;
        wasmtime_wasi::p3::add_to_linker(&mut components)?;
        wasmtime_wasi_config::add_to_linker(&mut components, Component::config)?;
        wasmtime_wasi_keyvalue::add_to_linker(&mut components, Component::keyvalue)?;
        Ok(Warm {
            engine,
            modules,
            components,
        })
    }
}
