//! wasi:http as a client, 0.2 and 0.3: by TLS and without, HTTP/1.1 and HTTP/2, connections reused.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::runtime::{self, Runtime};
use tokio_rustls::TlsAcceptor;

use crate::command::run;
use crate::container::{Run, root_folder, spec};
use crate::containerd::Node;
use crate::guests::Probe;
use crate::nameserver;
use crate::network::Network;

const COMPONENTS: [Probe; 2] = [Probe::P2, Probe::P3];

/// An HTTP/1.1 server on port 8000 that ends each connection on the request after so many; returns how many clients have
/// connected so far.
fn server(network: &Network, answers: usize) -> Arc<AtomicU32> {
    let listener = network.within(|| TcpListener::bind("127.0.0.1:8000").unwrap());
    let clients = Arc::new(AtomicU32::new(0));
    let counted = clients.clone();
    thread::spawn(move || {
        for client in listener.incoming() {
            counted.fetch_add(1, Ordering::Relaxed);
            thread::spawn(move || {
                let mut client = client.unwrap();
                let lines = BufReader::new(client.try_clone().unwrap()).lines();
                let mut requests = lines.map_while(Result::ok).filter(String::is_empty);
                for _ in requests.by_ref().take(answers) {
                    client
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello\n")
                        .unwrap();
                }
                requests.next();
            });
        }
    });
    clients
}

/// A probe in `network` that asks for a URL: a command and its arguments.
fn asks<'a>(
    node: &'a Node,
    network: &Network,
    world: Probe,
    args: &[&str],
    extra: &[(&str, &[u8])],
    env: &[&str],
) -> Run<'a> {
    let bytes = world.bytes();
    let mut files: Vec<(&str, &[u8])> = vec![
        ("probe.wasm", &bytes),
        ("etc/resolv.conf", nameserver::RESOLV_CONF),
        ("etc/hosts", b"127.0.0.1 secure.test plain.test\n"),
    ];
    files.extend(extra);
    let mut spec = spec(node, &root_folder(node, &files), &[&["/probe.wasm"], args].concat());
    network.join(&mut spec);
    spec["process"]["env"] = json!(env);
    Run::of_spec(node, &spec)
}

/// Certificates of an authority, and of secure.test by it.
fn certificates(folder: &Path) {
    let file = |name: &str| folder.join(name).display().to_string();
    std::fs::write(folder.join("names"), "subjectAltName=DNS:secure.test\n").unwrap();
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let openssl = |args: &[&str]| run(Command::new("openssl").args(args)).ok();
    let authority = [
        "-keyout",
        &file("ca.key"),
        "-out",
        &file("ca.pem"),
        "-subj",
        "/CN=test authority",
    ];
    openssl(&[&["req", "-x509"], &key[..], &authority].concat());
    let request = [
        "-keyout",
        &file("key.pem"),
        "-out",
        &file("request"),
        "-subj",
        "/CN=secure.test",
    ];
    openssl(&[&["req"], &key[..], &request].concat());
    let by = ["-CA", &file("ca.pem"), "-CAkey", &file("ca.key"), "-CAcreateserial"];
    let made = ["-extfile", &file("names"), "-out", &file("cert.pem")];
    openssl(&[&["x509", "-req", "-in", &file("request")], &by[..], &made].concat());
}

/// A web server by TLS, on port 8443: it says by which version of HTTP a request came, and how long its body was.
struct Secure {
    /// Its connections end with it.
    _runtime: Runtime,
}

