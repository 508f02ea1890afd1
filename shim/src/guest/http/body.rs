//! The body of an answer, as the connection reads it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use wasmtime_wasi_http::{Error, WasiBody};

use super::access_log::Record;
use super::client::Presence;
use super::figures::Request;
use super::sent::Sent;

/// A body that knows when it is served, does not wait for its guest for ever, and breaks off behind what it has said.
struct Answer {
    body: WasiBody,
    sent: Arc<Sent>,
    /// The last piece that it handed out.
    piece: u64,
    /// Why it breaks off.
    broken: Option<Error>,
    /// So many bytes more are asked for, where that is known.
    left: Option<u64>,
    /// `None` once all of it was read.
    presence: Option<Presence>,
    record: Option<Record>,
    /// In flight until this body is gone.
    _counted: Request,
    /// The longest that the guest may let a reader wait.
    patience: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

/// Hands `body` out, on the connection of `sent`, for who is `present`. Where the connection asks for `length` bytes and no
/// more, whatever comes behind them, that is known.
pub fn answer(
    body: WasiBody,
    length: Option<u64>,
    sent: Arc<Sent>,
    presence: Presence,
    counted: Request,
    record: Option<Record>,
    patience: Duration,
) -> WasiBody {
    let mut answer = Answer {
        body,
        // The head is one.
        piece: sent.hand_out(),
        sent,
        broken: None,
        left: length,
        presence: Some(presence),
        record,
        _counted: counted,
        patience,
        waiting: None,
    };
    answer.look();
    answer.boxed_unsync()
}

impl Answer {
    /// Who has read the last byte is served: hyper does not ask for more.
    fn look(&mut self) {
        if (self.left == Some(0) || self.body.is_end_stream())
            && let Some(presence) = self.presence.take()
        {
            presence.served();
        }
    }

    fn poll_guest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        // Its instance may be gone by now, and what that has not ended would end here.
        if self.presence.as_ref().is_some_and(|presence| !presence.asks()) {
            return Poll::Ready(Some(Err(Error::ConnectionWriteTimeout)));
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.waiting = None;
            return Poll::Ready(frame);
        }
        if self.presence.as_ref().is_some_and(|presence| presence.poll_failed(cx)) {
            return Poll::Ready(Some(Err(Error::HttpResponseIncomplete)));
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(waiting.as_mut().poll(cx));
        Poll::Ready(Some(Err(Error::HttpResponseTimeout)))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.broken.is_none() {
            match ready!(self.poll_guest(cx)) {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        let length = data.len();
                        self.left = self.left.map(|left| left.saturating_sub(length as u64));
                        if let Some(record) = &mut self.record {
                            record.sent(length);
                        }
                    }
                    self.piece = self.sent.hand_out();
                    self.look();
                    if let Some(presence) = &self.presence {
                        presence.takes();
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                Some(Err(error)) => {
                    self.broken = Some(error);
                    // Nobody needs to wait for what comes no more.
                    self.presence = None;
                }
                None => {
                    if let Some(presence) = self.presence.take() {
                        presence.served();
                    }
                    return Poll::Ready(None);
                }
            }
        }
        ready!(self.sent.poll_written(cx, self.piece));
        Poll::Ready(self.broken.take().map(Err))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::super::admission::Admission;
    use super::super::client::arrives;
    use super::super::figures::tests::figures;
    use super::super::gathered::Gathered;
    use super::super::unread::{Readers, tests::look_in_vain};
    use super::*;
    use std::convert::Infallible;

    use futures_util::{FutureExt as _, stream};
    use http_body_util::{Empty, StreamBody};
    use hyper::body::Incoming;
    use hyper::client::conn::http2;
    use hyper::service::service_fn;
    use hyper::{Request, Response};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use hyper_util::server::conn::auto::Builder;
    use tokio::io::duplex;
    use tokio::time::timeout;

    const LONG: Duration = Duration::from_secs(3600);

    /// A guest's body, which does not say when its last piece has come.
    fn pieces(pieces: &[&'static str]) -> WasiBody {
        let frames: Vec<_> = pieces
            .iter()
            .map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes()))))
            .collect();
        StreamBody::new(stream::iter(frames)).boxed_unsync()
    }

    fn present(admission: &Admission) -> Presence {
        arrives(admission.enter().now_or_never().unwrap().unwrap()).1
    }

    #[test]
    fn a_body_breaks_off_when_its_reader_has_taken_nothing_for_too_long() {
        let (admission, readers, sent) = (
            Admission::new(1, 0),
            Readers::new(Duration::ZERO),
            Arc::<Sent>::default(),
        );
        let presence = present(&admission);
        readers.add(presence.client().clone());
        let body = pieces(&["one", "two"]);
        let mut body = answer(body, None, sent.clone(), presence, figures().request(), None, LONG);
        let frame = body.frame().now_or_never().unwrap().unwrap();
        assert_eq!(frame.unwrap().into_data().unwrap(), "one");
        look_in_vain(&readers);
        assert!(admission.enter().now_or_never().unwrap().is_some(), "its place is free");
        sent.all_written();
        let frame = body.frame().now_or_never().unwrap().unwrap();
        assert!(matches!(frame, Err(Error::ConnectionWriteTimeout)), "{frame:?}");
    }

    #[test]
    fn a_body_is_served_with_the_last_byte_that_its_connection_asks_for() {
        for (length, served_after) in [
            (None, 3),
            (Some(6), 2),
            (Some(5), 2),
            (Some(7), 3),
            (Some(3), 1),
            (Some(0), 0),
        ] {
            let (admission, sent) = (Admission::new(1, 0), Arc::<Sent>::default());
            let (body, presence) = (pieces(&["one", "two"]), present(&admission));
            let mut body = answer(body, length, sent, presence, figures().request(), None, LONG);
            // A place is free once its client is served.
            let is_served = || admission.enter().now_or_never().unwrap().is_some();
            for asked in 0..3 {
                assert_eq!(is_served(), asked >= served_after, "{length:?} after {asked}");
                let _ = body.frame().now_or_never().unwrap();
            }
            assert!(is_served(), "{length:?}");
        }
    }

    #[tokio::test]
    async fn a_client_of_http2_that_lets_nothing_be_sent_keeps_its_place_no_longer_than_it_may() {
        let (client, server) = duplex(4096);
        let admission = Arc::new(Admission::new(1, 1));
        let readers = Arc::new(Readers::new(Duration::from_millis(500)));
        let watched = readers.clone();
        tokio::spawn(async move { watched.watch().await });
        let (sent, let_in) = (Arc::<Sent>::default(), admission.clone());
        let stream = Gathered::new(TokioIo::new(server), Bytes::new(), sent.clone());
        let service = service_fn(move |_: Request<Incoming>| {
            let presence = present(&let_in);
            readers.add(presence.client().clone());
            let body = pieces(&["one", "two"]);
            let body = answer(body, None, sent.clone(), presence, figures().request(), None, LONG);
            async move { Ok::<_, Infallible>(Response::new(body)) }
        });
        tokio::spawn(async move {
            let http = Builder::new(TokioExecutor::new());
            let _ = http.serve_connection(stream, service).await;
        });
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.initial_stream_window_size(0);
        let (mut sender, connection) = http.handshake(TokioIo::new(client)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get("http://pod/").body(Empty::<Bytes>::new()).unwrap();
        let reply = sender.send_request(request).await.unwrap();
        assert_eq!(reply.status(), 200);
        assert!(admission.enter().now_or_never().is_none(), "it is being read");
        let permit = timeout(Duration::from_secs(20), admission.enter()).await;
        assert!(permit.unwrap().is_some());
    }
}
