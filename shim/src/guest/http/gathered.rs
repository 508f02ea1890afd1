//! A connection that gathers what is to be written: head, body and end of a short answer leave in one packet.
//!
//! A guest produces those one after the other, each time the connection has taken the last. hyper writes whenever the
//! guest has nothing more at the moment; that moment is given one turn of the thread's event loop, in which the guest goes
//! on. So a short answer takes one system call, and its client is woken once.

use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};

/// A stream whose writes wait for a turn.
pub struct Gathered<T> {
    stream: T,
    /// A write has waited already, and what came meanwhile is with it.
    waited: bool,
}

impl<T> Gathered<T> {
    pub fn new(stream: T) -> Gathered<T> {
        Gathered { stream, waited: false }
    }
}

impl<T: Write + Unpin> Gathered<T> {
    fn poll_turn(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.waited {
            return Poll::Ready(());
        }
        self.waited = true;
        // Behind everything that is ready to run by now.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_once<R>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut T>, &mut Context<'_>) -> Poll<R>,
    ) -> Poll<R> {
        ready!(self.poll_turn(cx));
        let written = ready!(write(Pin::new(&mut self.stream), cx));
        self.waited = false;
        Poll::Ready(written)
    }
}

impl<T: Write + Unpin> Write for Gathered<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        self.poll_once(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<Result<usize>> {
        self.poll_once(cx, |stream, cx| stream.poll_write_vectored(cx, pieces))
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

    #[tokio::test]
    async fn each_write_waits_once_and_takes_what_came_meanwhile() {
        let mut stream = Gathered::new(Written::default());
        for bytes in [b"head".to_vec(), b"next".to_vec()] {
            let mut pending = bytes;
            let mut polled = 0;
            let write = poll_fn(|cx| {
                polled += 1;
                if polled == 2 {
                    pending.extend(b" and body");
                }
                Pin::new(&mut stream).poll_write(cx, &pending)
            });
            assert_eq!(write.await.unwrap(), 13);
            assert_eq!(polled, 2);
        }
        assert_eq!(stream.stream.0, [b"head and body".to_vec(), b"next and body".to_vec()]);
    }
}
