//! A connection that gathers what is to be written: head, body and end of a short answer leave in one packet.
//!
//! A guest produces those one after the other, each time the connection has taken the last. hyper writes whenever the
//! guest has nothing more at the moment; that moment is given a few turns of the thread's event loop, in which the guest
//! goes on. So a short answer takes one system call, and its client is woken once.

use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::{Read, ReadBufCursor, Write};

/// So many turns a write waits: a guest of 0.3 takes one for its body and one for the end of that.
const TURNS: u32 = 5;

/// The longest that a write waits: turns are long where other guests spin.
const PATIENCE: Duration = Duration::from_micros(200);

/// So much is worth a write of its own.
const LARGE: usize = 4 << 10;

/// The end of a body in chunks (RFC 9112, 7.1): there is nothing to wait for behind it.
const END: &[u8] = b"0\r\n\r\n";

/// A stream whose writes wait for a few turns.
pub struct Gathered<T> {
    stream: T,
    /// The turns that a write has waited already; what came meanwhile is with it.
    waited: u32,
    /// Since when it waits.
    since: Option<Instant>,
}

impl<T> Gathered<T> {
    pub fn new(stream: T) -> Gathered<T> {
        Gathered {
            stream,
            waited: 0,
            since: None,
        }
    }
}

impl<T: Write + Unpin> Gathered<T> {
    /// Waits for its turn with so many bytes, which end in `last`.
    fn poll_turn(&mut self, cx: &Context<'_>, length: usize, last: &[u8]) -> Poll<()> {
        if self.waited == TURNS || length >= LARGE || last.ends_with(END) {
            return Poll::Ready(());
        }
        if self.since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
            return Poll::Ready(());
        }
        self.waited += 1;
        // Behind everything that is ready to run by now.
        cx.waker().wake_by_ref();
        Poll::Pending
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
        self.waited = if written < length { TURNS } else { 0 };
        self.since = None;
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
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<T: Read + Unpin> Read for Gathered<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    /// What is written, a line for each write.
    #[derive(Default)]
    struct Written(Vec<Vec<u8>>);

    impl Write for Written {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
            self.0.push(bytes.to_vec());
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Writes `pieces`, of which each turn brings one; how often it was polled.
    async fn write(stream: &mut Gathered<Written>, pieces: &[&[u8]]) -> usize {
        let mut polled = 0;
        let written = poll_fn(|cx| {
            polled += 1;
            let pending = pieces[..polled.min(pieces.len())].concat();
            Pin::new(&mut *stream).poll_write(cx, &pending)
        });
        assert_eq!(written.await.unwrap(), pieces.concat().len());
        polled
    }

    #[tokio::test]
    async fn each_write_waits_for_some_turns_and_takes_what_came_meanwhile() {
        let mut stream = Gathered::new(Written::default());
        for head in [&b"head"[..], b"next"] {
            assert_eq!(write(&mut stream, &[head, b" and", b" body"]).await, TURNS as usize + 1);
        }
        assert_eq!(stream.stream.0, [b"head and body".to_vec(), b"next and body".to_vec()]);
    }

    #[tokio::test]
    async fn what_is_large_waits_for_nothing_and_what_waited_long_no_longer() {
        let mut stream = Gathered::new(Written::default());
        assert_eq!(write(&mut stream, &[&[7; LARGE]]).await, 1);
        let mut polled = 0;
        let written = poll_fn(|cx| {
            polled += 1;
            if polled == 2 {
                std::thread::sleep(PATIENCE * 2);
            }
            Pin::new(&mut stream).poll_write(cx, b"head")
        });
        assert_eq!((written.await.unwrap(), polled), (4, 2));
    }

    #[tokio::test]
    async fn a_body_that_has_ended_waits_for_nothing() {
        let mut stream = Gathered::new(Written::default());
        assert_eq!(write(&mut stream, &[b"head", b"0\r\n\r\n"]).await, 2);
        assert_eq!(write(&mut stream, &[b"head and 0\r\n\r\n"]).await, 1);
    }
}
