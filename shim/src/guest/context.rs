//! What a program sees of the world: streams, arguments, environment, one preopened root, randomness of its own.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::{SmallRng, StdRng, SysRng};
use rand::{Rng as _, SeedableRng as _};
use wasmtime_wasi::filesystem::{FsPerms, WasiFilesystemCtx};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{ResourceTable, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_config::{WasiConfig, WasiConfigVariables};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};
use wasmtime_wasi_keyvalue::{WasiKeyValue, WasiKeyValueCtx, WasiKeyValueCtxBuilder};

use super::Settings;
use super::limits::Limits;
use super::outbound::Outbound;
use super::output::Output;

/// The state of a core module.
pub struct Module {
    pub wasi: WasiP1Ctx,
    pub limits: Limits,
}

/// The state of a component.
pub struct Component {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outbound: Outbound,
    table: ResourceTable,
    config: Arc<WasiConfigVariables>,
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

impl WasiHttpView for Component {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.outbound,
            table: &mut self.table,
            ctx: &mut self.http,
        }
    }
}

/// What the instances of one program share. A service makes one for each request, so what takes system calls is done
/// once: the root is opened and the streams are duplicated here.
pub struct Surroundings {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    working_directory: String,
    stdout: Output,
    stderr: Output,
    files: WasiFilesystemCtx,
    config: Arc<WasiConfigVariables>,
    /// Its connections are reused by all of them.
    outbound: Outbound,
    /// Seeded by the kernel here, in the child: a generator that is older than the fork is every guest's.
    seeds: Mutex<StdRng>,
}

/// Whether a program that waits for a file holds up others on its thread.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Thread {
    /// It is the thread's only work; a hand-over to another thread would only cost.
    Alone,
    /// It runs beside others.
    Shared,
}

impl Surroundings {
    /// # Errors
    ///
    /// When the root cannot be opened, a stream duplicated or the kernel gives no randomness.
    pub fn new(settings: &Settings<'_>, thread: Thread) -> wasmtime::Result<Surroundings> {
        let mut opened = WasiCtxBuilder::new()
            .allow_blocking_current_thread(thread == Thread::Alone)
            .preopened_dir("/", "/", FsPerms::ReadWrite)?
            .build();
        Ok(Surroundings {
            arguments: settings.arguments.to_vec(),
            environment: settings.environment.to_vec(),
            working_directory: settings.working_directory.to_owned(),
            stdout: Output::new(std::io::stdout().as_fd())?,
            stderr: Output::new(std::io::stderr().as_fd())?,
            files: opened.filesystem().clone(),
            config: Arc::new(settings.options.config.clone().into_iter().collect()),
            outbound: Outbound::new(settings.environment),
            seeds: Mutex::new(StdRng::try_from_rng(&mut SysRng)?),
        })
    }

    /// The state of a core module, which reads this process's input. WASI 0.1 has no working directory: `PWD` says it,
    /// unless the container sets `PWD`.
    pub fn module(&self, limits: Limits) -> Module {
        let mut builder = self.builder();
        if !self.environment.iter().any(|(key, _)| key == "PWD") {
            builder.env("PWD", &self.working_directory);
        }
        let mut wasi = builder.inherit_stdin().build_p1();
        *wasi.ctx().ctx.filesystem() = self.files.clone();
        Module { wasi, limits }
    }

    /// The state of a component that reads this process's input.
    pub fn command(&self, limits: Limits) -> Component {
        self.component(self.builder().inherit_stdin(), limits)
    }

    /// The state of a component that serves: it has no input, for that would be all its instances' together.
    pub fn service(&self, limits: Limits) -> Component {
        self.component(&mut self.builder(), limits)
    }

    fn component(&self, builder: &mut WasiCtxBuilder, limits: Limits) -> Component {
        let mut wasi = builder.initial_cwd(&self.working_directory).build();
        *wasi.filesystem() = self.files.clone();
        Component {
            wasi,
            http: WasiHttpCtx::new(),
            outbound: self.outbound.clone(),
            table: ResourceTable::new(),
            config: self.config.clone(),
            keyvalue: WasiKeyValueCtxBuilder::new().build(),
            limits,
        }
    }

    fn builder(&self) -> WasiCtxBuilder {
        let mut builder = WasiCtxBuilder::new();
        let mut seeds = self.seeds.lock().unwrap_or_else(PoisonError::into_inner);
        builder
            .secure_random(StdRng::from_rng(&mut *seeds))
            .insecure_random(SmallRng::from_rng(&mut *seeds))
            .insecure_random_seed(u128::from(seeds.next_u64()) << 64 | u128::from(seeds.next_u64()));
        drop(seeds);
        builder
            .stdout(self.stdout.clone())
            .stderr(self.stderr.clone())
            .args(&self.arguments)
            .envs(&self.environment)
            // The pod's network, by its namespace.
            .inherit_network()
            .allow_tcp(true)
            .allow_udp(true)
            .allow_ip_name_lookup(true);
        builder
    }
}
