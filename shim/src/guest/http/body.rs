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
    /// `None` once all of it was read.
    presence: Option<Presence>,
    record: Option<Record>,
    /// In flight until this body is gone.
    _counted: Request,
    /// The longest that the guest may let a reader wait.
    patience: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

/// Hands `body` out, on the connection of `sent`, for who is `present`.
pub fn answer(
    body: WasiBody,
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
        if self.body.is_end_stream()
            && let Some(presence) = self.presence.take()
        {
            presence.served();
        }
    }

    fn poll_guest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
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
                    if let (Some(record), Some(data)) = (&mut self.record, frame.data_ref()) {
                        record.sent(data.len());
                    }
                    self.piece = self.sent.hand_out();
                    self.look();
                    return Poll::Ready(Some(Ok(frame)));
                }
                Some(Err(error)) => self.broken = Some(error),
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
