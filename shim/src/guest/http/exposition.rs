//! Metrics as Prometheus reads them: OpenMetrics text, by HTTP/1.1.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::figures::{Figures, Snapshot};

/// What OpenMetrics calls its text (openmetrics.io, 1.0.0).
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What all names begin with.
pub const PREFIX: &str = "kubewasi";

/// So many connections at once: nobody but a few scrapers should come, and the service's own clients go first.
const CONNECTIONS: usize = 8;

/// The longest that one connection lives: a scraper comes anew.
const CONNECTION: Duration = Duration::from_secs(60);

/// Until the next try when there is no fd for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// The names and values of labels. Values are escaped here, which the crate leaves to who calls it.
#[derive(Clone, Debug, Default)]
pub struct Labels(Vec<(&'static str, String)>);

impl Labels {
    /// These and one more.
    pub fn with(&self, name: &'static str, value: &str) -> Labels {
        let escaped = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
        let mut labels = self.0.clone();
        labels.push((name, escaped));
        Labels(labels)
    }

    /// They on the metric that `encoder` writes.
    pub fn on(
        &self,
        encoder: &mut MetricEncoder<'_>,
        write: impl FnOnce(MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        let labels = self.0.as_slice();
        write(encoder.encode_family(&labels)?)
    }
}

/// A metric of services: its name and help, its kind, and what of each service it writes.
type Family = (
    &'static str,
    &'static str,
    MetricType,
    fn(&Labels, &Snapshot, &mut MetricEncoder<'_>) -> fmt::Result,
);

const FAMILIES: [Family; 5] = [
    (
        "http_requests",
        "Requests by the status of their answer; 499: the client left before there was one",
        MetricType::Counter,
        |labels, service, encoder| {
            service.requests.iter().try_for_each(|(code, count)| {
                let labels = labels.with("code", &code.to_string());
                labels.on(encoder, |mut metric| {
                    metric.encode_counter::<NoLabelSet, _, f64>(count, None)
                })
            })
        },
    ),
    (
        "http_request_duration_seconds",
        "From a request's head to the end of its answer",
        MetricType::Histogram,
        |labels, service, encoder| {
            labels.on(encoder, |mut metric| {
                metric.encode_histogram::<NoLabelSet>(service.seconds, service.answered(), &service.buckets, None)
            })
        },
    ),
    (
        "http_requests_in_flight",
        "Requests that are being answered or wait for their turn",
        MetricType::Gauge,
        |labels, service, encoder| labels.on(encoder, |mut metric| metric.encode_gauge(&service.in_flight)),
    ),
    (
        "http_instances",
        "Instances of the component that live",
        MetricType::Gauge,
        |labels, service, encoder| labels.on(encoder, |mut metric| metric.encode_gauge(&service.instances)),
    ),
    (
        "http_instantiations",
        "Instances of the component that were made",
        MetricType::Counter,
        |labels, service, encoder| {
            labels.on(encoder, |mut metric| {
                metric.encode_counter::<NoLabelSet, _, f64>(&service.instantiated, None)
            })
        },
    ),
];

/// Writes what `services` have counted.
///
/// # Errors
///
/// What the writer says.
pub fn encode(encoder: &mut DescriptorEncoder<'_>, services: &[(Labels, Snapshot)]) -> fmt::Result {
    for (name, help, kind, write) in FAMILIES {
        let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
        for (labels, service) in services {
            write(labels, service, &mut metric)?;
        }
    }
    Ok(())
}

/// What this process has counted of itself.
#[derive(Clone, Copy)]
struct Own(Figures);

impl fmt::Debug for Own {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Own")
    }
}

impl Collector for Own {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        encode(&mut encoder, &[(Labels::default(), self.0.now())])
    }
}

/// Shows the service's own metrics to whoever connects, until the process ends.
pub async fn serve_port(listener: TcpListener, figures: Figures) {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Own(figures)));
    let registry = Arc::new(registry);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(place) = places.clone().acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        let registry = registry.clone();
        tokio::spawn(async move {
            serve(stream, &registry).await;
            drop(place);
        });
    }
}

/// Answers `GET /metrics` on one connection with what is in `registry`, then and there.
pub async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, registry: &Registry) {
    let service = service_fn(async |request: Request<_>| Ok::<_, Infallible>(answer(&request, registry)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION)
        .serve_connection(TokioIo::new(stream), service);
    // Who breaks the protocol or stays too long loses the connection, and nobody else minds.
    let _ = timeout(CONNECTION, connection).await;
}

fn answer<B>(request: &Request<B>, registry: &Registry) -> Response<Full<Bytes>> {
    let mut written = String::new();
    let (status, kind) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match text::encode(&mut written, registry) {
            Ok(()) => (StatusCode::OK, TEXT),
            // A String takes everything.
            Err(fmt::Error) => (StatusCode::INTERNAL_SERVER_ERROR, "text/plain"),
        },
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "text/plain"),
        _ => (StatusCode::NOT_FOUND, "text/plain"),
    };
    let mut response = Response::new(Full::from(written));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::http::figures::tests::figures;

    fn get(path: &str, figures: Figures) -> (StatusCode, String) {
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(Own(figures)));
        let response = answer(&Request::get(path).body(()).unwrap(), &registry);
        let mut text = String::new();
        text::encode(&mut text, &registry).unwrap();
        (response.status(), text)
    }

    #[test]
    fn what_a_service_counted_is_shown_by_code_and_bucket() {
        let figures = figures();
        let mut request = figures.request();
        request.answered(StatusCode::NOT_FOUND);
        drop(request);
        let (_waits, _lives) = (figures.request(), figures.instance());
        let (status, text) = get("/metrics", figures);
        assert_eq!(status, StatusCode::OK);
        for line in [
            "kubewasi_http_requests_total{code=\"404\"} 1\n",
            "kubewasi_http_request_duration_seconds_count{} 1\n",
            "kubewasi_http_request_duration_seconds_bucket{le=\"+Inf\"} 1\n",
            "kubewasi_http_requests_in_flight{} 1\n",
            "kubewasi_http_instances{} 1\n",
            "kubewasi_http_instantiations_total{} 1\n",
            "# EOF\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in:\n{text}");
        }
        assert_eq!(get("/other", figures).0, StatusCode::NOT_FOUND);
    }

    #[test]
    fn a_value_cannot_leave_its_quotes() {
        let labels = Labels::default().with("pod", "a\"} 1\n\\");
        assert_eq!(labels.0, [("pod", "a\\\"} 1\\n\\\\".to_owned())]);
    }
}
