//! The threads of a service: each has an event loop of its own; connections are dealt among them and stay.

use std::future::pending;
use std::io;
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use wasmtime_wasi_http::handler::ProxyHandler;

use super::admission::Admission;
use super::answer::{Answers, Limits};
use super::instances::Instances;
use super::instantiations::Instantiations;
use super::lane::{Dealt, Lane, UNREAD};
use super::places::Places;
use super::ticker::Ticker;
use super::unread::Readers;
use super::{Service, Settings, access_log, exposition, listener, policy};
use crate::guest::context::{Surroundings, Thread};
use crate::guest::limits::Budget;
use crate::guest::{event_loop, trap};
use crate::sys::signals;

/// Until the next try when the process or the system has no fd for a connection.
const PAUSE: Duration = Duration::from_millis(50);

/// A thread, as who deals connections sees it.
struct Seat {
    deal: mpsc::UnboundedSender<Dealt>,
    open: Arc<AtomicUsize>,
}

/// Makes an instance, then listens, then serves until SIGTERM and until what was begun is answered or the time for that
/// is up.
///
/// # Errors
///
/// When the component cannot be instantiated, the socket cannot listen or a thread cannot be started.
pub async fn serve(service: Service, settings: &Settings<'_>, budget: Budget) -> wasmtime::Result<()> {
    let Service {
        engine,
        component,
        world,
        socket,
        port,
        metrics,
        figures,
        options,
        threads,
    } = service;
    let polls = options.busy_poll && policy::has_whole_cpus(settings.cpus);
    let mut ended = signals::hand_over_termination(|| signal(SignalKind::terminate()))?;
    let size = |number| usize::try_from(number).unwrap_or(usize::MAX);
    let made = Arc::new(Instantiations::new());
    let instances = Instances {
        component: Arc::new(component),
        surroundings: Arc::new(Surroundings::new(settings, Thread::Shared)?),
        budget,
        places: Places::new(
            policy::instances(world, &options).unwrap_or_default() as usize,
            size(options.max_concurrent_requests),
        ),
        ticker: Arc::new(Ticker::start(engine.clone())?),
        made: made.clone(),
        engine,
        reuse: policy::reuse(options.requests_per_instance, world),
        timeout: options.request_timeout,
        figures,
        spare: Arc::default(),
        idlers: Arc::default(),
    };
    tokio::select! {
        made = instances.try_one() => made?,
        // Nobody has been let in.
        _ = ended.recv() => return Ok(()),
    }
    let admission = Arc::new(Admission::new(
        size(options.max_concurrent_requests),
        size(options.max_queued_requests),
    ));
    let limits = Limits {
        timeout: options.request_timeout,
        body: size(options.max_body_size),
        access_log: options.access_log,
    };
    // Closed when the last thread has ended.
    let (running, mut ended_all) = mpsc::channel::<()>(1);
    let mut seats = Vec::new();
    for number in 0..threads {
        let open = Arc::new(AtomicUsize::new(0));
        let lane = Lane {
            answers: Arc::new(Answers {
                handler: ProxyHandler::new(instances.of_thread()),
                admission: admission.clone(),
                limits,
                figures,
                readers: Readers::new(UNREAD),
                open: open.clone(),
            }),
            head: size(options.max_header_size),
            polls,
        };
        let (deal, dealt) = mpsc::unbounded_channel();
        let running = running.clone();
        let serving = async move {
            lane.serve(dealt).await;
            drop(running);
        };
        match number {
            // This thread is one of them.
            0 => drop(tokio::spawn(serving)),
            _ => start(number, serving)?,
        }
        seats.push(Seat { deal, open });
    }
    drop(running);
    if let Some((socket, port)) = metrics {
        let listener = listener::listen(socket, port, listener::Use::Metrics)?;
        tokio::spawn(exposition::serve_port(
            tokio::net::TcpListener::from_std(listener)?,
            figures,
        ));
    }
    let listener = listener::listen(socket, port, listener::Use::Requests)?;
    deal(listener, &seats, size(options.max_connections), &mut ended).await?;
    drop(seats);
    if timeout(options.drain_timeout, ended_all.recv()).await.is_err() {
        trap::tell(&format!(
            "requests were cut off: they were not answered within {} s of SIGTERM, the drain_timeout",
            options.drain_timeout.as_secs()
        ));
    }
    if options.access_log {
        access_log::summary(&made.to_string());
    }
    Ok(())
}

/// A thread with an event loop of its own, which goes on after `serving` until the process ends: connections to other hosts
/// that were opened here are used by guests of all threads, whose requests may still run.
fn start(number: usize, serving: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
    let runtime = event_loop()?;
    let name = format!("http-{number}");
    thread::Builder::new()
        .name(name)
        .spawn(move || {
            runtime.block_on(async {
                serving.await;
                pending::<()>().await;
            });
        })
        .map(drop)
}

/// Deals connections until SIGTERM, of which `most` are open at the same time, then those that had come by then.
async fn deal(listener: TcpListener, seats: &[Seat], most: usize, ended: &mut Signal) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(most));
    let told = Once::new();
    loop {
        if places.available_permits() == 0 {
            told.call_once(|| {
                trap::tell(&format!(
                    "{most} connections are open, the max_connections: others wait until one is closed; said once"
                ));
            });
        }
        let accepted = async {
            // Never closed.
            let place = places.clone().acquire_owned().await.ok();
            listener.accept().await.map(|(stream, peer)| (stream, peer, place))
        };
        tokio::select! {
            _ = ended.recv() => break,
            accepted = accepted => match accepted {
                Ok((stream, peer, place)) => give(seats, Dealt { stream: stream.into_std()?, peer, place }),
                // No fd is free: connections wait until one is. Or the client is gone already.
                Err(_) => sleep(PAUSE).await,
            },
        }
    }
    deal_rest(&listener.into_std()?, seats)
}

/// Deals those that wait by now, of whom the event loop may not have heard yet: a backlog at most, beside those that have
/// places, since nobody else would answer them.
fn deal_rest(listener: &TcpListener, seats: &[Seat]) -> io::Result<()> {
    while let Ok((stream, peer)) = listener.accept() {
        stream.set_nonblocking(true)?;
        give(
            seats,
            Dealt {
                stream,
                peer,
                place: None,
            },
        );
    }
    Ok(())
}

/// To the thread that has the fewest: a client that keeps its connection stays where it is, so chance would not do.
fn give(seats: &[Seat], dealt: Dealt) {
    if let Some(seat) = seats.iter().min_by_key(|seat| seat.open.load(Ordering::Relaxed)) {
        seat.open.fetch_add(1, Ordering::Relaxed);
        // A thread lives as long as its seat.
        let _ = seat.deal.send(dealt);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn all_that_have_come_are_dealt_however_many_and_whatever_the_event_loop_knows_of() {
        const CLIENTS: usize = 300;
        let socket = listener::bind(0, listener::Use::Requests).unwrap();
        let listener = listener::listen(socket, 0, listener::Use::Requests).unwrap();
        let port = listener.local_addr().unwrap().port();
        let connect = || TcpStream::connect(("127.0.0.1", port)).unwrap();
        let _clients: Vec<_> = (0..CLIENTS).map(|_| connect()).collect();
        let (deal, mut dealt) = mpsc::unbounded_channel();
        let seats = [Seat {
            deal,
            open: Arc::default(),
        }];
        deal_rest(&listener, &seats).unwrap();
        drop(seats);
        let mut count = 0;
        while dealt.blocking_recv().is_some() {
            count += 1;
        }
        assert_eq!(count, CLIENTS);
    }
}
