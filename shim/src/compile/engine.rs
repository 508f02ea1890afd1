//! The only wasmtime configuration: what guests run with and artifacts are compiled for.

use kubewasi_options::{Engine as Options, Optimization};
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, WasmBacktraceDetails,
};

use super::Profile;

/// The engine of `profile`. Deterministic: equal builds with equal options on equal CPUs give equal compatibility hashes, whatever the
/// process's environment.
pub fn engine(profile: Profile, options: &Options) -> wasmtime::Result<Engine> {
    Engine::new(&config(profile, options)?)
}

/// The engine of [`Profile::Service`] with room for so many instances, which are made from a pool. To be built in the
/// process that uses it, while that has a /proc: the kernel tells there which pages an instance has written.
pub fn pooled(instances: u32, options: &Options) -> wasmtime::Result<Engine> {
    let mut config = config(Profile::Service, options)?;
    let mut pool = pool(instances);
    if options.stack_size > KEPT_STACK {
        // What one request has used of a deep stack is given back, or each place of the pool would keep it.
        config.async_stack_zeroing(true);
        pool.async_stack_keep_resident(KEPT_OF_STACK);
    }
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Engine::new(&config)
}

/// The options as an argument of our own processes.
pub fn argument(options: &Options) -> String {
    serde_json::to_string(options).unwrap_or_default()
}

/// The options of [`argument`]; `None` for any other text.
pub fn of_argument(text: &str) -> Option<Options> {
    serde_json::from_str(text).ok()
}

/// What host functions have of a guest's stack beside the guest's own calls: wasmtime's default.
const HOST_STACK: usize = 1536 << 10;

fn config(profile: Profile, options: &Options) -> wasmtime::Result<Config> {
    let mut config = Config::new();
    // WASI 0.2 and 0.3. Proposals without an option stay at wasmtime's default: on once wasmtime calls them stable.
    config.wasm_component_model(true).wasm_component_model_async(true);
    config
        .wasm_gc(options.gc)
        .wasm_exceptions(options.exceptions)
        .wasm_threads(options.threads)
        .wasm_tail_call(options.tail_call)
        .wasm_memory64(options.memory64)
        .wasm_wide_arithmetic(options.wide_arithmetic);
    config.cranelift_opt_level(match options.optimization {
        Optimization::None => OptLevel::None,
        Optimization::Speed => OptLevel::Speed,
        Optimization::SpeedAndSize => OptLevel::SpeedAndSize,
    });
    let stack = usize::try_from(options.stack_size)?;
    config.max_wasm_stack(stack).async_stack_size(stack + HOST_STACK);
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
    Ok(config)
}

/// A component's memories, tables and core modules: the largest that toolchains make, componentize-py's, have one memory
/// and some forty modules. All of it is address space until it is used.
const MEMORIES: u32 = 3;
const TABLES: u32 = 6;
const MODULES: u32 = 64;
const TABLE_ELEMENTS: usize = 100_000;
const CONTEXT: usize = 16 << 20;

/// Of each memory and table so much of what was written is reset by copying. It stays in memory and is not faulted in
/// again, which is most of what a fresh instance costs.
const KEPT_OF_MEMORY: usize = 512 << 10;
const KEPT_OF_TABLE: usize = 64 << 10;

/// Stacks up to this size stay as they are for the next instance; of deeper ones so much does.
const KEPT_STACK: u64 = 512 << 10;
const KEPT_OF_STACK: usize = 64 << 10;

/// Stacks for each instance: one for its calls, one for what it does while it is instantiated or returns.
const STACKS: u32 = 2;

fn pool(instances: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(instances)
        .total_core_instances(instances * MODULES)
        .total_memories(instances * MEMORIES)
        .total_tables(instances * TABLES)
        .total_stacks(instances * STACKS)
        .total_gc_heaps(instances)
        .max_component_instance_size(CONTEXT)
        .max_core_instance_size(CONTEXT)
        .table_elements(TABLE_ELEMENTS)
        .max_tables_per_module(TABLES)
        .max_memories_per_module(MEMORIES)
        .linear_memory_keep_resident(KEPT_OF_MEMORY)
        .table_keep_resident(KEPT_OF_TABLE)
        // Only what an instance has written is reset. Linux 6.7; without it, the first bytes of each memory are.
        .pagemap_scan(Enabled::Auto);
    pool
}
