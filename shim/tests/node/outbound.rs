//! wasi:http as a client, 0.2 and 0.3: by TLS and without, connections reused.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::command::run;
use crate::container::{Run, root_folder, spec};
use crate::containerd::Node;
use crate::guests::Probe;
use crate::nameserver;
use crate::network::Network;

const COMPONENTS: [Probe; 2] = [Probe::P2, Probe::P3];

/// An HTTP/1.1 server on port 8000; returns how many clients have connected so far.
fn server(network: &Network) -> Arc<AtomicU32> {
    let listener = network.within(|| TcpListener::bind("127.0.0.1:8000").unwrap());
    let clients = Arc::new(AtomicU32::new(0));
    let counted = clients.clone();
    thread::spawn(move || {
        for client in listener.incoming() {
            counted.fetch_add(1, Ordering::Relaxed);
            thread::spawn(move || {
                let mut client = client.unwrap();
                let lines = BufReader::new(client.try_clone().unwrap()).lines();
                for _ in lines.map_while(Result::ok).filter(String::is_empty) {
                    client
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello\n")
                        .unwrap();
                }
            });
        }
    });
    clients
}

/// A probe in `network` that asks for a URL.
fn get<'a>(
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
    let mut spec = spec(
        node,
        &root_folder(node, &files),
        &[&["/probe.wasm", "get"], args].concat(),
    );
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

/// openssl's own web server, on port 8443.
struct Secure(Child);

impl Secure {
    fn start(network: &Network, folder: &Path) -> Secure {
        let mut server = network.command("openssl");
        server.args(["s_server", "-quiet", "-www", "-accept", "8443", "-cert"]);
        server
            .arg(folder.join("cert.pem"))
            .arg("-key")
            .arg(folder.join("key.pem"));
        server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Secure(server.spawn().unwrap());
        network.within(|| {
            crate::command::eventually("openssl listens", std::time::Duration::from_secs(10), || {
                std::net::TcpStream::connect("127.0.0.1:8443").ok()
            })
        });
        server
    }
}

impl Drop for Secure {
    fn drop(&mut self) {
        kill_process(Pid::from_child(&self.0), Signal::KILL).unwrap();
        self.0.wait().unwrap();
    }
}

on_newest_containerd! {
    fn requests_one_after_the_other_share_a_connection(node) {
        let network = Network::new();
        let clients = server(&network);
        for (number, world) in COMPONENTS.into_iter().enumerate() {
            let said = get(node, &network, world, &["http://plain.test:8000/", "3"], &[], &[]).finish().ok().stdout;
            assert_eq!(said, "200\nhello\n".repeat(3), "{world:?}");
            assert_eq!(clients.load(Ordering::Relaxed), number as u32 + 1, "{world:?}");
        }
    }

    fn whom_to_trust_is_the_images_to_say_or_the_environments(node) {
        let network = Network::new();
        certificates(&node.folder);
        let _server = Secure::start(&network, &node.folder);
        let authority = std::fs::read(node.folder.join("ca.pem")).unwrap();
        for world in COMPONENTS {
            let url = ["https://secure.test:8443/"];
            let trusted = get(node, &network, world, &url, &[("etc/ssl/certs/ca-certificates.crt", &authority)], &[]);
            assert!(trusted.finish().ok().stdout.starts_with("200\n"), "{world:?}, by the image's file");
            let trusted = get(node, &network, world, &url, &[("own.pem", &authority)], &["SSL_CERT_FILE=/own.pem"]);
            assert!(trusted.finish().ok().stdout.starts_with("200\n"), "{world:?}, by the environment");
            get(node, &network, world, &url, &[], &[]).finish().expect_code(1).expect_error(&["TlsCertificateError"]);
            get(node, &network, world, &url, &[], &["SSL_CERT_FILE=/none.pem"]).finish().expect_code(1)
                .expect_error(&["SSL_CERT_FILE=/none.pem"]);
            // A name that the certificate does not have.
            let other = get(node, &network, world, &["https://plain.test:8443/"], &[("own.pem", &authority)], &["SSL_CERT_FILE=/own.pem"]);
            other.finish().expect_code(1).expect_error(&["TlsCertificateError"]);
        }
    }

    fn a_server_that_is_not_there_is_told_by_the_right_error(node) {
        let network = Network::new();
        for world in COMPONENTS {
            let fails = |url: &str, error: &str| {
                get(node, &network, world, &[url], &[], &[]).finish().expect_code(1).expect_error(&[error]);
            };
            fails("http://127.0.0.1:9/", "ConnectionRefused");
            fails("http://10.0.0.1/", "DestinationIpUnroutable");
            fails("http://no-such-name.test/", "DnsError");
        }
    }
}
