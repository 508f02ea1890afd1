//! From a request to its answer: limits, a place, an instance, a deadline.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use hyper::http::uri::{Authority, Scheme};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
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
        let form = Form::of(&request);
        let mut counted = self.figures.request();
        let mut record = self.limits.access_log.then(|| Record::new(peer, &request));
        let answered = match self.admitted(&request) {
            Err(status) => Err(status),
            Ok(authority) => self.ask(request, authority).await,
        };
        match answered {
            Ok((mut response, presence)) => {
                counted.answered(response.status());
                if let Some(record) = &mut record {
                    record.answered(response.status());
                }
                if form.is_http2 {
                    self.readers.add(presence.client().clone());
                }
                form.apply(&mut response);
                let length = form.length(&response);
                response.map(|body| body::answer(body, length, sent, presence, counted, record, self.limits.timeout))
            }
            Err(status) => {
                counted.answered(status);
                if let Some(record) = &mut record {
                    record.answered(status);
                }
                let mut response = plain(status);
                form.apply(&mut response);
                response
            }
        }
    }

    /// Whom the request is for where its URI does not say that; or why it never reaches the guest.
    fn admitted(&self, request: &Request<Incoming>) -> Result<Option<Authority>, StatusCode> {
        let authority = host(request)?;
        match request.body().size_hint().lower() > self.limits.body as u64 {
            true => Err(StatusCode::PAYLOAD_TOO_LARGE),
            false => Ok(authority),
        }
    }

    async fn ask(
        &self,
        mut request: Request<Incoming>,
        authority: Option<Authority>,
    ) -> Result<(Response<WasiBody>, client::Presence), StatusCode> {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let line = || format!("{method} {uri}");
        if let Some(authority) = authority {
            *request.uri_mut() = addressed(&uri, authority);
        }
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

/// What a request's version and method make of the body of its answer.
struct Form {
    is_http2: bool,
    is_head: bool,
}

impl Form {
    fn of<B>(request: &Request<B>) -> Form {
        Form {
            is_http2: request.version() == Version::HTTP_2,
            is_head: request.method() == Method::HEAD,
        }
    }

    /// Whether an answer ends with its head, whatever the guest writes (RFC 9110, 6.4.1).
    fn is_head_alone(&self, status: StatusCode) -> bool {
        self.is_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
    }

    /// Takes a body away that hyper would send: it does not over HTTP/1.1.
    fn apply(&self, response: &mut Response<WasiBody>) {
        if self.is_http2 && self.is_head_alone(response.status()) {
            *response.body_mut() = Empty::new().map_err(|never| match never {}).boxed_unsync();
        }
    }

    /// How many bytes hyper asks for, where it does not ask until the body ends: over HTTP/1.1 it drops a body that has
    /// given what Content-Length says.
    fn length<B>(&self, response: &Response<B>) -> Option<u64> {
        if self.is_head_alone(response.status()) {
            return Some(0);
        }
        let said = response.headers().get(CONTENT_LENGTH).filter(|_| !self.is_http2)?;
        said.to_str().ok()?.parse().ok()
    }
}

/// The authority that a request's Host names, where its URI names none (RFC 9112, 3.2). An empty one names none.
fn host<B>(request: &Request<B>) -> Result<Option<Authority>, StatusCode> {
    let is_named = request.uri().authority().is_some();
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if is_named => Ok(None),
        (Some(host), None) if host.is_empty() => Ok(None),
        (Some(host), None) => match Authority::try_from(host.as_bytes()) {
            Ok(authority) => Ok(Some(authority).filter(|_| !is_named)),
            Err(_) => Err(StatusCode::BAD_REQUEST),
        },
        _ => Err(StatusCode::BAD_REQUEST),
    }
}

/// `uri` with `authority`: a service of 0.3 is told whom it was asked as by the URI alone.
fn addressed(uri: &Uri, authority: Authority) -> Uri {
    let mut parts = uri.clone().into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority);
    Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(uri: &str, hosts: &[&str]) -> Result<Option<Authority>, StatusCode> {
        let request = hosts
            .iter()
            .fold(Request::get(uri), |request, value| request.header(HOST, *value));
        host(&request.body(()).unwrap())
    }

    #[test]
    fn a_request_names_one_host_and_no_other() {
        let named = |host: &str| Ok(Some(host.parse().unwrap()));
        for host in ["pod", "pod:8080", "[::1]:80", "127.0.0.1"] {
            assert_eq!(asked("/x", &[host]), named(host));
            assert_eq!(asked("http://other/x", &[host]), Ok(None), "the URI says it");
        }
        assert_eq!(asked("http://pod/x", &[]), Ok(None));
        assert_eq!(asked("/x", &[""]), Ok(None));
        let refused: [(&str, &[&str]); 6] = [
            ("/x", &[]),
            ("/x", &["pod", "pod"]),
            ("http://pod/x", &["pod", "other"]),
            ("/x", &["pod/path"]),
            ("/x", &["one two"]),
            ("http://pod/x", &["pod pod"]),
        ];
        for (uri, hosts) in refused {
            assert_eq!(asked(uri, hosts), Err(StatusCode::BAD_REQUEST), "{uri} {hosts:?}");
        }
    }

    #[test]
    fn what_is_asked_for_of_a_body_is_known_where_it_is_not_its_end() {
        let length = |method: Method, version, status: u16, said: &str| {
            let request = Request::builder().method(method).version(version).body(());
            let response = Response::builder().status(status).header(CONTENT_LENGTH, said).body(());
            Form::of(&request.unwrap()).length(&response.unwrap())
        };
        let (one, two) = (Version::HTTP_11, Version::HTTP_2);
        assert_eq!(length(Method::GET, one, 200, "5"), Some(5));
        assert_eq!(length(Method::GET, Version::HTTP_10, 200, "5"), Some(5));
        assert_eq!(length(Method::GET, two, 200, "5"), None);
        assert_eq!(length(Method::GET, one, 200, "five"), None);
        for version in [one, two] {
            assert_eq!(length(Method::HEAD, version, 200, "5"), Some(0));
            assert_eq!(length(Method::GET, version, 204, "5"), Some(0));
            assert_eq!(length(Method::GET, version, 304, "5"), Some(0));
        }
    }

    #[test]
    fn an_answer_to_head_has_a_body_only_where_hyper_drops_it() {
        for (version, has_body) in [(Version::HTTP_11, true), (Version::HTTP_2, false)] {
            let request = Request::head("http://pod/").version(version).body(()).unwrap();
            let mut response = plain(StatusCode::NOT_FOUND);
            Form::of(&request).apply(&mut response);
            assert_eq!(!response.body().is_end_stream(), has_body, "{version:?}");
            assert_eq!(response.headers()[CONTENT_LENGTH], "9");
        }
    }

    #[test]
    fn a_uri_that_is_given_an_authority_keeps_its_path() {
        for path in ["/", "/x/y?z=1&w", "/?q", "*", "//x"] {
            let uri = addressed(&path.parse().unwrap(), "pod:80".parse().unwrap());
            assert_eq!(uri.path_and_query().map(|path| path.as_str()), Some(path));
            assert_eq!(
                (uri.scheme_str(), uri.authority().unwrap().as_str()),
                (Some("http"), "pod:80")
            );
        }
    }
}
