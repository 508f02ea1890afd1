//! The only wasmtime configuration: what guests run with and artifacts are compiled for.

use wasmtime::{Config, Engine, OptLevel, WasmBacktraceDetails};

use super::Profile;

/// The engine of `profile`. Deterministic: equal builds on equal CPUs give equal compatibility hashes, whatever the
/// process's environment.
pub fn engine(profile: Profile) -> wasmtime::Result<Engine> {
    let mut config = Config::new();
    // WASI 0.2 and 0.3. Every other proposal stays at wasmtime's default: on once wasmtime calls it stable.
    config.wasm_component_model(true).wasm_component_model_async(true);
    config.cranelift_opt_level(OptLevel::Speed);
    // File and line in a trap's backtrace, when the module brings DWARF. The default asks an environment variable.
    config
        .wasm_backtrace_details(WasmBacktraceDetails::Enable)
        .generate_address_map(true);
    // Tables for native debuggers and unwinders: wasm backtraces use frame pointers, and registering the tables costs
    // every guest time and private memory.
    config.native_unwind_info(false);
    // A guest maps its first memory from the artifact, so pages it does not write are shared by all guests.
    config.memory_init_cow(true);
    config.epoch_interruption(match profile {
        Profile::Command => false,
        Profile::Service => true,
    });
    Engine::new(&config)
}
