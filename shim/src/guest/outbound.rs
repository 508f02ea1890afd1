//! The requests that a guest sends by wasi:http, 0.2 and 0.3: one client a guest, so that connections are reused.
//!
//! Names are looked up by the pod's /etc/resolv.conf. Whom to trust is asked once, with the first request: the files that
//! the guest's `SSL_CERT_FILE` and `SSL_CERT_DIR` name, else those of the image where distributions have them, else
//! Mozilla's, which are built in.

use std::error::Error as _;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{Either, select};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::{HttpConnector, capture_connection};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use rustls_native_certs::{CertificateResult, load_certs_from_paths, load_native_certs};
use tokio::time::{Sleep, sleep, timeout};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use again::Again;

mod again;

/// What a guest that sets no timeout waits: as long as other hosts of wasi:http do.
const PATIENCE: Duration = Duration::from_secs(600);

/// As many idle connections are kept for each host: what a pod's own requests at once would be.
const IDLE: usize = 32;

/// A guest's client; a copy is the same client.
#[derive(Clone)]
pub struct Outbound(Arc<Shared>);

struct Shared {
    /// `SSL_CERT_FILE` and `SSL_CERT_DIR`.
    certificates: [Option<String>; 2],
    client: OnceLock<Result<Connected, String>>,
}

type Connected = Client<HttpsConnector<HttpConnector>, WasiBody>;
type Answer = Result<(Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error>;

impl Outbound {
    /// The client of a guest with this environment. Nothing is read or opened yet.
    pub fn new(environment: &[(String, String)]) -> Outbound {
        let of = |name| {
            let found = environment.iter().rfind(|(key, _)| key == name);
            found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
        };
        Outbound(Arc::new(Shared {
            certificates: ["SSL_CERT_FILE", "SSL_CERT_DIR"].map(of),
            client: OnceLock::new(),
        }))
    }
}

impl WasiHttpHooks for Outbound {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _response_processed: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Answer> + Send> {
        let shared = self.0.clone();
        Box::new(async move {
            let client = shared.client.get_or_init(|| connect(&shared.certificates));
            let client = client
                .as_ref()
                .map_err(|text| Error::InternalError(Some(text.clone())))?;
            let response = send(client, request, options.unwrap_or_default()).await?;
            // The connection is the client's to drive, and has no errors but those of a request or its answer.
            Ok((response, Box::new(async { Ok(()) }) as _))
        })
    }
}

fn connect(certificates: &[Option<String>; 2]) -> Result<Connected, String> {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?
        .with_root_certificates(roots(certificates)?)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_or_http()
        .enable_http1()
        .enable_http2()
        .build();
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_max_idle_per_host(IDLE)
        .build(connector))
}

/// Whom to trust. What the guest names must be there; what the image has by custom may be missing.
fn roots([file, folder]: &[Option<String>; 2]) -> Result<RootCertStore, String> {
    let named = file.is_some() || folder.is_some();
    let path = |path: &Option<String>| path.as_deref().map(Path::new).map(Path::to_owned);
    let CertificateResult { certs, errors, .. } = match named {
        true => load_certs_from_paths(path(file).as_deref(), path(folder).as_deref()),
        false => load_native_certs(),
    };
    let mut roots = RootCertStore::empty();
    let (good, _) = roots.add_parsable_certificates(certs);
    match good {
        0 if named => Err(format!(
            "SSL_CERT_FILE={} and SSL_CERT_DIR={} have no certificate that can be used: {errors:?}",
            file.as_deref().unwrap_or_default(),
            folder.as_deref().unwrap_or_default()
        )),
        0 => Ok(webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect()),
        _ => Ok(roots),
    }
}

async fn send(
    client: &Connected,
    request: Request<WasiBody>,
    options: RequestOptions,
) -> Result<Response<WasiBody>, Error> {
    let (mut again, request) = Again::new(request);
    let mut sent = send_once(client, request, &options).await;
    while let Err(Unanswered::Failed(error)) = &sent
        && let Some(request) = again.after(error)
    {
        sent = send_once(client, request, &options).await;
    }
    let between = options.between_bytes_timeout.unwrap_or(PATIENCE);
    match sent {
        Ok(response) => Ok(response.map(|body| Paced::new(body, between).boxed_unsync())),
        Err(Unanswered::Failed(error)) => Err(failure(&error)),
        Err(Unanswered::Late(error)) => Err(error),
    }
}

