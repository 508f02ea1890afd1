//! Services and clients that misbehave: one request's trouble stays its own.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use http_body_util::Empty;
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::command::{eventually, run};
use crate::container::{Run, root_folder, spec};
use crate::guests::{Service, wat};
use crate::service::{Served, image, ticks};

const SECOND: Duration = Duration::from_secs(1);

/// A service of `wasi:http` 0.2 that does `start` while it is instantiated.
fn starting_with(start: &str) -> Vec<u8> {
    wat(&format!(
        r#"(component
             (import "wasi:http/types@0.2.0" (instance $types
               (export "incoming-request" (type (sub resource)))
               (export "response-outparam" (type (sub resource)))))
             (alias export $types "incoming-request" (type $request))
             (alias export $types "response-outparam" (type $outparam))
             (core module $module
               (func (export "handle") (param i32 i32))
               (func $start {start})
               (start $start))
             (core instance $core (instantiate $module))
             (func $handle (param "request" (own $request)) (param "response-out" (own $outparam))
               (canon lift (core func $core "handle")))
             (instance $handler (export "handle" (func $handle)))
             (export "wasi:http/incoming-handler@0.2.0" (instance $handler)))"#
    ))
}

/// Whether a process's network namespace has a TCP socket that listens.
fn listens(pid: u32) -> bool {
    ["tcp", "tcp6"].iter().any(|family| {
        let sockets = std::fs::read_to_string(format!("/proc/{pid}/net/{family}")).unwrap();
        // The fourth word is the state, and 0A is TCP_LISTEN.
        sockets.lines().any(|line| line.split_whitespace().nth(3) == Some("0A"))
    })
}

/// The processor time that `served` uses is no longer growing.
#[track_caller]
fn expect_rest(served: &Served<'_>) {
    eventually("the guest rests", SECOND * 10, || {
        let before = served.ticks();
        std::thread::sleep(SECOND / 2);
        (served.ticks() - before < 10).then_some(())
    });
}

