//! From a request to its answer: limits, a place, an instance, a deadline.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use hyper::{Request, Response, StatusCode, Version};
use tokio::time::timeout;
use wasmtime_wasi_http::handler::{ProxyHandler, TrapOrPanicError};
use wasmtime_wasi_http::{Error, WasiBody};

use super::access_log::Record;
use super::admission::Admission;
use super::figures::Figures;
use super::instances::Instances;
use super::sent::Sent;
use super::unread::Readers;
use super::{body, busy_poll, client};
use crate::guest::trap;

/// What answers the requests of one thread.
pub struct Answers {
    pub handler: ProxyHandler<Instances>,
    pub admission: Arc<Admission>,
    pub limits: Limits,
    pub figures: Figures,
    /// Those of its answers over HTTP/2.
    pub readers: Readers,
    /// So many connections its thread has.
    pub open: Arc<AtomicUsize>,
}

/// What one request may take.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Until its answer begins, and between two pieces of that.
    pub timeout: Duration,
    /// The most bytes of a request's body.
    pub body: usize,
    pub access_log: bool,
}

impl Answers {
    /// Answers `request`, whatever becomes of it, on the connection of `sent`.
    pub async fn answer(&self, peer: SocketAddr, sent: Arc<Sent>, request: Request<Incoming>) -> Response<WasiBody> {
        busy_poll::asked(self.open.load(Ordering::Relaxed));
        let version = request.version();
        let mut counted = self.figures.request();
        let mut record = self.limits.access_log.then(|| Record::new(peer, &request));
        let answered = match self.refusal(&request) {
            Some(status) => Err(status),
            None => self.ask(request).await,
        };
        match answered {
            Ok((response, presence)) => {
                counted.answered(response.status());
                if let Some(record) = &mut record {
                    record.answered(response.status());
                }
                if version == Version::HTTP_2 {
                    self.readers.add(presence.client().clone());
                }
                response.map(|body| body::answer(body, sent, presence, counted, record, self.limits.timeout))
            }
            Err(status) => {
                counted.answered(status);
                if let Some(record) = &mut record {
                    record.answered(status);
                }
                plain(status)
            }
        }
    }

    /// Why a request never reaches the guest.
    fn refusal(&self, request: &Request<Incoming>) -> Option<StatusCode> {
        let host = || request.headers().get(HOST).is_some_and(|host| host.to_str().is_ok());
        if request.uri().authority().is_none() && !host() {
            return Some(StatusCode::BAD_REQUEST);
        }
        (request.body().size_hint().lower() > self.limits.body as u64).then_some(StatusCode::PAYLOAD_TOO_LARGE)
    }

    async fn ask(&self, request: Request<Incoming>) -> Result<(Response<WasiBody>, client::Presence), StatusCode> {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let line = || format!("{method} {uri}");
        let asked = async {
            let permit = self.admission.enter().await.ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
            let (client, presence) = client::arrives(permit);
            let most = self.limits.body;
            let request = request.map(|body| {
                let limited = Limited::new(body, most);
                limited.map_err(move |error| read_error(error, most)).boxed_unsync()
            });
            match self.handler.handle(client, request).await {
                Ok(response) => Ok((response, presence)),
                Err(error) => {
                    // Nothing is left to be cancelled.
                    presence.served();
                    // What ended the whole instance is told where it ends.
                    if !error.is::<TrapOrPanicError>() {
                        tell(&line(), &error);
                    }
                    Err(StatusCode::INTERNAL_SERVER_ERROR)
                }
            }
        };
        timeout(self.limits.timeout, asked).await.unwrap_or_else(|_| {
            trap::tell(&format!(
                "{}: no answer after {} s, the request_timeout",
                line(),
                self.limits.timeout.as_secs()
            ));
            Err(StatusCode::GATEWAY_TIMEOUT)
        })
    }
}

/// Why a request's body cannot be read on, as the guest is told.
fn read_error(error: Box<dyn std::error::Error + Send + Sync>, most: usize) -> Error {
    match error.downcast::<hyper::Error>() {
        Ok(error) => Error::Hyper(*error),
        Err(error) if error.is::<LengthLimitError>() => Error::HttpRequestBodySize(Some(most as u64)),
        Err(error) => Error::InternalError(Some(error.to_string())),
    }
}

/// Tells in one line on stderr what went wrong in `what`.
pub fn tell(what: &str, error: &wasmtime::Error) {
    let text = format!("{error:?}");
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    trap::tell(&format!("{what}: {}", lines.join("; ")));
}

/// An answer of the host's own.
fn plain(status: StatusCode) -> Response<WasiBody> {
    let reason = status.canonical_reason().unwrap_or_default();
    let body = Full::new(Bytes::from_static(reason.as_bytes()));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(reason.len()));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}
