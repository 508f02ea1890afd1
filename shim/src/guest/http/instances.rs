//! Instances of a service: made from the pool when a request finds none, and ended by policy.

use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use wasmtime::component::GuestTaskId;
use wasmtime::{Engine, Store, StoreContextMut};
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::handler::{HandlerState, Instance, Proxy, ProxyPre, ShouldAccept, WorkerState};

use super::answer;
use super::client::{Client, Clients, Expiration};
use super::figures::{Figures, Living};
use super::instantiations::Instantiations;
use super::policy::Reuse;
use super::ticker::{Ticker, Ticking};
use crate::guest::context::{Component as State, Surroundings};
use crate::guest::limits::Budget;

/// How long an instance that may answer more is kept without being asked.
const IDLE: Duration = Duration::from_secs(10);

/// What makes instances, all of them or those of one thread.
#[derive(Clone)]
pub struct Instances {
    pub engine: Engine,
    pub component: Arc<ProxyPre<State>>,
    pub surroundings: Arc<Surroundings>,
    pub budget: Budget,
    /// The places of the pool.
    pub places: Arc<Semaphore>,
    pub ticker: Arc<Ticker>,
    pub made: Arc<Instantiations>,
    pub reuse: Reuse,
    pub figures: Figures,
    /// The longest that making one may take, and that one may go on after its answers.
    pub timeout: Duration,
}

impl Instances {
    /// Makes one instance and drops it: a component that cannot be instantiated is known before anybody asks.
    ///
    /// # Errors
    ///
    /// A trap, what it lacks, or that it took too long.
    pub async fn try_one(&self) -> wasmtime::Result<()> {
        self.make().await.map(drop)
    }

    async fn make(&self) -> wasmtime::Result<(Store<State>, Proxy, Place)> {
        let mut place = Place {
            _place: self.places.clone().acquire_owned().await?,
            _ticking: self.ticker.tick(),
            living: None,
        };
        let begun = Instant::now();
        let state = self.surroundings.service(self.budget.limits());
        let mut store = Store::new(&self.engine, state);
        store.limiter(|state| &mut state.limits);
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        let made = timeout(self.timeout, self.component.instantiate_async(&mut store)).await;
        let proxy = made.map_err(|_| {
            wasmtime::format_err!(
                "its instance is not ready after {} s, the request_timeout",
                self.timeout.as_secs()
            )
        })??;
        self.made.add(begun.elapsed());
        store.data_mut().limits.instantiated();
        place.living = Some(self.figures.instance());
        Ok((store, proxy, place))
    }
}

/// A place in the pool, and the epoch that ticks for who has it.
struct Place {
    _place: OwnedSemaphorePermit,
    _ticking: Ticking,
    /// Once there is an instance.
    living: Option<Living>,
}

impl HandlerState for Instances {
    type StoreData = State;
    type WorkerExpiration = Expiration;
    type WorkerState = Running;

    async fn instantiate(&self) -> wasmtime::Result<Instance<State, Expiration, Running>> {
        let (store, proxy, place) = self.make().await?;
        let clients = Arc::new(Clients::default());
        Ok(Instance {
            store,
            proxy,
            view: State::http,
            expiration: Expiration::new(clients.clone(), IDLE, self.timeout),
            state: Running {
                clients,
                reuse: self.reuse,
                _place: place,
            },
        })
    }
}

/// An instance that runs.
pub struct Running {
    clients: Arc<Clients>,
    reuse: Reuse,
    _place: Place,
}

impl WorkerState for Running {
    type StoreData = State;
    type RequestData = Arc<Client>;

    fn should_accept_request(&self, concurrent: usize, total: usize) -> ShouldAccept {
        if total >= self.reuse.requests || self.clients.any_left() {
            ShouldAccept::Never
        } else if concurrent >= self.reuse.concurrent {
            ShouldAccept::No
        } else {
            ShouldAccept::Yes
        }
    }

    /// The client's leaving, its deadline included, is what ends a request; that is [`Expiration`]'s to see.
    fn on_request_start(
        &self,
        _store: StoreContextMut<'_, State>,
        client: Arc<Client>,
        _task: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + 'static + Send + Sync>> {
        self.clients.add(client);
        Box::pin(pending())
    }

    fn drop(&self, store: Store<State>, result: Result<(), wasmtime::Error>) {
        drop(store);
        // When a client has left, its instance was ended for that.
        if let Err(error) = result
            && !self.clients.any_left()
        {
            answer::tell("an instance ended", &error);
        }
    }
}
