//! HTTP services in each language run from the image that their recipe builds, as their manifest says (`examples/`).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::command::eventually;
use crate::containerd::Node;
use crate::cri::{crictl, exit_code};
use crate::languages::{MOMENTS, prepare, says, set};
use crate::manifest::{Manifest, import_example};
use crate::mixed::port_to_listen_at;
use crate::pod::{PID_OF_CONTAINER, Pod};

/// An answer without its headers.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    body: String,
}

/// A service of an example in a pod that has the node's network, on a port of its own.
struct Service<'a> {
    node: &'a Node,
    pod: Pod<'a>,
    id: String,
    name: &'static str,
    port: u16,
}

impl<'a> Service<'a> {
    /// Starts the container `name` of an example and waits until it listens.
    #[track_caller]
    fn start(node: &'a mut Node, example: &str, name: &'static str) -> Service<'a> {
        prepare(node);
        import_example(node, &[example]);
        let pod = Pod::start(node, PID_OF_CONTAINER);
        Service::start_in(node, pod, &Manifest::of(node, example), name, |_| ())
    }

    #[track_caller]
    fn start_in(
        node: &'a Node,
        pod: Pod<'a>,
        manifest: &Manifest,
        name: &'static str,
        edit: impl FnOnce(&mut Value),
    ) -> Service<'a> {
        let port = port_to_listen_at();
        let id = manifest.run(&pod, name, |config| {
            set(config, "PORT", &port.to_string());
            edit(config);
        });
        eventually("the service listens", MOMENTS, || {
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        Service {
            node,
            pod,
            id,
            name,
            port,
        }
    }

    #[track_caller]
    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "", "")
    }

    #[track_caller]
    fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let mut stream = self.send(method, path, headers, body);
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("no answer: {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer {
            status,
            body: body.into(),
        }
    }

    /// Sends a request, by HTTP/1.0 for an answer without chunks.
    #[track_caller]
    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(MOMENTS)).unwrap();
        let length = body.len();
        let request =
            format!("{method} {path} HTTP/1.0\r\nHost: example\r\nContent-Length: {length}\r\n{headers}\r\n{body}");
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    /// Ends the service as the kubelet does; it drains and exits with 0.
    #[track_caller]
    fn end(self) {
        crictl(self.node, &["stop", "--timeout", "20", &self.id]).ok();
        assert_eq!(exit_code(self.node, &self.id), 0, "{}", self.pod.log(self.name));
        self.pod.end();
    }
}

fn ok(body: &str) -> Answer {
    Answer {
        status: 200,
        body: body.into(),
    }
}

on_every_containerd! {
    fn a_service_in_rust_greets_and_echoes(node) {
        let service = Service::start(node, "rust-http", "service");
        assert_eq!(service.get("/ready"), ok("ready\n"));
        assert_eq!(service.get("/"), ok("Hello, world, from Rust\n"));
        let long = "again and ".repeat(50_000);
        assert_eq!(service.ask("POST", "/echo", "", &long), ok(&long));
        assert_eq!(service.get("/nothing").status, 404);
        service.end();
    }

    fn a_service_in_rust_for_wasi_0_3_serves_many_at_once(node) {
        let service = Service::start(node, "rust-http-p3", "service");
        assert_eq!(service.get("/"), ok("Hello from Rust and WASI 0.3\n"));
        let since = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| assert_eq!(service.get("/wait"), ok("waited\n")));
            }
        });
        assert!(since.elapsed() >= Duration::from_secs(1));
        assert!(since.elapsed() < Duration::from_secs(10), "one by one they take 20 s: {:?}", since.elapsed());
        service.end();
    }

    fn a_service_in_go_greets_by_name(node) {
        let service = Service::start(node, "go-http", "service");
        assert_eq!(service.get("/"), ok("Hello, world, from Go\n"));
        assert_eq!(service.get("/Ada%20L"), ok("Hello, Ada L, from Go\n"));
        assert_eq!(service.get("/%zz").status, 400);
        let long = "x".repeat(10_000);
        assert_eq!(service.get(&format!("/{long}")), ok(&format!("Hello, {long}, from Go\n")));
        service.end();
    }

    fn a_service_in_c_greets_by_name(node) {
        let service = Service::start(node, "c-http", "service");
        assert_eq!(service.get("/"), ok("Hello, world, from C\n"));
        assert_eq!(service.get("/Ada"), ok("Hello, Ada, from C\n"));
        assert_eq!(service.ask("PUT", "/", "", "").status, 405);
        service.end();
    }
}

on_newest_containerd! {
    fn a_service_in_rust_counts_in_a_native_redis_of_its_pod(node) {
        prepare(node);
        import_example(node, &["rust-visits"]);
        import_example(node, &["redis", "native"]);
        let manifest = Manifest::of(node, "rust-visits");
        let pod = Pod::start(node, PID_OF_CONTAINER);
        // The pod has the node's network, so its ports are not the manifest's.
        let port = port_to_listen_at().to_string();
        let redis = manifest.run(&pod, "redis", |config| {
            let args = config["args"].as_array_mut().unwrap();
            *args.iter_mut().find(|arg| **arg == "6379").unwrap() = json!(port);
        });
        says(&pod, "redis", "Ready to accept connections");
        let service = Service::start_in(node, pod, &manifest, "visits", |config| {
            set(config, "REDIS", &format!("127.0.0.1:{port}"));
        });
        assert_eq!(service.get("/"), ok("visit 1\n"));
        assert_eq!(service.get("/"), ok("visit 2\n"));
        crictl(node, &["stop", "--timeout", "20", &redis]).ok();
        assert_eq!(service.get("/").status, 503);
        says(&service.pod, "visits", "cannot connect to 127.0.0.1");
        service.end();
    }

    fn an_api_in_python_takes_settings_from_a_config_map_and_its_token_from_a_secret(node) {
        let service = Service::start(node, "python-api", "api");
        assert_eq!(service.get("/ready").status, 200);
        assert_eq!(service.get("/prices/apple").status, 401);
        let token = "Authorization: Bearer not-so-secret\r\n";
        let price = service.ask("GET", "/prices/apple", token, "");
        assert_eq!(price, ok(r#"{"article": "apple", "cents": 30, "currency": "EUR"}"#));
        assert_eq!(service.ask("GET", "/prices/plum", token, "").status, 404);
        service.end();
    }

    fn a_service_in_python_for_wasi_0_3_streams_to_two_clients_at_once(node) {
        let service = Service::start(node, "python-http-p3", "service");
        assert_eq!(service.get("/nothing").status, 404);
        let mut slow = service.send("GET", "/1000", "", "");
        // The first line is here while the last is minutes away, and the other client is served to its end.
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        while !text.ends_with(b"1\n") {
            let read = slow.read(&mut buffer).unwrap();
            assert_ne!(read, 0, "{}", String::from_utf8_lossy(&text));
            text.extend_from_slice(&buffer[..read]);
        }
        assert_eq!(service.get("/3"), ok("1\n2\n3\n"));
        drop(slow);
        service.end();
    }

    fn a_service_in_javascript_answers_fetch_events(node) {
        let service = Service::start(node, "js-http", "service");
        assert_eq!(service.ask("POST", "/slug", "", "Hello, WASI world!"), ok(r#"{"slug":"hello-wasi-world"}"#));
        assert_eq!(service.get("/slug").status, 405);
        assert_eq!(service.get("/nothing").status, 404);
        service.end();
    }
}