on_newest_containerd! {
    fn a_service_does_not_listen_before_an_instance_could_be_made_and_ends_meanwhile_when_it_is_told_to(node) {
        let started = |start: &str| {
            let root = root_folder(node, &[("service.wasm", &starting_with(start))]);
            Run::of_spec(node, &spec(node, &root, &["/service.wasm"]))
        };
        let (id, pid) = started("").detach();
        eventually("a service that can be instantiated listens", SECOND * 10, || listens(pid).then_some(()));
        node.remove(&id);

        let (id, pid) = started("(loop (br 0))").detach();
        eventually("the start function has run for a while", SECOND * 10, || (ticks(pid) > 30).then_some(()));
        assert!(!listens(pid));
        node.ctr(&["task", "kill", "--signal", "SIGTERM", &id]).ok();
        node.wait_until(&id, "STOPPED");
        assert_eq!(node.delete(&id), 0);

        started("unreachable").finish().expect_error(&["unreachable"]);
    }

    fn a_trap_is_500_for_its_own_request_and_a_line_in_the_log(node) {
        for service in Service::ALL {
            let served = Served::start(node, service, &[]);
            assert_eq!(served.get("/trap").status, 500, "{service:?}");
            served.log_line(&["told to trap"]);
            let line = served.log_line(&["wasm trap", "unreachable"]);
            let log = served.log();
            assert_eq!(log.lines().filter(|other| other.contains("wasm trap")).count(), 1, "{line}\n{log}");
            assert_eq!(served.get("/").status, 200, "{service:?}");
            assert_eq!(served.end(), 0);
        }
    }

    fn what_came_before_a_trap_reaches_the_client_and_is_no_whole_answer(node) {
        for service in Service::ALL {
            for version in ["--http1.1", "--http2-prior-knowledge"] {
                let served = Served::start(node, service, &[]);
                let pid = served.pid.to_string();
                let curl = ["-t", &pid, "-n", "curl", "--silent", version, "http://127.0.0.1:8080/torn"];
                let said = run(Command::new("nsenter").args(curl));
                // HTTP/2 drops what is queued of a stream that is reset.
                let may_be_empty = version != "--http1.1";
                let is_what_came = said.stdout == "torn" || (may_be_empty && said.stdout.is_empty());
                assert!(is_what_came, "{service:?} {version}: {said}");
                assert_ne!(said.code, Some(0), "{service:?} {version}: {said}");
                served.log_line(&["wasm trap", "unreachable"]);
                assert_eq!(served.get("/").status, 200, "{service:?}");
                assert_eq!(served.end(), 0);
            }
        }
    }

    fn a_stack_is_as_deep_as_the_pod_says_for_each_request(node) {
        for service in Service::ALL {
            let served = Served::start(node, service, &[]);
            assert_eq!(served.get("/deep").status, 500, "{service:?}");
            served.log_line(&["call stack exhausted"]);
            assert_eq!(served.get("/").status, 200, "{service:?}");
            assert_eq!(served.end(), 0);
            let served = Served::start(node, service, &["stack-size=8Mi"]);
            for _ in 0..3 {
                let reply = served.get("/deep");
                assert!(reply.status == 200 && reply.body.contains("40000"), "{service:?}: {reply:?}");
            }
            assert_eq!(served.end(), 0);
        }
    }

    fn a_guest_that_never_answers_or_spins_is_504_and_others_are_answered_meanwhile(node) {
        for service in Service::ALL {
            let served = Served::start_with(node, service, &["request-timeout=1"], &["--cpus", "1"], 8080);
            for path in ["/never", "/spin"] {
                let begun = Instant::now();
                served.inside(|| {
                    let mut stream = served.connect().unwrap();
                    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: pod\r\n\r\n").as_bytes()).unwrap();
                    std::thread::sleep(SECOND / 10);
                    assert_eq!(served.get("/").status, 200, "{service:?}, beside {path}");
                    assert_eq!(crate::service::Reply::read(stream).status, 504, "{service:?} {path}");
                });
                assert!(begun.elapsed() < SECOND * 4, "{service:?} {path}: {:?}", begun.elapsed());
                served.log_line(&[path, "request_timeout"]);
            }
            expect_rest(&served);
            assert_eq!(served.end(), 0);
        }
    }

    fn a_guest_that_goes_on_after_its_answer_is_ended_and_leaves_its_place_to_others(node) {
        for service in Service::ALL {
            let served = Served::start(node, service, &["request-timeout=1", "max-concurrent-requests=1"]);
            // More of them than the pool has places.
            for _ in 0..4 {
                eventually("it is answered", SECOND * 20, || {
                    let reply = served.get("/linger");
                    (reply.status == 200 && reply.body.contains("linger")).then_some(())
                });
            }
            served.log_line(&["an instance ended", "1 s after its answer", "request_timeout"]);
            expect_rest(&served);
            assert_eq!(served.end(), 0);
        }
    }

    fn a_client_that_leaves_ends_a_guest_that_spins_for_it(node) {
        for service in Service::ALL {
            let served = Served::start(node, service, &["request-timeout=3600"]);
            served.inside(|| {
                let mut stream = served.connect().unwrap();
                stream.write_all(b"GET /spin HTTP/1.1\r\nHost: pod\r\n\r\n").unwrap();
                let before = served.ticks();
                eventually("the guest spins", SECOND * 10, || (served.ticks() > before + 20).then_some(()));
            });
            expect_rest(&served);
            assert_eq!(served.get("/").status, 200);
            assert_eq!(served.end(), 0);
        }
    }

    fn a_guest_that_allocates_without_end_is_500_and_its_container_lives(node) {
        for service in Service::ALL {
            let flags = ["--memory-limit", "67108864"];
            let served = Served::start_with(node, service, &[], &flags, 8080);
            for _ in 0..3 {
                assert_eq!(served.get("/grow").status, 500, "{service:?}");
            }
            assert_eq!(served.get("/").status, 200, "{service:?}");
            assert_eq!(served.end(), 0);
        }
    }

    fn no_client_gets_more_than_was_promised(node) {
        for service in Service::ALL {
            let served = Served::start(node, service, &[]);
            let reply = served.get("/overrun");
            assert!(reply.body.len() <= 5, "{service:?}: {reply:?}");
            assert_eq!(served.get("/").status, 200);
            assert_eq!(served.end(), 0);
        }
    }

    fn so_many_are_answered_so_many_wait_and_the_next_is_told_503(node) {
        for service in Service::ALL {
            let served = Served::start(node, service, &["max-concurrent-requests=1", "max-queued-requests=1"]);
            served.inside(|| {
                let ask = || {
                    let mut stream = served.connect().unwrap();
                    stream.write_all(b"GET /slow HTTP/1.0\r\nHost: pod\r\n\r\n").unwrap();
                    std::thread::sleep(SECOND / 20);
                    stream
                };
                let replies: Vec<_> = [ask(), ask(), ask()].map(crate::service::Reply::read).into();
                let statuses: Vec<u16> = replies.iter().map(|reply| reply.status).collect();
                assert_eq!(statuses, [200, 200, 503], "{service:?}");
                assert!(replies[2].head.to_lowercase().contains("retry-after: 1"), "{:?}", replies[2]);
            });
            assert_eq!(served.end(), 0);
        }
    }

    fn a_connection_beyond_the_most_waits_until_another_is_closed_or_the_service_ends(node) {
        for service in Service::ALL {
            let served = Served::start(node, service, &["max-connections=2"]);
            let ask = || {
                let mut stream = served.connect().unwrap();
                stream.write_all(b"GET / HTTP/1.1\r\nHost: pod\r\n\r\n").unwrap();
                stream.set_read_timeout(Some(SECOND / 2)).unwrap();
                stream
            };
            let is_answered = |mut stream: &TcpStream| stream.read(&mut [0; 4096]).is_ok_and(|size| size > 0);
            let (_third, fourth) = served.inside(|| {
                let (first, second) = (ask(), ask());
                assert!(is_answered(&first) && is_answered(&second), "{service:?}");
                let third = ask();
                assert!(!is_answered(&third), "{service:?}");
                served.log_line(&["2 connections are open", "max_connections"]);
                drop((first, second));
                assert!(is_answered(&third), "{service:?}: a place is free");
                (third, ask())
            });
            assert!(is_answered(&fourth), "{service:?}: two are free");
            let fifth = served.inside(ask);
            assert!(!is_answered(&fifth), "{service:?}");
            assert_eq!(served.end(), 0);
            assert!(is_answered(&fifth), "{service:?}: it had come before the end");
        }
    }

    fn clients_of_http2_that_let_nothing_be_sent_keep_their_places_for_a_minute(node) {
        for service in Service::ALL {
            let served = Served::start(node, service, &["max-concurrent-requests=2", "max-queued-requests=0"]);
            served.inside(|| {
                let stream = served.connect().unwrap();
                stream.set_nonblocking(true).unwrap();
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
                let _kept = runtime.block_on(async {
                    let stream = TokioIo::new(tokio::net::TcpStream::from_std(stream).unwrap());
                    let mut http = http2::Builder::new(TokioExecutor::new());
                    let opened = http.initial_stream_window_size(0).handshake(stream).await;
                    let (mut sender, connection) = opened.unwrap();
                    tokio::spawn(connection);
                    let mut kept = Vec::new();
                    for path in ["hello", "drip"] {
                        let request = Request::get(format!("http://pod/{path}")).body(Empty::<Bytes>::new()).unwrap();
                        let reply = sender.send_request(request).await.unwrap();
                        assert_eq!(reply.status(), 200, "{service:?} {path}");
                        kept.push(reply);
                    }
                    (sender, kept)
                });
                assert_eq!(served.get("/hello").status, 503, "{service:?}");
                eventually("both places are free", SECOND * 90, || {
                    let replies = [served.connect(), served.connect()].map(|stream| {
                        let mut stream = stream.unwrap();
                        stream.write_all(b"GET /slow HTTP/1.0\r\nHost: pod\r\n\r\n").unwrap();
                        stream
                    });
                    replies.map(crate::service::Reply::read).iter().all(|reply| reply.status == 200).then_some(())
                });
            });
            assert_eq!(served.end(), 0, "{service:?}");
        }
    }

    fn what_is_too_large_or_no_http_never_reaches_the_guest(node) {
        let served = Served::start(node, Service::Http02, &["max-header-size=8Ki", "max-body-size=1Ki"]);
        let large = "x".repeat(20_000);
        let status = |request: &str| served.send(request).status;
        assert_eq!(status(&format!("GET / HTTP/1.1\r\nHost: pod\r\nX: {large}\r\n\r\n")), 431);
        assert_eq!(status("POST /echo HTTP/1.1\r\nHost: pod\r\nContent-Length: 1025\r\nConnection: close\r\n\r\n"), 413);
        assert_eq!(status("GET / HTTP/1.1\r\nConnection: close\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.1\r\nHost: pod\r\nHost: pod\r\nConnection: close\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.1\r\nHost: pod/path\r\nConnection: close\r\n\r\n"), 400);
        assert_eq!(status("nonsense\r\n\r\n"), 400);
        let chunked = "POST /echo HTTP/1.1\r\nHost: pod\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
        // Told too late for a status: the guest is given an error.
        let reply = served.send(&format!("{chunked}7d0\r\n{}\r\n0\r\n\r\n", &large[..2000]));
        assert!(!reply.body.contains(&large[..1100]), "{reply:?}");
        assert_eq!(status("GET / HTTP/1.0\r\nHost: pod\r\n\r\n"), 200);
        assert_eq!(served.end(), 0);
    }

    fn a_port_that_cannot_be_had_is_said_when_the_container_is_made(node) {
        let image = image(node, Service::Http02);
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        node.run(&image).flag(&["--net-host", "--env", &format!("PORT={port}")]).fail()
            .expect_refusal(&[&format!("port {port} is in use")]);
        node.run(&image).flag(&["--user", "1000", "--env", "PORT=80"]).fail()
            .expect_refusal(&["port 80 is privileged", "NET_BIND_SERVICE"]);
        node.run(&image).flag(&["--env", "PORT=http"]).fail().expect_refusal(&["PORT", "\"http\"", "1 to 65535"]);
        // With the capability, which root has here.
        assert_eq!(Served::start_with(node, Service::Http02, &[], &["--env", "PORT=80"], 80).end(), 0);
    }

    fn an_annotation_out_of_range_fails_the_container_with_key_value_and_range(node) {
        let image = image(node, Service::Http02);
        for (annotation, words) in [
            ("http-port=65536", ["http-port", "65536", "0 to 65535"]),
            ("instance=reuse(0)", ["instance", "reuse(0)", "reuse(1) to reuse(1000000000)"]),
            ("instance=forever", ["instance", "forever", "per-request or reuse(N)"]),
            ("request-timeout=0", ["request-timeout", "0", "1 to 86400"]),
        ] {
            node.run(&image).flag(&["--annotation", &format!("kubewasi.dev/{annotation}")]).fail().expect_refusal(&words);
        }
    }
}
