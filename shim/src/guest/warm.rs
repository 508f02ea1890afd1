//! What guests need and no guest owns: built once in the launcher, shared by its children's pages. A service has an
//! engine of its own, see [`Serving`].
//!
//! No context, no random state and no hash map of consequence is in here: they would be equal in every guest.

use kubewasi_options::Engine as Options;
use wasmtime::{Engine, Linker, component};
use wasmtime_wasi::I32Exit;

use super::context::{Component, Module};
use super::http::figures::Figures;
use crate::compile::Profile;
use crate::compile::engine;

/// The engine and the linkers.
pub struct Warm {
    /// What every engine of this handler is like.
    pub options: Options,
    pub engine: Engine,
    /// WASI 0.1 for core modules.
    pub modules: Linker<Module>,
    pub components: component::Linker<Component>,
}

/// What a service needs, built in its own process: a pool of instances is not to be shared by processes, and its size is
/// the pod's to choose.
pub struct Serving {
    pub engine: Engine,
    pub components: component::Linker<Component>,
    /// What it counts of itself.
    pub figures: Figures,
}

impl Serving {
    /// Builds an engine for so many instances and links every interface that guests are offered; the service counts in
    /// `figures`.
    ///
    /// # Errors
    ///
    /// As [`Warm::new`].
    pub fn new(instances: u32, options: &Options, figures: Figures) -> wasmtime::Result<Serving> {
        let engine = engine::pooled(instances, options)?;
        Ok(Serving {
            components: components(&engine)?,
            engine,
            figures,
        })
    }
}

impl Warm {
    /// Builds the engine and links every interface that guests are offered.
    ///
    /// # Errors
    ///
    /// What wasmtime says of the configuration or a definition.
    pub fn new(options: Options) -> wasmtime::Result<Warm> {
        let engine = engine::engine(Profile::Command, &options)?;
        let mut modules = Linker::new(&engine);
        wasmtime_wasi::p1::add_to_linker_async(&mut modules, |module: &mut Module| &mut module.wasi)?;
        // wasmtime's own refuses codes from 126 on, by which shells tell that a command was not found or was killed.
        modules.allow_shadowing(true).func_wrap(
            "wasi_snapshot_preview1",
            "proc_exit",
            |code: i32| -> wasmtime::Result<()> { Err(I32Exit(code).into()) },
        )?;
        Ok(Warm {
            components: components(&engine)?,
            engine,
            modules,
            options,
        })
    }
}

/// WASI 0.2 and 0.3, wasi:http, wasi:config and wasi:keyvalue, offered to every component, whatever it exports: a 0.3
/// component imports 0.2 interfaces too, and what compilers link into a service imports wasi:cli.
fn components(engine: &Engine) -> wasmtime::Result<component::Linker<Component>> {
    let mut components = component::Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut components)?;
    wasmtime_wasi::p3::add_to_linker(&mut components)?;
    wasmtime_wasi_config::add_to_linker(&mut components, Component::config)?;
    wasmtime_wasi_keyvalue::add_to_linker(&mut components, Component::keyvalue)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut components)?;
    wasmtime_wasi_http::p3::add_to_linker(&mut components)?;
    Ok(components)
}
