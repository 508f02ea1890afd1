//! What a program sees of the world: streams, arguments, environment, one preopened root, randomness of its own.

use std::os::fd::AsFd;

use rand::SeedableRng as _;
use rand::rngs::{SmallRng, StdRng, SysRng};
use wasmtime_wasi::filesystem::FsPerms;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{ResourceTable, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_config::{WasiConfig, WasiConfigVariables};
use wasmtime_wasi_keyvalue::{WasiKeyValue, WasiKeyValueCtx, WasiKeyValueCtxBuilder};

use super::Settings;
use super::limits::Limits;
use super::output::Output;

/// The state of a core module.
pub struct Module {
    pub wasi: WasiP1Ctx,
    pub limits: Limits,
}

/// The state of a component.
pub struct Component {
    wasi: WasiCtx,
    table: ResourceTable,
    config: WasiConfigVariables,
    keyvalue: WasiKeyValueCtx,
    pub limits: Limits,
}

impl WasiView for Component {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl Component {
    /// What wasi:config reads.
    pub fn config(&mut self) -> WasiConfig<'_> {
        WasiConfig::new(&self.config)
    }

    /// The store of wasi:keyvalue, in memory: each bucket that is opened begins empty.
    pub fn keyvalue(&mut self) -> WasiKeyValue<'_> {
        WasiKeyValue::new(&self.keyvalue, &mut self.table)
    }
}

/// The state of a core module. WASI 0.1 has no working directory: `PWD` says it, unless the container sets `PWD`.
///
/// # Errors
///
/// When the root cannot be opened, a stream duplicated or the kernel gives no randomness.
pub fn module(settings: &Settings<'_>, limits: Limits) -> wasmtime::Result<Module> {
    let mut builder = builder(settings)?;
    if !settings.environment.iter().any(|(key, _)| key == "PWD") {
        builder.env("PWD", settings.working_directory);
    }
    Ok(Module {
        wasi: builder.build_p1(),
        limits,
    })
}

/// The state of a component.
///
/// # Errors
///
/// As [`module`].
pub fn component(settings: &Settings<'_>, limits: Limits) -> wasmtime::Result<Component> {
    let mut builder = builder(settings)?;
    builder.initial_cwd(settings.working_directory);
    Ok(Component {
        wasi: builder.build(),
        table: ResourceTable::new(),
        config: settings.options.config.clone().into_iter().collect(),
        keyvalue: WasiKeyValueCtxBuilder::new().build(),
        limits,
    })
}

fn builder(settings: &Settings<'_>) -> wasmtime::Result<WasiCtxBuilder> {
    let mut builder = WasiCtxBuilder::new();
    // The seeds come from the kernel here, in the child: a generator that is older than the fork is every guest's.
    builder
        .secure_random(StdRng::try_from_rng(&mut SysRng)?)
        .insecure_random(SmallRng::try_from_rng(&mut SysRng)?)
        .insecure_random_seed(seed()?);
    builder
        .inherit_stdin()
        .stdout(Output::new(std::io::stdout().as_fd())?)
        .stderr(Output::new(std::io::stderr().as_fd())?);
    builder
        .args(settings.arguments)
        .envs(settings.environment)
        // The guest is the only work of its thread; a hand-over to another would only cost.
        .allow_blocking_current_thread(true)
        .preopened_dir("/", "/", FsPerms::ReadWrite)?;
    Ok(builder)
}

fn seed() -> std::io::Result<u128> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u128::from_ne_bytes(bytes))
}