impl Secure {
    /// One that speaks these protocols of ALPN.
    fn start(network: &Network, folder: &Path, protocols: &[&str]) -> Secure {
        let certificate = CertificateDer::from_pem_file(folder.join("cert.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.unwrap().with_no_client_auth();
        let mut config = config.with_single_cert(vec![certificate], key).unwrap();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let listener = network.within(|| TcpListener::bind("127.0.0.1:8443").unwrap());
        listener.set_nonblocking(true).unwrap();
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let runtime = runtime.unwrap();
        runtime.spawn(serve(listener, TlsAcceptor::from(Arc::new(config))));
        Secure { _runtime: runtime }
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let accepted = acceptor.accept(client);
        tokio::spawn(async move {
            // A client that does not trust it ends here.
            let Ok(stream) = accepted.await else { return };
            let server = auto::Builder::new(TokioExecutor::new());
            let _ = server
                .serve_connection(TokioIo::new(stream), service_fn(describe))
                .await;
        });
    }
}

async fn describe(request: Request<Incoming>) -> Result<Response<String>, hyper::Error> {
    let version = request.version();
    let body = request.into_body().collect().await?.to_bytes();
    Ok(Response::new(format!("{version:?}, {} bytes\n", body.len())))
}

on_newest_containerd! {
    fn requests_one_after_the_other_share_a_connection(node) {
        let network = Network::new();
        let clients = server(&network, usize::MAX);
        for (number, world) in COMPONENTS.into_iter().enumerate() {
            let said = asks(node, &network, world, &["get", "http://plain.test:8000/", "3"], &[], &[]).finish().ok().stdout;
            assert_eq!(said, "200\nhello\n".repeat(3), "{world:?}");
            assert_eq!(clients.load(Ordering::Relaxed), number as u32 + 1, "{world:?}");
        }
    }

    fn a_request_whose_kept_connection_ends_is_sent_again_where_that_does_no_harm(node) {
        for world in COMPONENTS {
            let network = Network::new();
            let clients = server(&network, 1);
            let get = ["get", "http://plain.test:8000/", "3"];
            let said = asks(node, &network, world, &get, &[], &[]).finish().ok().stdout;
            assert_eq!(said, "200\nhello\n".repeat(3), "{world:?}");
            assert_eq!(clients.load(Ordering::Relaxed), 3, "{world:?}");

            let network = Network::new();
            let clients = server(&network, 0);
            for (args, tries) in [(["get", "http://plain.test:8000/", "1"], 4), (["post", "http://plain.test:8000/", "9"], 1)] {
                let before = clients.load(Ordering::Relaxed);
                asks(node, &network, world, &args, &[], &[]).finish().expect_code(1).expect_error(&["HttpProtocolError"]);
                assert_eq!(clients.load(Ordering::Relaxed) - before, tries, "{world:?} {args:?}");
            }
        }
    }

    fn whom_to_trust_is_the_images_to_say_or_the_environments(node) {
        let network = Network::new();
        certificates(&node.folder);
        let _server = Secure::start(&network, &node.folder, &[]);
        let authority = std::fs::read(node.folder.join("ca.pem")).unwrap();
        for world in COMPONENTS {
            let url = ["get", "https://secure.test:8443/"];
            let trusted = asks(node, &network, world, &url, &[("etc/ssl/certs/ca-certificates.crt", &authority)], &[]);
            assert!(trusted.finish().ok().stdout.starts_with("200\n"), "{world:?}, by the image's file");
            let trusted = asks(node, &network, world, &url, &[("own.pem", &authority)], &["SSL_CERT_FILE=/own.pem"]);
            assert!(trusted.finish().ok().stdout.starts_with("200\n"), "{world:?}, by the environment");
            asks(node, &network, world, &url, &[], &[]).finish().expect_code(1).expect_error(&["TlsCertificateError"]);
            asks(node, &network, world, &url, &[], &["SSL_CERT_FILE=/none.pem"]).finish().expect_code(1)
                .expect_error(&["SSL_CERT_FILE=/none.pem"]);
            // A name that the certificate does not have.
            let other = asks(node, &network, world, &["get", "https://plain.test:8443/"], &[("own.pem", &authority)], &["SSL_CERT_FILE=/own.pem"]);
            other.finish().expect_code(1).expect_error(&["TlsCertificateError"]);
        }
    }

    fn a_body_is_sent_by_the_version_of_http_that_the_server_speaks(node) {
        let network = Network::new();
        certificates(&node.folder);
        let authority = std::fs::read(node.folder.join("ca.pem")).unwrap();
        let extra: [(&str, &[u8]); 1] = [("etc/ssl/certs/ca-certificates.crt", &authority)];
        for (protocols, version) in [(["http/1.1"].as_slice(), "HTTP/1.1"), (&["h2", "http/1.1"], "HTTP/2.0")] {
            let _server = Secure::start(&network, &node.folder, protocols);
            for world in COMPONENTS {
                // More than HTTP/2 lets a client send before the server has read some.
                let args = ["post", "https://secure.test:8443/", "300000"];
                let said = asks(node, &network, world, &args, &extra, &[]).finish().ok().stdout;
                assert_eq!(said, format!("200\n{version}, 300000 bytes\n"), "{world:?}");
            }
        }
    }

    fn a_server_that_is_not_there_is_told_by_the_right_error(node) {
        let network = Network::new();
        for world in COMPONENTS {
            let fails = |url: &str, error: &str| {
                asks(node, &network, world, &["get", url], &[], &[]).finish().expect_code(1).expect_error(&[error]);
            };
            fails("http://127.0.0.1:9/", "ConnectionRefused");
            fails("http://10.0.0.1/", "DestinationIpUnroutable");
            fails("http://no-such-name.test/", "DnsError");
        }
    }
}