/// Why a request has no answer.
enum Unanswered {
    Failed(legacy::Error),
    Late(Error),
}

async fn send_once(
    client: &Connected,
    mut request: Request<WasiBody>,
    options: &RequestOptions,
) -> Result<Response<Incoming>, Unanswered> {
    let mut connection = capture_connection(&mut request);
    let connected = std::pin::pin!(async { drop(connection.wait_for_connection_metadata().await) });
    let begun = select(client.request(request), connected);
    let response = match timeout(options.connect_timeout.unwrap_or(PATIENCE), begun).await {
        Err(_) => return Err(Unanswered::Late(Error::ConnectionTimeout)),
        Ok(Either::Left((response, _))) => response,
        Ok(Either::Right((_, response))) => timeout(options.first_byte_timeout.unwrap_or(PATIENCE), response)
            .await
            .map_err(|_| Unanswered::Late(Error::ConnectionReadTimeout))?,
    };
    response.map_err(Unanswered::Failed)
}

/// Why there is no answer, in the terms of wasi:http.
fn failure(error: &legacy::Error) -> Error {
    let mut next = error.source();
    while let Some(cause) = next {
        next = cause.source();
        let Some(cause) = cause.downcast_ref::<io::Error>() else {
            continue;
        };
        if let Some(tls) = of_tls(cause) {
            return refused(tls);
        }
        if error.is_connect() {
            return unreachable(cause);
        }
    }
    match error.is_connect() {
        true => Error::DestinationUnavailable,
        false => Error::HttpProtocolError,
    }
}

/// What TLS says inside an I/O error, which is not its source: tokio's and hyper's wrap each other.
fn of_tls(error: &io::Error) -> Option<&rustls::Error> {
    let inner = error.get_ref()?;
    let deeper = || inner.downcast_ref::<io::Error>().and_then(of_tls);
    inner.downcast_ref::<rustls::Error>().or_else(deeper)
}

fn refused(error: &rustls::Error) -> Error {
    match error {
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => Error::TlsCertificateError,
        rustls::Error::AlertReceived(alert) => Error::TlsAlertReceived {
            alert_id: Some(u8::from(*alert)),
            alert_message: Some(format!("{alert:?}")),
        },
        _ => Error::TlsProtocolError,
    }
}

fn unreachable(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Error::ConnectionRefused,
        io::ErrorKind::TimedOut => Error::ConnectionTimeout,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Error::DestinationIpUnroutable,
        // getaddrinfo's errors alone are none of the kernel's.
        _ if error.raw_os_error().is_none() => Error::DnsError {
            rcode: Some(error.to_string()),
            info_code: None,
        },
        _ => Error::DestinationUnavailable,
    }
}

/// An answer's body that fails when its sender is silent for too long.
struct Paced {
    body: Incoming,
    between: Duration,
    silence: Pin<Box<Sleep>>,
}

impl Paced {
    fn new(body: Incoming, between: Duration) -> Paced {
        Paced {
            body,
            between,
            silence: Box::pin(sleep(between)),
        }
    }
}

impl Body for Paced {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(frame) => {
                self.silence = Box::pin(sleep(self.between));
                Poll::Ready(frame.map(|frame| frame.map_err(Error::from)))
            }
            Poll::Pending => self
                .silence
                .as_mut()
                .poll(context)
                .map(|()| Some(Err(Error::ConnectionReadTimeout))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_names_must_be_there_and_else_the_built_in_roots_are_trusted() {
        let missing = roots(&[Some("/no/such/file".to_owned()), None]).unwrap_err();
        assert!(missing.contains("SSL_CERT_FILE=/no/such/file"), "{missing}");
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "no certificate").unwrap();
        assert!(roots(&[empty.to_str().map(str::to_owned), None]).is_err());
        assert!(!roots(&[None, None]).unwrap().is_empty());
    }

    #[test]
    fn a_name_that_is_not_found_is_told_from_a_host_that_is_away() {
        let lookup = io::Error::other("failed to lookup address information");
        assert!(matches!(unreachable(&lookup), Error::DnsError { .. }));
        let away = io::Error::from_raw_os_error(libc::ECONNREFUSED);
        assert!(matches!(unreachable(&away), Error::ConnectionRefused));
        let no_route = io::Error::from_raw_os_error(libc::ENETUNREACH);
        assert!(matches!(unreachable(&no_route), Error::DestinationIpUnroutable));
    }
}
