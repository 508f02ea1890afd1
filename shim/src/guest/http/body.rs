//! The body of an answer, as the connection reads it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use wasmtime_wasi_http::{Error, WasiBody};

use super::access_log::Record;
use super::client::Presence;
use super::figures::Request;

/// A body that knows when it is served, and does not wait for its guest for ever.
struct Answer {
    body: WasiBody,
    /// `None` once all of it was read.
    presence: Option<Presence>,
    record: Option<Record>,
    /// In flight until this body is gone.
    _counted: Request,
    /// The longest that the guest may let a reader wait.
    patience: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

/// Hands `body` out for who is `present`.
pub fn answer(
    body: WasiBody,
    presence: Presence,
    counted: Request,
    record: Option<Record>,
    patience: Duration,
) -> WasiBody {
    let mut answer = Answer {
        body,
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
        let frame = ready!(self.poll_guest(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(record), Some(data)) = (&mut self.record, frame.data_ref()) {
                    record.sent(data.len());
                }
                self.look();
            }
            Some(Err(_)) => {}
            None => {
                if let Some(presence) = self.presence.take() {
                    presence.served();
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
