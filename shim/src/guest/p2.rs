//! Components of the world `wasi:cli/command` 0.2.

use wasmtime::Store;
use wasmtime::component::Component;
use wasmtime_wasi::p2::bindings::CommandPre;

use super::context::{Component as State, Surroundings, Thread};
use super::limits::Limits;
use super::warm::Warm;
use super::{Settings, no_export};

/// A command component, linked.
pub struct Program(CommandPre<State>);

/// Links a component.
///
/// # Errors
///
/// Names the import that is missing.
pub fn link(warm: &Warm, component: &Component, export: Option<&str>) -> wasmtime::Result<Program> {
    no_export(export)?;
    Ok(Program(CommandPre::new(warm.components.instantiate_pre(component)?)?))
}

impl Program {
    /// Runs the component to its end: 0 or 1 by what `run` returns; wasi:cli/exit comes as an error.
    ///
    /// # Errors
    ///
    /// A trap, or an exit as [`wasmtime_wasi::I32Exit`].
    pub async fn run(self, settings: &Settings<'_>, limits: Limits) -> wasmtime::Result<i32> {
        let mut store = Store::new(
            self.0.engine(),
            Surroundings::new(settings, Thread::Alone)?.command(limits),
        );
        store.limiter(|state| &mut state.limits);
        let command = self.0.instantiate_async(&mut store).await?;
        store.data_mut().limits.instantiated();
        let result = command.wasi_cli_run().call_run(&mut store).await?;
        Ok(i32::from(result.is_err()))
    }
}
