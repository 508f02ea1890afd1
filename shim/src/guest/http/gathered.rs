//! A connection that gathers what is to be written: head, body and end of a short answer leave in one packet.
//!
//! A guest produces those one after the other, each time the connection has taken the last. hyper writes whenever the
//! guest has nothing more at the moment; such a write waits until nothing else is ready to run on its thread, when the
//! guest has gone as far as it gets by itself. So a short answer takes one system call, and its client is woken once.

use std::io::{IoSlice, Result};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker, ready};

use futures_util::task::AtomicWaker;
use hyper::body::Bytes;
use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::task::yield_now;

use super::sent::Sent;

/// So much is worth a write of its own.
const LARGE: usize = 4 << 10;

/// The end of a body in chunks (RFC 9112, 7.1): there is nothing to wait for behind it.
const END: &[u8] = b"0\r\n\r\n";

/// A stream whose writes wait for their turn.
pub struct Gathered<T> {
    stream: T,
    turn: Arc<Turn>,
    /// A write waits, or has waited: what came meanwhile is with it.
    waits: bool,
    sent: Arc<Sent>,
    /// What was read of it before; it comes first.
    read: Bytes,
}

impl<T> Gathered<T> {
    /// Writes to `stream`, of which this was `read` already, and says in `sent` when all is written.
    pub fn new(stream: T, read: Bytes, sent: Arc<Sent>) -> Gathered<T> {
        Gathered {
            stream,
            turn: Arc::default(),
            waits: false,
            sent,
            read,
        }
    }
}

/// The turn of a thread's event loop: it is over when everything that was ready to run has run.
#[derive(Default)]
struct Turn {
    over: AtomicBool,
    connection: AtomicWaker,
}

impl Turn {
    /// From now on it is waited for.
    fn begin(self: &Arc<Turn>) {
        self.over.store(false, Ordering::Relaxed);
        let waker = Waker::from(self.clone());
        // tokio wakes who yields when it has nothing else to run, or has run many others, and has looked for events.
        let _ = pin!(yield_now()).poll(&mut Context::from_waker(&waker));
    }
}

impl Wake for Turn {
    fn wake(self: Arc<Self>) {
        self.over.store(true, Ordering::Relaxed);
        self.connection.wake();
    }
}

impl<T: Write + Unpin> Gathered<T> {
    /// Waits for its turn with so many bytes, which end in `last`.
    fn poll_turn(&mut self, cx: &Context<'_>, length: usize, last: &[u8]) -> Poll<()> {
        if length >= LARGE || last.ends_with(END) || self.sent.is_awaited() {
            return Poll::Ready(());
        }
        self.turn.connection.register(cx.waker());
        if !self.waits {
            self.waits = true;
            self.turn.begin();
        }
        match self.turn.over.load(Ordering::Relaxed) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    fn poll_once(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        length: usize,
        last: &[u8],
        write: impl FnOnce(Pin<&mut T>, &mut Context<'_>) -> Poll<Result<usize>>,
    ) -> Poll<Result<usize>> {
        ready!(self.poll_turn(cx, length, last));
        let written = ready!(write(Pin::new(&mut self.stream), cx))?;
        // What a client has no room for yet has waited already.
        self.waits = written < length;
        self.turn.over.store(true, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }
}
impl<T: Write + Unpin> Write for Gathered<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        self.poll_once(cx, bytes.len(), bytes, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<Result<usize>> {
        let last = pieces.iter().rfind(|piece| !piece.is_empty());
        let last = last.map_or(&[][..], |piece| &**piece);
        let length = pieces.iter().map(|piece| piece.len()).sum();
        self.poll_once(cx, length, last, |stream, cx| stream.poll_write_vectored(cx, pieces))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        // hyper flushes once it has nothing left to write.
        self.sent.all_written();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<T: Read + Unpin> Read for Gathered<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buffer: ReadBufCursor<'_>) -> Poll<Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let length = self.read.len().min(buffer.remaining());
        buffer.put_slice(&self.read.split_to(length));
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    /// What is written, a line for each write, of so many bytes at most.
    struct Written(Vec<Vec<u8>>, usize);

    impl Write for Written {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
            let taken = bytes.len().min(self.1);
            self.0.push(bytes[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn gathered() -> Gathered<Written> {
        Gathered::new(Written(Vec::new(), usize::MAX), Bytes::new(), Arc::default())
    }

    /// Writes `pieces`, of which each poll brings one more and is followed by the next at once; how often it was polled.
    async fn write(stream: &mut Gathered<Written>, pieces: &[&[u8]]) -> usize {
        let mut polled = 0;
        let written = poll_fn(|cx| {
            polled += 1;
            if polled < pieces.len() {
                cx.waker().wake_by_ref();
            }
            let pending = pieces[..polled.min(pieces.len())].concat();
            Pin::new(&mut *stream).poll_write(cx, &pending)
        });
        written.await.unwrap();
        polled
    }

    #[tokio::test]
    async fn each_write_takes_what_comes_until_nothing_is_ready_to_run() {
        // As a task: what a runtime is blocked on counts as ready to run, but is no turn of its loop.
        let written = tokio::spawn(async {
            let mut stream = gathered();
            let pieces: &[&[u8]] = &[b"head", b" and", b" a", b" long", b" body", b" of", b" pieces"];
            for _ in 0..2 {
                // Once more when the turn is over.
                assert_eq!(write(&mut stream, pieces).await, pieces.len() + 1);
            }
            stream.stream.0 == [pieces.concat(), pieces.concat()]
        });
        assert!(written.await.unwrap());
    }

    #[tokio::test]
    async fn others_that_are_always_ready_to_run_hold_no_write_up_for_ever() {
        let spinning = tokio::spawn(async {
            loop {
                poll_fn(|cx| {
                    cx.waker().wake_by_ref();
                    Poll::<()>::Pending
                })
                .await;
            }
        });
        let mut stream = gathered();
        assert_eq!(write(&mut stream, &[b"head"]).await, 2);
        spinning.abort();
    }

    #[tokio::test]
    async fn what_is_large_waits_for_nothing_and_its_rest_neither() {
        let mut stream = gathered();
        stream.stream.1 = LARGE;
        assert_eq!(write(&mut stream, &[&[7; LARGE + 1]]).await, 1);
        assert_eq!(write(&mut stream, &[&[7]]).await, 1);
        assert_eq!(write(&mut stream, &[b"head"]).await, 2);
    }

    #[tokio::test]
    async fn a_body_that_has_ended_waits_for_nothing() {
        let mut stream = gathered();
        assert_eq!(write(&mut stream, &[b"head", b"0\r\n\r\n"]).await, 2);
        assert_eq!(write(&mut stream, &[b"head and 0\r\n\r\n"]).await, 1);
    }

    #[tokio::test]
    async fn a_body_that_broke_off_waits_for_the_write_and_the_write_for_nothing() {
        let mut stream = gathered();
        let sent = stream.sent.clone();
        let piece = sent.hand_out();
        poll_fn(|cx| {
            assert!(sent.poll_written(cx, piece).is_pending());
            let written = Pin::new(&mut stream).poll_write(cx, b"half an answer");
            assert!(written.is_ready());
            Pin::new(&mut stream).poll_flush(cx)
        })
        .await
        .unwrap();
        poll_fn(|cx| sent.poll_written(cx, piece)).await;
    }
}
