//! wasi:http services in pods: who asks gets answers, over HTTP/1.1 and HTTP/2, and SIGTERM lets what was begun end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::command::{eventually, run};
use crate::guests::Service;
use crate::service::{Reply, Served};

const SECOND: Duration = Duration::from_secs(1);

/// Reads until `text` was read.
#[track_caller]
fn expect(stream: &mut impl Read, text: &str) {
    let mut read = Vec::new();
    let mut byte = [0];
    while !read.ends_with(text.as_bytes()) {
        let count = stream.read(&mut byte).unwrap();
        assert_eq!(count, 1, "{text:?} did not come: {:?}", String::from_utf8_lossy(&read));
        read.push(byte[0]);
    }
}

/// How often the threads of a process have gone to sleep so far.
fn switches(pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .map(|task| {
            let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let mut lines = status.lines();
            let counted = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            counted.unwrap().trim().parse::<u64>().unwrap()
        })
        .sum()
}

on_every_containerd! {
    fn a_service_of_either_version_answers_and_ends_with_zero(node) {
        for service in Service::ALL {
            let served = Served::start(node, service, &[]);
            let reply = served.get("/hello");
            assert_eq!(reply.status, 200, "{service:?}: {reply:?}");
            assert!(reply.body.contains("hello"), "{service:?}: {reply:?}");
            assert_eq!(served.end(), 0, "{service:?}");
        }
    }
}

