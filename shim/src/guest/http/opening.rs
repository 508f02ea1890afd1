//! The first bytes of a connection, which say whether its client speaks HTTP/1.1 or HTTP/2.
//!
//! hyper-util would tell them apart too, but hands out what it has looked at as a piece of its own: a head in two pieces has
//! hyper double its buffer, for as long as the connection lives. And none of hyper's deadlines runs until then.

use std::future::poll_fn;
use std::io::{Error, ErrorKind, Result};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::timeout;

/// What a client of HTTP/2 sends first (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// So much is read at once: as much as hyper has room for.
const PIECE: usize = 8 << 10;

/// What a client has begun with.
#[derive(Debug)]
pub struct Opening {
    pub is_http2: bool,
    pub read: Bytes,
}

/// Reads from a new connection until its version is known, for so long at most.
///
/// # Errors
///
/// When the time is up, the client closes the connection before, or it breaks.
pub async fn read(stream: &mut (impl AsyncRead + Unpin), limit: Duration) -> Result<Opening> {
    let opening = async {
        let mut read = Vec::new();
        loop {
            if piece(stream, &mut read).await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let length = read.len().min(PREFACE.len());
            let may_be_http2 = read[..length] == PREFACE[..length];
            if !may_be_http2 || length == PREFACE.len() {
                return Ok(Opening {
                    is_http2: may_be_http2,
                    read: read.into(),
                });
            }
        }
    };
    let late = |_| Error::new(ErrorKind::TimedOut, "the client has sent no request");
    timeout(limit, opening).await.map_err(late)?
}

/// Appends what there is to `read`; how much. A client that sends nothing costs no buffer.
async fn piece(stream: &mut (impl AsyncRead + Unpin), read: &mut Vec<u8>) -> Result<usize> {
    poll_fn(|cx| {
        let mut piece = [MaybeUninit::uninit(); PIECE];
        let mut buffer = ReadBuf::uninit(&mut piece);
        ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer))?;
        read.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::super::gathered::Gathered;
    use super::super::sent::Sent;
    use super::*;
    use std::convert::Infallible;
    use std::sync::Arc;

    use http_body_util::{Empty, Full};
    use hyper::body::Incoming;
    use hyper::client::conn::http2;
    use hyper::service::service_fn;
    use hyper::{Request, Response};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use hyper_util::server::conn::auto::Builder;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    const HOUR: Duration = Duration::from_secs(3600);

    /// Serves a connection whose client may take so long to begin; the client's end, and the connection's.
    fn serve(limit: Duration) -> (DuplexStream, impl Future<Output = bool> + Send) {
        let (client, mut server) = duplex(4096);
        let service = service_fn(|_: Request<Incoming>| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
        });
        let served = async move {
            let Ok(opening) = read(&mut server, limit).await else {
                return false;
            };
            let http = Builder::new(TokioExecutor::new());
            let http = match opening.is_http2 {
                true => http.http2_only(),
                false => http.http1_only(),
            };
            let stream = Gathered::new(TokioIo::new(server), opening.read, Arc::<Sent>::default());
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

            let (mut client, mut server) = duplex(4096);
            client.write_all(begun.as_bytes()).await.unwrap();
            let error = read(&mut server, Duration::from_millis(1)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{begun:?}");
            drop(client);
            let error = read(&mut server, HOUR).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{begun:?}");
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
    async fn the_version_is_known_by_what_was_sent_and_that_is_what_was_read() {
        let request = "POST / HTTP/1.1\r\nHost: pod\r\n\r\n";
        let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nand more";
        for (pieces, is_http2) in [
            (vec![request], false),
            (vec!["P", "RI * H", "TTP/1.1\r\n"], false),
            (vec![preface], true),
            (vec!["PRI", " * HTTP/2.0\r\n\r\nSM\r\n\r", "\n"], true),
        ] {
            let (mut client, mut server) = duplex(4096);
            let sent = pieces.concat();
            let sending = async {
                for piece in pieces {
                    client.write_all(piece.as_bytes()).await.unwrap();
                    tokio::task::yield_now().await;
                }
            };
            // What is no preface is known by its first bytes that are none.
            let (opening, ()) = tokio::join!(read(&mut server, HOUR), sending);
            match opening {
                Ok(opening) => assert_eq!((opening.is_http2, &opening.read[..]), (is_http2, sent.as_bytes())),
                Err(error) => panic!("{sent:?}: {error}"),
            }
        }
    }
}
