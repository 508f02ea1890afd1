//! Metrics: what a server shows at its socket of the node and of each guest, and a service at its pod's port.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::json;

use crate::command::eventually;
use crate::containerd::Node;
use crate::cri::{self, crictl, exit_code};
use crate::guests::{Probe, Service};
use crate::image_builder::Image;
use crate::mixed::port_to_listen_at;
use crate::pod::{PID_OF_CONTAINER, Pod};
use crate::server::status;
use crate::service::{self, Served};

/// How long a number may take to be what it will be.
const SOON: Duration = Duration::from_secs(10);

/// What the server of `node` shows.
#[track_caller]
fn shown(node: &Node) -> String {
    let status = status(node);
    let mut stream = UnixStream::connect(status["metrics"].as_str().unwrap()).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert!(
        text.contains("application/openmetrics-text") && text.ends_with("# EOF\n"),
        "{text}"
    );
    text
}

/// The value of the metric `name` whose labels contain each of `labels`.
fn value(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let is = |found: &str| {
        found
            .strip_prefix(name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
    };
    let mut lines = text.lines().filter_map(|line| line.rsplit_once(' '));
    let (_, value) = lines.find(|(found, _)| is(found) && labels.iter().all(|label| found.contains(label)))?;
    Some(value.parse().unwrap())
}

/// Waits until the metric has the value.
#[track_caller]
fn expect(node: &Node, name: &str, labels: &[&str], wanted: f64) {
    eventually(&format!("{name} {labels:?} is {wanted}"), SOON, || {
        (value(&shown(node), name, labels) == Some(wanted)).then_some(())
    });
}

fn probe(node: &Node) -> Image {
    let image = Image::with_files("probe", &[("/probe.wasm", &Probe::P1.bytes())]).platform("wasi", "wasm");
    node.import(&image);
    image
}

on_every_containerd! {
    fn starts_and_exits_are_counted_by_cause_and_what_was_compiled_once(node) {
        let image = probe(node);
        let run = |args: &[&str], code| node.run(&image).args(&[&["/probe.wasm"], args].concat()).finish().expect_code(code);
        // As long as it lives, the others have the same server.
        let (idle, _) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        run(&["exit", "0"], 0);
        run(&["exit", "7"], 7);
        run(&["trap"], 134);
        let limit = (32 << 20).to_string();
        node.run(&image).flag(&["--memory-limit", &limit])
            .args(&["/probe.wasm", "flood", "/dev/shm/file", "60"]).finish().expect_code(137);
        let (killed, _) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        node.remove(&killed);
        let text = shown(node);
        for (cause, count) in [("success", 1.0), ("error", 1.0), ("trap", 1.0), ("oom", 1.0), ("signal", 1.0)] {
            let cause = format!("cause=\"{cause}\"");
            assert_eq!(value(&text, "kubewasi_exits_total", &[&cause]), Some(count), "{text}");
        }
        let wasm = ["kind=\"wasm\""];
        assert_eq!(value(&text, "kubewasi_starts_total", &wasm), Some(6.0), "{text}");
        assert_eq!(value(&text, "kubewasi_start_duration_seconds_count", &wasm), Some(6.0), "{text}");
        assert!(value(&text, "kubewasi_start_duration_seconds_sum", &wasm).is_some_and(|took| took > 0.0), "{text}");
        assert_eq!(value(&text, "kubewasi_cache_misses_total", &[]), Some(1.0), "{text}");
        assert_eq!(value(&text, "kubewasi_cache_hits_total", &[]), Some(5.0), "{text}");
        assert_eq!(value(&text, "kubewasi_compile_duration_seconds_count", &[]), Some(1.0), "{text}");
        // Without a pod a guest's own numbers end with it.
        let of = |id: &str| value(&text, "kubewasi_guest_starts_total", &[&format!("container=\"{id}\"")]);
        assert_eq!((of(&idle), of(&killed)), (Some(1.0), None), "{text}");
        node.remove(&idle);
    }
}

on_newest_containerd! {
    fn a_container_that_cannot_be_made_is_counted_and_nothing_else_is(node) {
        let image = probe(node);
        let (idle, _) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        node.run(&image).flag(&["--annotation", "kubewasi.dev/metrics-port=65536"]).args(&["/probe.wasm", "exit", "0"])
            .fail().expect_refusal(&["kubewasi.dev/metrics-port", "65536", "0 to 65535"]);
        let text = shown(node);
        assert_eq!(value(&text, "kubewasi_create_failures_total", &[]), Some(1.0), "{text}");
        assert_eq!(value(&text, "kubewasi_starts_total", &["kind=\"wasm\""]), Some(1.0), "{text}");
        node.remove(&idle);
    }

    fn requests_of_a_service_are_counted_by_code_with_their_latency_and_its_instances(node) {
        for service in Service::ALL {
            let served = Served::start(node, service, &["max-concurrent-requests=1", "max-queued-requests=0"]);
            let of = format!("container=\"{}\"", served.id);
            for path in ["/hello", "/hello", "/trap"] {
                served.get(path);
            }
            expect(node, "kubewasi_http_requests_total", &[&of, "code=\"200\""], 2.0);
            expect(node, "kubewasi_http_requests_total", &[&of, "code=\"500\""], 1.0);
            expect(node, "kubewasi_http_request_duration_seconds_count", &[&of], 3.0);
            expect(node, "kubewasi_http_request_duration_seconds_bucket", &[&of, "le=\"+Inf\""], 3.0);
            let waiting = served.inside(|| {
                let mut stream = served.connect().unwrap();
                stream.write_all(b"GET /never HTTP/1.1\r\nHost: pod\r\n\r\n").unwrap();
                stream
            });
            expect(node, "kubewasi_http_requests_in_flight", &[&of], 1.0);
            // Another thread may keep one that answered before.
            assert!(value(&shown(node), "kubewasi_http_instances", &[&of]).is_some_and(|count| count >= 1.0));
            assert_eq!(served.get("/hello").status, 503);
            expect(node, "kubewasi_http_requests_total", &[&of, "code=\"503\""], 1.0);
            drop(waiting);
            expect(node, "kubewasi_http_requests_total", &[&of, "code=\"499\""], 1.0);
            expect(node, "kubewasi_http_requests_in_flight", &[&of], 0.0);
            assert_eq!(served.end(), 0);
        }
    }

    fn a_guest_has_the_names_of_its_pod_and_counts_on_when_it_is_made_anew(node) {
        cri::prepare(node);
        let image = Image::with_files("web", &[("/service.wasm", &Service::Http02.bytes())]).entrypoint(&["/service.wasm"]);
        node.import_into(&image, "k8s.io").ok();
        let pod = Pod::start(node, PID_OF_CONTAINER);
        let of = ["namespace=\"default\",pod=\"mixed\",container=\"web\""];
        for start in 1..=2 {
            let port = port_to_listen_at().to_string();
            let id = pod.run("web", &image.name, &[], |config| {
                config["metadata"]["attempt"] = start.into();
                config["envs"] = json!([{"key": "PORT", "value": port}]);
            });
            eventually("the service answers", SOON, || {
                let mut stream = std::net::TcpStream::connect(format!("127.0.0.1:{port}")).ok()?;
                stream.write_all(b"GET /hello HTTP/1.0\r\nHost: pod\r\n\r\n").ok()?;
                let mut text = String::new();
                stream.read_to_string(&mut text).ok()?;
                text.contains("hello").then_some(())
            });
            expect(node, "kubewasi_http_requests_total", &[of[0], "code=\"200\""], 1.0);
            crictl(node, &["stop", "--timeout", "20", &id]).ok();
            assert_eq!(exit_code(node, &id), 0);
            crictl(node, &["rm", &id]).ok();
            expect(node, "kubewasi_guest_starts_total", &of, f64::from(start));
            expect(node, "kubewasi_guest_exits_total", &[of[0], "cause=\"success\""], f64::from(start));
        }
        assert_eq!(value(&shown(node), "kubewasi_starts_total", &["kind=\"pod\""]), Some(1.0));
        let other = Pod::start_edited(node, "wasi", |config| config["metadata"]["name"] = "other".into());
        pod.end();
        assert_eq!(value(&shown(node), "kubewasi_guest_starts_total", &of), None, "it ends with its pod");
        other.end();
    }

    fn a_service_shows_its_own_metrics_on_the_port_that_its_pod_asks_for(node) {
        for service in Service::ALL {
            let served = Served::start(node, service, &["metrics-port=9464"]);
            assert_eq!(served.get("/hello").status, 200);
            let scraped = served.at(9464);
            let reply = scraped.get("/metrics");
            assert_eq!(reply.status, 200, "{reply:?}");
            assert!(reply.head.contains("application/openmetrics-text"), "{reply:?}");
            assert_eq!(value(&reply.body, "kubewasi_http_requests_total", &["code=\"200\""]), Some(1.0), "{reply:?}");
            assert_eq!(value(&reply.body, "kubewasi_http_requests_in_flight", &[]), Some(0.0), "{reply:?}");
            assert_eq!(scraped.get("/hello").status, 404, "it is not the service");
            let post = scraped.send("POST /metrics HTTP/1.1\r\nHost: pod\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
            assert_eq!(post.status, 405, "{post:?}");
            assert_eq!(scraped.end(), 0);
        }
    }

    fn requests_at_the_same_time_share_an_instance_of_a_0_3_service(node) {
        let served = Served::start_with(node, Service::Http03, &[], &["--cpus", "1"], 8080);
        let of = format!("container=\"{}\"", served.id);
        let waiting = served.inside(|| {
            let mut stream = served.connect().unwrap();
            stream.write_all(b"GET /never HTTP/1.1\r\nHost: pod\r\n\r\n").unwrap();
            stream
        });
        expect(node, "kubewasi_http_requests_in_flight", &[&of], 1.0);
        for number in 2..=10 {
            let reply = served.get("/count");
            assert!(reply.body.contains(&format!("\r\n{number}")), "the instance answers its {number}th: {reply:?}");
        }
        expect(node, "kubewasi_http_instances", &[&of], 1.0);
        drop(waiting);
        assert_eq!(served.end(), 0);
    }

    fn a_metrics_port_that_is_in_use_fails_the_container_with_the_annotation(node) {
        let image = service::image(node, Service::Http02);
        let other = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let held = other.local_addr().unwrap().port();
        let (port, metrics) = (format!("PORT={}", port_to_listen_at()), format!("kubewasi.dev/metrics-port={held}"));
        node.run(&image).flag(&["--net-host", "--env", &port, "--annotation", &metrics]).fail()
            .expect_refusal(&[&format!("port {held} is in use"), "kubewasi.dev/metrics-port"]);
        node.run(&image).flag(&["--annotation", "kubewasi.dev/metrics-port=8080"]).fail()
            .expect_refusal(&["port 8080 is the service's own", "kubewasi.dev/metrics-port"]);
    }
}
