//! Core modules with WASI 0.1.

use wasmtime::{ExternType, InstancePre, Module, Store, Val};

use super::Settings;
use super::context::{Module as State, Surroundings, Thread};
use super::limits::Limits;
use super::warm::Warm;

/// The entry point of a command (WASI 0.1 application ABI).
const START: &str = "_start";
/// What a reactor's host calls once before any export (WASI 0.1 application ABI).
const INITIALIZE: &str = "_initialize";

/// A core module, linked, with the export to call.
pub struct Program {
    instance: InstancePre<State>,
    export: String,
}

/// Links a module and finds its entry point.
///
/// # Errors
///
/// Names the import that is missing, or the export and those there are.
pub fn link(warm: &Warm, module: &Module, export: Option<&str>) -> wasmtime::Result<Program> {
    let name = export.unwrap_or(START);
    match module.get_export(name) {
        Some(ExternType::Func(function)) if function.params().len() == 0 => {}
        Some(ExternType::Func(_)) => {
            wasmtime::bail!("the export {name:?} takes parameters, but an entry point has none")
        }
        Some(_) => wasmtime::bail!("the export {name:?} is not a function"),
        None => {
            let functions: Vec<_> = module
                .exports()
                .filter(|export| matches!(export.ty(), ExternType::Func(_)))
                .map(|export| export.name())
                .take(20)
                .collect();
            wasmtime::bail!(
                "the module has no export {name:?} to call; its functions are [{}]: name one as module.wasm#function",
                functions.join(", ")
            )
        }
    }
    Ok(Program {
        instance: warm.modules.instantiate_pre(module)?,
        export: name.to_owned(),
    })
}

impl Program {
    /// Runs the module to its end: 0 when it returns, else the code of its proc_exit, which comes as an error.
    ///
    /// # Errors
    ///
    /// A trap, or an exit as [`wasmtime_wasi::I32Exit`].
    pub async fn run(self, settings: &Settings<'_>, limits: Limits) -> wasmtime::Result<i32> {
        let mut store = Store::new(
            self.instance.module().engine(),
            Surroundings::new(settings, Thread::Alone)?.module(limits),
        );
        store.limiter(|state| &mut state.limits);
        let instance = self.instance.instantiate_async(&mut store).await?;
        store.data_mut().limits.instantiated();
        if self.export != START
            && let Some(initialize) = instance.get_func(&mut store, INITIALIZE)
        {
            initialize.call_async(&mut store, &[], &mut []).await?;
        }
        let function = instance
            .get_func(&mut store, &self.export)
            .ok_or_else(|| wasmtime::format_err!("the export {:?} is gone", self.export))?;
        let mut results = vec![Val::I32(0); function.ty(&store).results().len()];
        function.call_async(&mut store, &[], &mut results).await?;
        Ok(0)
    }
}
