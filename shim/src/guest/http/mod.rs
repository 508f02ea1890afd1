//! Components that serve HTTP: `wasi:http/incoming-handler` 0.2 and `wasi:http/handler` 0.3.
//!
//! ```text
//! listener ── threads: deal connections ──> lane, one a thread: hyper ── answer: admission, limits, deadline
//!                                             └── instances: wasmtime's ProxyHandler, stores from the pool
//! client, unread: whether anybody waits for an answer     ticker: the epoch, so that a guest that spins is interrupted
//! opening: a connection's first bytes                     gathered, sent: what it writes
//! places, expiration: who may hold an instance, how long  spare, busy_poll: what a thread does before it sleeps
//! ```
//!
//! A connection stays on the thread it was dealt to, and so does every request on it and the instance that answers: no
//! request is handed from one thread to another.

use std::os::fd::OwnedFd;

use kubewasi_options::Http;
use wasmtime::Engine;
use wasmtime::component::Component;
use wasmtime_wasi_http::handler::ProxyPre;

use super::Settings;
use super::context::Component as State;
use super::limits::Budget;
use super::warm::Serving;
use crate::compile::World;

use figures::Figures;

mod access_log;
mod admission;
mod answer;
mod body;
pub mod busy_poll;
mod client;
mod expiration;
pub mod exposition;
pub mod figures;
mod gathered;
mod idle;
mod instances;
mod instantiations;
mod lane;
mod listener;
mod opening;
mod places;
mod policy;
mod sent;
mod spare;
mod threads;
mod ticker;
mod unread;

pub use policy::instances;

/// A component, linked, with the socket it will listen on.
pub struct Service {
    engine: Engine,
    component: ProxyPre<State>,
    world: World,
    socket: OwnedFd,
    port: u16,
    /// Where its metrics will be served, when that is asked for.
    metrics: Option<(OwnedFd, u16)>,
    figures: Figures,
    options: Http,
    /// So many threads serve.
    threads: usize,
}

/// Links a component and binds its socket, which does not listen yet.
///
/// # Errors
///
/// Names the import that is missing, or the port and why it cannot be had.
pub fn link(
    serving: &Serving,
    component: &Component,
    world: World,
    settings: &Settings<'_>,
) -> wasmtime::Result<Service> {
    let linked = serving.components.instantiate_pre(component)?;
    let component = match world {
        World::Http03 => ProxyPre::P3(wasmtime_wasi_http::p3::bindings::ServicePre::new(linked)?),
        _ => ProxyPre::P2(wasmtime_wasi_http::p2::bindings::ProxyPre::new(linked)?),
    };
    let options = settings.options.http.clone();
    let port = listener::port(options.port, settings.environment)?;
    let socket = listener::bind(port, listener::Use::Requests)?;
    if options.metrics_port == Some(port) {
        return Err(listener::ListenError::Same(port).into());
    }
    let metrics = options
        .metrics_port
        .map(|port| Ok::<_, listener::ListenError>((listener::bind(port, listener::Use::Metrics)?, port)));
    Ok(Service {
        engine: serving.engine.clone(),
        component,
        world,
        socket,
        port,
        metrics: metrics.transpose()?,
        figures: serving.figures,
        options,
        threads: policy::threads(settings.cpus, std::thread::available_parallelism()),
    })
}

impl Service {
    /// Serves until SIGTERM and until what was begun by then is answered.
    ///
    /// # Errors
    ///
    /// When the component cannot be instantiated, the socket cannot listen or a thread cannot be started.
    pub async fn run(self, settings: &Settings<'_>, budget: Budget) -> wasmtime::Result<i32> {
        threads::serve(self, settings, budget).await?;
        Ok(0)
    }
}