on_newest_containerd! {
    fn both_families_reach_it_and_a_connection_is_kept_for_requests_that_come_at_once(node) {
        for service in Service::ALL {
            let served = Served::start(node, service, &[]);
            for address in ["127.0.0.1", "::1"] {
                served.inside(|| {
                    let mut stream = served.connect_to(address).unwrap();
                    let request = "GET /hello HTTP/1.1\r\nHost: pod\r\n\r\n";
                    stream.write_all(request.repeat(3).as_bytes()).unwrap();
                    for _ in 0..3 {
                        expect(&mut stream, "hello\n");
                    }
                    stream.write_all(request.as_bytes()).unwrap();
                    expect(&mut stream, "hello\n");
                });
            }
            assert_eq!(served.end(), 0);
        }
    }

    fn a_service_is_told_whom_it_was_asked_as(node) {
        for service in Service::ALL {
            let served = Served::start(node, service, &[]);
            for request in [
                "GET /asked?x=1 HTTP/1.1\r\nHost: pod:81\r\nConnection: close\r\n\r\n",
                "GET http://pod:81/asked?x=1 HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n",
            ] {
                let reply = served.send(request);
                let is_told = |text| reply.body.contains(text);
                assert!(is_told("Http") && is_told(r#"Some("pod:81") /asked?x=1"#), "{service:?}: {reply:?}");
            }
            assert_eq!(served.end(), 0);
        }
    }

    fn http2_without_tls_is_understood_with_many_requests_on_one_connection(node) {
        for service in Service::ALL {
            let served = Served::start(node, service, &[]);
            let answers = served.inside(|| {
                let stream = served.connect().unwrap();
                stream.set_nonblocking(true).unwrap();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let stream = TokioIo::new(tokio::net::TcpStream::from_std(stream).unwrap());
                    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
                    tokio::spawn(connection);
                    let asked = (0..40).map(|_| {
                        let mut sender = sender.clone();
                        let request = Request::get("http://pod/hello").body(Empty::<Bytes>::new()).unwrap();
                        async move {
                            let response = sender.send_request(request).await.unwrap();
                            assert_eq!(response.status(), 200);
                            response.into_body().collect().await.unwrap().to_bytes()
                        }
                    });
                    futures_util::future::join_all(asked).await
                })
            });
            assert!(answers.len() == 40 && answers.iter().all(|answer| answer == "hello\n"), "{service:?}: {answers:?}");
            assert_eq!(served.end(), 0);
        }
    }

    fn a_body_is_answered_while_it_is_still_being_sent(node) {
        for service in Service::ALL {
            let served = Served::start(node, service, &[]);
            served.inside(|| {
                let mut stream = served.connect().unwrap();
                stream.write_all(b"POST /echo HTTP/1.1\r\nHost: pod\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
                for piece in ["first", "second", "third"] {
                    stream.write_all(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes()).unwrap();
                    expect(&mut stream, piece);
                }
                stream.write_all(b"0\r\n\r\n").unwrap();
                expect(&mut stream, "0\r\n\r\n");
            });
            assert_eq!(served.end(), 0);
        }
    }

    fn an_answer_may_take_longer_than_the_timeout_while_its_pieces_keep_coming(node) {
        for service in Service::ALL {
            let served = Served::start(node, service, &["request-timeout=2"]);
            served.inside(|| {
                let mut stream = served.connect().unwrap();
                stream.write_all(b"GET /drip HTTP/1.1\r\nHost: pod\r\n\r\n").unwrap();
                // One each 50 ms.
                for _ in 0..80 {
                    expect(&mut stream, "1\r\n.\r\n");
                }
            });
            assert_eq!(served.end(), 0);
        }
    }

    fn trailers_follow_the_body_to_a_client_that_takes_them(node) {
        for service in Service::ALL {
            let served = Served::start(node, service, &[]);
            let reply = served.send("GET /trailers HTTP/1.1\r\nHost: pod\r\nTE: trailers\r\nConnection: close\r\n\r\n");
            assert_eq!(reply.status, 200, "{service:?}: {reply:?}");
            assert!(reply.body.contains("with trailers"), "{service:?}: {reply:?}");
            let pid = served.pid.to_string();
            let curl = ["-t", &pid, "-n", "curl", "--silent", "--http2-prior-knowledge", "--include", "http://127.0.0.1:8080/trailers"];
            let said = run(Command::new("nsenter").args(curl)).ok();
            assert!(said.stdout.contains("x-checksum: 42"), "{service:?}: {said}");
            assert_eq!(served.end(), 0);
        }
    }

    fn the_port_is_the_annotations_else_the_environments(node) {
        let flags = ["--env", "PORT=7000"];
        let served = Served::start_with(node, Service::Http02, &[], &flags, 7000);
        assert!(served.get("/env").body.contains("PORT=7000"));
        assert_eq!(served.end(), 0);
        let served = Served::start_with(node, Service::Http02, &["http-port=9000"], &flags, 9000);
        assert_eq!(served.get("/").status, 200);
        assert_eq!(served.end(), 0);
    }

    fn an_instance_is_fresh_for_each_request_or_recycled_after_so_many(node) {
        let counts = |service, annotations: &[&str]| {
            let served = Served::start_with(node, service, annotations, &["--cpus", "1"], 8080);
            let counts: Vec<String> = (0..5)
                .map(|_| served.send("GET /count HTTP/1.0\r\nHost: pod\r\n\r\n").body)
                .collect();
            assert_eq!(served.end(), 0);
            counts.join(" ")
        };
        assert_eq!(counts(Service::Http02, &[]), "1 1 1 1 1");
        assert_eq!(counts(Service::Http02, &["instance=reuse(2)"]), "1 2 1 2 1");
        assert_eq!(counts(Service::Http03, &[]), "1 2 3 4 5");
        assert_eq!(counts(Service::Http03, &["instance=per-request"]), "1 1 1 1 1");
        assert_eq!(counts(Service::Http03, &["instance=reuse(3)"]), "1 2 3 1 2");
    }

    fn an_instance_is_kept_after_an_answer_of_a_known_length_and_one_without_a_body(node) {
        let served = Served::start_with(node, Service::Http03, &[], &["--cpus", "1"], 8080);
        let ask = |line: &str| served.send(&format!("{line} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n"));
        for count in [1, 3, 5] {
            let reply = ask("GET /sized");
            assert_eq!(reply.body, count.to_string(), "{reply:?}");
            assert!(reply.head.to_lowercase().contains("content-length: 1"), "{reply:?}");
            let reply = ask("HEAD /sized");
            assert!(reply.status == 200 && reply.body.is_empty(), "{reply:?}");
        }
        assert_eq!(served.end(), 0);
    }

    fn an_answer_to_head_has_no_body_over_http2(node) {
        for service in Service::ALL {
            let served = Served::start(node, service, &["max-body-size=1Ki"]);
            served.inside(|| {
                let stream = served.connect().unwrap();
                stream.set_nonblocking(true).unwrap();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let stream = TokioIo::new(tokio::net::TcpStream::from_std(stream).unwrap());
                    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
                    tokio::spawn(connection);
                    // The last one is refused by the host.
                    for (path, length, status) in [("sized", 0, 200), ("hello", 0, 200), ("drip", 0, 200), ("echo", 2000, 413)] {
                        let body = Full::new(Bytes::from(vec![b'x'; length]));
                        let request = Request::head(format!("http://pod/{path}")).body(body).unwrap();
                        let reply = sender.send_request(request).await.unwrap();
                        assert_eq!(reply.status(), status, "{service:?} {path}");
                        let body = reply.into_body().collect().await.unwrap().to_bytes();
                        assert!(body.is_empty(), "{service:?} {path}: {body:?}");
                    }
                });
            });
            assert_eq!(served.end(), 0);
        }
    }

    fn sigterm_lets_a_request_end_refuses_new_ones_and_exits_with_zero(node) {
        for service in Service::ALL {
            let served = Served::start(node, service, &[]);
            let reply = served.inside(|| {
                let mut stream = served.connect().unwrap();
                let mut idle = served.connect().unwrap();
                stream.write_all(b"GET /slow HTTP/1.1\r\nHost: pod\r\n\r\n").unwrap();
                // On its way into the guest, where it waits for 300 ms.
                std::thread::sleep(SECOND / 10);
                node.ctr(&["task", "kill", "--signal", "SIGTERM", &served.id]).ok();
                eventually("new connections are refused", SECOND, || served.connect().is_err().then_some(()));
                assert_eq!(idle.read(&mut [0]).unwrap(), 0, "a connection without a request is closed");
                Reply::read(stream)
            });
            assert!(reply.status == 200 && reply.body.contains("slow"), "{service:?}: {reply:?}");
            node.wait_until(&served.id, "STOPPED");
            assert_eq!(node.delete(&served.id), 0);
        }
    }

    fn sigterm_lets_requests_that_have_just_come_be_answered(node) {
        for service in Service::ALL {
            let served = Served::start(node, service, &[]);
            let signal = |name: &str| run(Command::new("kill").args(["-s", name, &served.pid.to_string()])).ok();
            let replies = served.inside(|| {
                signal("STOP");
                let streams: Vec<_> = (0..200)
                    .map(|_| {
                        let mut stream = served.connect().unwrap();
                        stream.write_all(b"GET /hello HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n").unwrap();
                        stream
                    })
                    .collect();
                signal("TERM");
                signal("CONT");
                streams.into_iter().map(Reply::read).collect::<Vec<_>>()
            });
            let answered = replies.iter().filter(|reply| reply.status == 200 && reply.body.contains("hello")).count();
            assert_eq!(answered, replies.len(), "{service:?}");
            node.wait_until(&served.id, "STOPPED");
            assert_eq!(node.delete(&served.id), 0);
        }
    }

    fn sigterm_cuts_no_request_of_a_guest_to_others_though_another_thread_opened_the_connection_and_has_ended(node) {
        let fetch = b"GET /fetch/ HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n";
        for service in Service::ALL {
            let served = Served::start_with(node, service, &[], &["--cpus", "2"], 8080);
            let reply = served.inside(|| {
                let other = TcpListener::bind("127.0.0.1:8000").unwrap();
                // The probe's connection is closed by then, and the first thread gets the next one.
                std::thread::sleep(SECOND / 10);
                let mut first = served.connect().unwrap();
                first.write_all(b"GET /hello HTTP/1.1\r\nHost: pod\r\n\r\n").unwrap();
                expect(&mut first, "0\r\n\r\n");
                let mut second = served.connect().unwrap();
                second.write_all(fetch).unwrap();
                let (mut asked, _) = other.accept().unwrap();
                asked.set_read_timeout(Some(SECOND * 20)).unwrap();
                let mut answer = |meanwhile: &dyn Fn()| {
                    expect(&mut asked, "\r\n\r\n");
                    meanwhile();
                    asked.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
                };
                answer(&|| ());
                assert!(Reply::read(second).body.contains("Ok(200)"), "{service:?}");
                first.write_all(fetch).unwrap();
                answer(&|| {
                    node.ctr(&["task", "kill", "--signal", "SIGTERM", &served.id]).ok();
                    eventually("new connections are refused", SECOND, || served.connect().is_err().then_some(()));
                    std::thread::sleep(SECOND / 5);
                });
                Reply::read(first)
            });
            assert!(reply.body.contains("Ok(200)"), "{service:?}: {reply:?}");
            node.wait_until(&served.id, "STOPPED");
            assert_eq!(node.delete(&served.id), 0);
        }
    }

    fn draining_ends_when_its_time_is_up(node) {
        for service in Service::ALL {
            let served = Served::start(node, service, &["drain-timeout=1"]);
            served.inside(|| {
                let mut stream = served.connect().unwrap();
                stream.write_all(b"GET /never HTTP/1.1\r\nHost: pod\r\n\r\n").unwrap();
                std::thread::sleep(SECOND / 10);
                node.ctr(&["task", "kill", "--signal", "SIGTERM", &served.id]).ok();
                node.wait_until(&served.id, "STOPPED");
            });
            served.log_line(&["cut off", "1 s of SIGTERM", "drain_timeout"]);
            assert_eq!(node.delete(&served.id), 0);
        }
    }

    fn the_access_log_has_a_line_for_each_request(node) {
        let served = Served::start(node, Service::Http02, &["access-log=true"]);
        served.get("/hello?x=1");
        served.log_line(&["127.0.0.1", "\"GET /hello?x=1 HTTP/1.1\" 200 6 "]);
        served.get("/trap");
        served.log_line(&["\"GET /trap HTTP/1.1\" 500 "]);
        served.get("/a\"b?c=d");
        served.log_line(&["\"GET /a%22b?c=d HTTP/1.1\" 200 "]);
        eventually("a line for a client that left", SECOND * 20, || {
            served.inside(|| {
                let mut stream = served.connect().unwrap();
                stream.write_all(b"GET /never HTTP/1.1\r\nHost: pod\r\n\r\n").unwrap();
                // On its way into the guest.
                std::thread::sleep(SECOND / 10);
            });
            served.log().contains("\"GET /never HTTP/1.1\" 499 0 ").then_some(())
        });
        assert_eq!(served.end(), 0);
    }

    fn threads_follow_the_cpu_limit(node) {
        let processors = std::thread::available_parallelism().unwrap().get();
        for (cpus, others) in [("1", 0), ("2", processors.min(2) - 1)] {
            let served = Served::start_with(node, Service::Http02, &[], &["--cpus", cpus], 8080);
            served.get("/");
            let tasks = std::fs::read_dir(format!("/proc/{}/task", served.pid)).unwrap();
            let names: Vec<String> = tasks
                .map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap())
                .collect();
            let named = names.iter().filter(|name| name.starts_with("http-")).count();
            assert_eq!(named, others, "with {cpus} cpus: {names:?}");
            assert_eq!(served.end(), 0);
        }
    }

    fn a_service_that_is_asked_now_and_then_sleeps_in_between(node) {
        for (service, instance) in [
            (Service::Http02, "instance=per-request"),
            (Service::Http02, "instance=reuse(100)"),
            (Service::Http03, "instance=auto"),
        ] {
            let served = Served::start(node, service, &[instance]);
            assert_eq!(served.get("/hello").status, 200);
            let sleeps = || switches(served.pid);
            // Its instance is kept for ten seconds, and what interrupts one that spins would be awake a hundred times in each.
            eventually("all of its threads sleep for half a second", SECOND * 8, || {
                let before = sleeps();
                std::thread::sleep(SECOND / 2);
                (sleeps() - before < 10).then_some(())
            });
            assert_eq!(served.end(), 0);
        }
    }

    fn a_client_that_leaves_in_the_middle_of_a_body_ends_its_instance(node) {
        for service in Service::ALL {
            let served = Served::start(node, service, &["max-concurrent-requests=1", "max-queued-requests=0"]);
            served.inside(|| {
                let mut stream = BufReader::new(served.connect().unwrap());
                stream.get_mut().write_all(b"GET /drip HTTP/1.1\r\nHost: pod\r\n\r\n").unwrap();
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                assert!(line.contains("200"), "{line}");
            });
            // Its place is free again.
            eventually("another one is answered", SECOND * 5, || (served.get("/").status == 200).then_some(()));
            assert_eq!(served.end(), 0);
        }
    }
}
