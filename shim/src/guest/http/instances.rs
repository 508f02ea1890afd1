//! Instances of a service: made from the pool when a request finds none, and ended by policy.

use std::future::pending;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::yield_now;
use tokio::time::timeout;
use wasmtime::component::GuestTaskId;
use wasmtime::{Engine, Store, StoreContextMut, UpdateDeadline};
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::handler::{HandlerState, Instance, Proxy, ProxyPre, ShouldAccept, WorkerState};

use super::answer;
use super::client::{Client, Clients, Remains};
use super::expiration::Expiration;
use super::figures::{Figures, Living};
use super::idle::Idlers;
use super::instantiations::Instantiations;
use super::places::Places;
use super::policy::Reuse;
use super::spare::Spare;
use super::ticker::Ticker;
use crate::guest::context::{Component as State, Surroundings};
use crate::guest::limits::Budget;
use crate::guest::trap;

/// How long an instance that may answer more is kept without being asked.
pub const IDLE: Duration = Duration::from_secs(10);

/// An instance that nothing was asked yet.
pub type Made = (Store<State>, Proxy, Place);

/// What makes instances, all of them or those of one thread.
#[derive(Clone)]
pub struct Instances {
    pub engine: Engine,
    pub component: Arc<ProxyPre<State>>,
    pub surroundings: Arc<Surroundings>,
    pub budget: Budget,
    pub places: Places,
    pub ticker: Arc<Ticker>,
    pub made: Arc<Instantiations>,
    pub reuse: Reuse,
    pub figures: Figures,
    /// One thread's own.
    pub spare: Arc<Spare>,
    /// One thread's own.
    pub idlers: Arc<Idlers>,
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

    /// Those of another thread.
    pub fn of_thread(&self) -> Instances {
        Instances {
            spare: Arc::default(),
            idlers: Arc::default(),
            ..self.clone()
        }
    }

    /// Whether each instance is used once, so that the next request will need another one.
    pub fn are_fresh(&self) -> bool {
        self.reuse.requests == 1
    }

    /// Whether an instance that nobody has asked for yet takes nothing that others need.
    pub fn have_room_for_spares(&self) -> bool {
        self.places.beside_requests().is_some_and(|free| free > 0) && self.budget.is_ample()
    }

    /// Makes an instance.
    ///
    /// # Errors
    ///
    /// As [`Instances::try_one`].
    pub async fn make(&self) -> wasmtime::Result<Made> {
        let mut place = Place {
            _place: self.places.take().await?,
            living: None,
        };
        let _ticking = self.ticker.tick();
        let begun = Instant::now();
        let state = self.surroundings.service(self.budget.limits());
        let mut store = Store::new(&self.engine, state);
        store.limiter(|state| &mut state.limits);
        store.set_epoch_deadline(1);
        // To everybody, the event loop included.
        store.epoch_deadline_callback(|_| Ok(UpdateDeadline::YieldCustom(1, Box::pin(yield_now()))));
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

/// A place in the pool.
pub struct Place {
    _place: OwnedSemaphorePermit,
    /// Once there is an instance.
    living: Option<Living>,
}

impl HandlerState for Instances {
    type StoreData = State;
    type WorkerExpiration = Expiration;
    type WorkerState = Running;

    async fn instantiate(&self) -> wasmtime::Result<Instance<State, Expiration, Running>> {
        let ahead = match self.are_fresh() {
            true => self.spare.take(),
            false => None,
        };
        let (store, proxy, place) = match ahead {
            Some((mut store, proxy, place)) => {
                store.set_epoch_deadline(1);
                (store, proxy, place)
            }
            None => self.make().await?,
        };
        let clients = Arc::new(Clients::default());
        Ok(Instance {
            store,
            proxy,
            view: State::http,
            expiration: Expiration::new(
                clients.clone(),
                self.places.clone(),
                self.idlers.clone(),
                IDLE,
                self.timeout,
            ),
            state: Running {
                clients,
                ticker: self.ticker.clone(),
                reuse: self.reuse,
                after: self.timeout,
                spare: self.spare.clone(),
                // Together with what else is kept of it.
                leaves: self.are_fresh() && self.budget.is_ample(),
                place: Mutex::new(Some(place)),
            },
        })
    }
}

/// An instance that runs.
pub struct Running {
    clients: Arc<Clients>,
    ticker: Arc<Ticker>,
    reuse: Reuse,
    /// How long it may go on after its answers.
    after: Duration,
    spare: Arc<Spare>,
    /// It is dropped when there is time for that.
    leaves: bool,
    place: Mutex<Option<Place>>,
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
        self.clients.run(&self.ticker);
        self.clients.add(client);
        Box::pin(pending())
    }

    fn drop(&self, store: Store<State>, result: Result<(), wasmtime::Error>) {
        self.clients.rest();
        let place = self.place.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Err(error) = result else {
            match place {
                Some(place) if self.leaves => self.spare.leave(store, place),
                _ => drop((store, place)),
            }
            return;
        };
        if self.clients.were_outlasted() {
            trap::tell(&format!(
                "an instance ended: it still ran {} s after its answer, the request_timeout",
                self.after.as_secs()
            ));
        // When a client has left, its instance was ended for that.
        } else if !self.clients.any_left() {
            answer::tell("an instance ended", &error);
        }
        let remains: Remains = Arc::new(Mutex::new((store, place)));
        self.clients.fail(&remains);
    }
}
