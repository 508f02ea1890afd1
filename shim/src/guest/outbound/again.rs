//! Requests that are sent once more: a connection that was kept may end just as the next request is sent on it.
//!
//! Whoever ends an idle connection, such as a service that is being replaced, cannot know that. A client may send a request
//! again by itself that may be carried out twice (RFC 9110, 9.2.2); here, one that has no body either.

use std::error::Error as _;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use hyper::{Method, Request};
use hyper_util::client::legacy;
use wasmtime_wasi_http::{Error, WasiBody};

/// How often: some of those that are kept may have ended too.
const TIMES: usize = 3;

/// What is needed to send a request again.
pub struct Again {
    head: Request<()>,
    is_empty: Arc<AtomicBool>,
    left: usize,
}

impl Again {
    /// Keeps what is needed of `request`, and returns it to be sent.
    pub fn new(request: Request<WasiBody>) -> (Again, Request<WasiBody>) {
        let (parts, body) = request.into_parts();
        // Of a body without a length HTTP/1.1 sends nothing with these two methods, and asks for nothing of it.
        let has_none = matches!(parts.method, Method::GET | Method::HEAD)
            && !parts.headers.contains_key(CONTENT_LENGTH)
            && !parts.headers.contains_key(TRANSFER_ENCODING);
        let is_empty = Arc::new(AtomicBool::new(has_none || body.is_end_stream()));
        let again = Again {
            head: Request::from_parts(parts.clone(), ()),
            is_empty: is_empty.clone(),
            left: if parts.method.is_idempotent() { TIMES } else { 0 },
        };
        let watched = Watched {
            body,
            is_empty,
            had_any: false,
        };
        (again, Request::from_parts(parts, watched.boxed_unsync()))
    }

    /// The request once more, if it failed for its connection's end and may be sent again.
    pub fn after(&mut self, error: &legacy::Error) -> Option<Request<WasiBody>> {
        self.once_more(was_cut_off(error))
    }

    fn once_more(&mut self, was_cut_off: bool) -> Option<Request<WasiBody>> {
        if !was_cut_off || self.left == 0 || !self.is_empty.load(Ordering::Relaxed) {
            return None;
        }
        self.left -= 1;
        let empty = || Empty::new().map_err(|never| match never {}).boxed_unsync();
        Some(self.head.clone().map(|()| empty()))
    }
}

/// Whether the connection ended before there was an answer.
fn was_cut_off(error: &legacy::Error) -> bool {
    let mut next = error.source();
    while let Some(cause) = next {
        let incomplete = |error: &hyper::Error| error.is_incomplete_message();
        let reset = |error: &io::Error| matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
        if cause.downcast_ref().is_some_and(incomplete) || cause.downcast_ref().is_some_and(reset) {
            return !error.is_connect();
        }
        next = cause.source();
    }
    false
}

/// A body, and whether it has ended with nothing in it.
struct Watched {
    body: WasiBody,
    is_empty: Arc<AtomicBool>,
    had_any: bool,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.is_empty.store(false, Ordering::Relaxed);
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            None => self.is_empty.store(!self.had_any, Ordering::Relaxed),
            Some(_) => self.had_any = true,
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

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use http_body_util::Full;

    fn request(method: &str, body: &'static [u8]) -> (Again, Request<WasiBody>) {
        let body = Full::new(Bytes::from_static(body)).map_err(|never| match never {});
        Again::new(
            Request::builder()
                .method(method)
                .uri("/x")
                .body(body.boxed_unsync())
                .unwrap(),
        )
    }

    #[test]
    fn a_request_that_may_be_carried_out_twice_is_sent_again_as_it_was_and_not_for_ever() {
        let (mut again, _) = request("GET", b"");
        assert!(
            again.once_more(false).is_none(),
            "its answer was a failure of another kind"
        );
        for _ in 0..TIMES {
            let request = again.once_more(true).unwrap();
            assert_eq!((request.method().as_str(), request.uri().path()), ("GET", "/x"));
            assert!(request.body().is_end_stream());
        }
        assert!(again.once_more(true).is_none());
        assert!(request("POST", b"").0.once_more(true).is_none());
    }

    #[test]
    fn a_request_with_a_body_is_not_sent_again_and_one_whose_body_turned_out_to_be_empty_is() {
        /// Does not say that it has ended before it is asked.
        struct Open(Full<Bytes>);
        impl Body for Open {
            type Data = Bytes;
            type Error = Error;
            fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
                Pin::new(&mut self.0).poll_frame(cx).map_err(|never| match never {})
            }
        }
        for (bytes, is_sent_again) in [(&b""[..], true), (b"data", false)] {
            let body = Open(Full::new(Bytes::from_static(bytes))).boxed_unsync();
            let (mut again, request) = Again::new(Request::put("/x").body(body).unwrap());
            assert!(again.once_more(true).is_none(), "the guest may still write it");
            request.into_body().collect().now_or_never().unwrap().unwrap();
            assert_eq!(again.once_more(true).is_some(), is_sent_again);
        }
    }
}
