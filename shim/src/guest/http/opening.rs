//! The first bytes of a connection, which say whether its client speaks HTTP/1.1 or HTTP/2: until they have come, none of
//! hyper's own deadlines runs.

use std::io::{Error, ErrorKind, Result};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBuf, ReadBufCursor};
use tokio::time::{Sleep, sleep};

/// What a client of HTTP/2 sends first (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A client that may still begin with either version.
pub struct Opening {
    /// So much of the preface has come, and nothing else.
    preface: usize,
    limit: Duration,
    /// Once there was something to wait for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Opening {
    /// A client that has so long.
    pub fn new(limit: Duration) -> Opening {
        Opening {
            preface: 0,
            limit,
            timer: None,
        }
    }

    /// Reads on; whether the version is known now.
    ///
    /// # Errors
    ///
    /// When the time is up.
    pub fn poll_read<T: Read>(
        &mut self,
        stream: Pin<&mut T>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<Result<bool>> {
        // No more at once: a cursor does not show what was read.
        let mut piece = [MaybeUninit::uninit(); PREFACE.len()];
        let most = buffer.remaining().min(PREFACE.len() - self.preface);
        let mut read = ReadBuf::uninit(&mut piece[..most]);
        if let Poll::Ready(done) = stream.poll_read(cx, read.unfilled()) {
            done?;
            let read = read.filled();
            buffer.put_slice(read);
            let is_preface = !read.is_empty() && PREFACE[self.preface..].starts_with(read);
            self.preface += read.len();
            return Poll::Ready(Ok(!is_preface || self.preface == PREFACE.len()));
        }
        let limit = self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        let late = || Error::new(ErrorKind::TimedOut, "the client has sent no request");
        timer.as_mut().poll(cx).map(|()| Err(late()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::gathered::Gathered;
    use super::super::sent::Sent;
    use super::*;
    use std::convert::Infallible;
    use std::sync::Arc;

    use http_body_util::{Empty, Full};
    use hyper::body::{Bytes, Incoming};
    use hyper::client::conn::http2;
    use hyper::service::service_fn;
    use hyper::{Request, Response};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use hyper_util::server::conn::auto::Builder;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::time::timeout;

    /// Serves a connection whose client may take so long to begin; the client's end, and the connection's.
    fn serve(limit: Duration) -> (DuplexStream, impl Future<Output = bool> + Send) {
        let (client, server) = duplex(4096);
        let stream = Gathered::new(TokioIo::new(server), Arc::<Sent>::default(), limit);
        let service = service_fn(|_: Request<Incoming>| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
        });
        let served = async move {
            let http = Builder::new(TokioExecutor::new());
            http.serve_connection(stream, service).await.is_ok()
        };
        (client, served)
    }

    #[tokio::test]
    async fn a_client_that_sends_nothing_or_a_part_of_the_preface_is_waited_for_no_longer_than_it_may_take() {
        for begun in ["", "P", "PRI", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r"] {
            let (mut client, served) = serve(Duration::from_millis(1));
            client.write_all(begun.as_bytes()).await.unwrap();
            let served = timeout(Duration::from_secs(20), served).await;
            assert!(!served.unwrap(), "{begun:?}");
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "{begun:?}");
        }
    }

    #[tokio::test]
    async fn a_client_that_has_begun_may_go_on_later_and_keeps_its_connection() {
        let (mut client, served) = serve(Duration::ZERO);
        client.write_all(b"P").await.unwrap();
        client.write_all(b"OST / HTTP/1.1\r\n").await.unwrap();
        tokio::spawn(served);
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            client
                .write_all(b"Host: pod\r\nContent-Length: 0\r\n\r\n")
                .await
                .unwrap();
            let mut read = Vec::new();
            while !read.ends_with(b"hello") {
                assert!(client.read_buf(&mut read).await.unwrap() > 0, "{read:?}");
            }
            client.write_all(b"POST / HTTP/1.1\r\n").await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_client_of_http2_keeps_its_connection_without_a_request() {
        let (client, served) = serve(Duration::ZERO);
        let opened = http2::handshake(TokioExecutor::new(), TokioIo::new(client));
        let (mut sender, connection) = opened.await.unwrap();
        tokio::spawn(served);
        tokio::spawn(connection);
        tokio::time::sleep(Duration::from_millis(5)).await;
        let request = Request::get("http://pod/").body(Empty::<Bytes>::new()).unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
    }

    #[tokio::test]
    async fn what_was_read_is_what_was_sent() {
        let (mut client, server) = duplex(4096);
        let mut server = TokioIo::new(server);
        let mut opening = Opening::new(Duration::ZERO);
        for (sent, is_known) in [("PRI * H", false), ("TTP/1.1\r\n", true)] {
            client.write_all(sent.as_bytes()).await.unwrap();
            let mut buffer = [0; 24];
            let mut read = ReadBuf::new(&mut buffer);
            let known = std::future::poll_fn(|cx| opening.poll_read(Pin::new(&mut server), cx, read.unfilled()));
            assert_eq!(known.await.unwrap(), is_known, "{sent:?}");
            assert_eq!(read.filled(), sent.as_bytes());
        }
    }
}
