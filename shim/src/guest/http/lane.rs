//! One thread's connections: HTTP/1.1 and HTTP/2, whichever a client begins with.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use rustix::net::sockopt;
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::yield_now;
use tokio::time::sleep;

use super::answer::Answers;
use super::gathered::Gathered;
use super::sent::Sent;
use super::{busy_poll, opening, spare};
use crate::sys::allocator;

/// How long a client may take to begin, to send the head of a request, or keep a connection without one.
const HEAD: Duration = Duration::from_secs(60);

/// How long a client may leave what was sent to it unread, before its connection is closed; and a piece of an answer that
/// HTTP/2 has no room for, before its place is given to others.
pub const UNREAD: Duration = Duration::from_secs(60);

/// How long a connection that came last has until it is read for the first time.
const FIRST: Duration = Duration::from_millis(50);

/// In so many turns of the event loop what has come is heard of, and read.
const TURNS: usize = 3;

/// As many requests one HTTP/2 connection has open.
const STREAMS: u32 = 128;

/// So much of a request's body may come before its guest reads that, over HTTP/2, and of all requests of a connection.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;

/// So much of an answer is kept for an HTTP/2 client that does not take it.
const SEND_BUFFER: usize = 64 << 10;

/// A connection on its way to the thread that serves it.
pub struct Dealt {
    pub stream: std::net::TcpStream,
    pub peer: SocketAddr,
    /// One of those that connections have, until this one is closed.
    pub place: Option<OwnedSemaphorePermit>,
}

/// What serves the connections of one thread.
pub struct Lane {
    pub answers: Arc<Answers>,
    /// The most bytes of a request's head.
    pub head: usize,
    /// Whether its thread looks for requests before it sleeps.
    pub polls: bool,
}

impl Lane {
    /// Serves what is dealt until nobody deals any more, then lets each connection end its request.
    pub async fn serve(self, mut dealt: UnboundedReceiver<Dealt>) {
        allocator::keep_freed_blocks();
        if self.polls {
            busy_poll::allow();
        }
        let instances = self.answers.handler.state();
        if instances.are_fresh() {
            tokio::spawn(spare::keep(instances.clone()));
        }
        let answers = self.answers.clone();
        tokio::spawn(async move { answers.readers.watch().await });
        let versions: &'static Versions = Box::leak(Box::new(Versions {
            http1: self.http().http1_only(),
            http2: self.http().http2_only(),
        }));
        let connections = GracefulShutdown::new();
        let (closing, closes) = watch::channel(());
        while let Some(Dealt { stream, peer, place }) = dealt.recv().await {
            let open = Open(self.answers.open.clone());
            let Ok(mut stream) = prepared(stream) else { continue };
            let (answers, watcher, mut closes) = (self.answers.clone(), connections.watcher(), closes.clone());
            tokio::spawn(async move {
                let opening = tokio::select! {
                    biased;
                    opening = opening::read(&mut stream, HEAD) => opening,
                    _ = closes.changed() => return,
                };
                // A client that does not begin, breaks the protocol or goes away ends its own connection.
                let Ok(opening) = opening else { return };
                let sent = Arc::<Sent>::default();
                let stream = Gathered::new(TokioIo::new(stream), opening.read, sent.clone());
                let service = service_fn(move |request| {
                    let (answers, sent) = (answers.clone(), sent.clone());
                    async move { Ok::<_, Infallible>(answers.answer(peer, sent, request).await) }
                });
                let http = versions.of(opening.is_http2);
                let _ = watcher.watch(http.serve_connection(stream, service)).await;
                drop((open, place));
            });
        }
        // hyper closes what it has not read from yet, with the request that is in it.
        sleep(FIRST).await;
        // A thread that had no cpu for as long hears of those requests only now: they are read first.
        for _ in 0..TURNS {
            yield_now().await;
        }
        drop(closing);
        connections.shutdown().await;
    }

    fn http(&self) -> Builder<TokioExecutor> {
        let mut http = Builder::new(TokioExecutor::new());
        http.http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(self.head);
        http.http2()
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(self.head).unwrap_or(u32::MAX))
            .max_concurrent_streams(STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(HEAD);
        http
    }
}

/// How connections of each version are served.
struct Versions {
    http1: Builder<TokioExecutor>,
    http2: Builder<TokioExecutor>,
}

impl Versions {
    fn of(&self, is_http2: bool) -> &Builder<TokioExecutor> {
        match is_http2 {
            true => &self.http2,
            false => &self.http1,
        }
    }
}

/// Counts a connection for as long as it is open; whoever deals it has counted it already.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn prepared(stream: std::net::TcpStream) -> std::io::Result<TcpStream> {
    // A guest writes small pieces: each goes out when it is written.
    stream.set_nodelay(true)?;
    let unread = u32::try_from(UNREAD.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(&stream, unread)?;
    TcpStream::from_std(stream)
}
