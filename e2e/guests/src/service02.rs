//! A `wasi:http/incoming-handler` 0.2 service.

#[path = "answers.rs"]
mod answers;

use answers::{Answer, OTHER, answer, spin};
use wasip2::clocks::monotonic_clock::subscribe_duration;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingRequest, OutgoingBody, OutgoingRequest, OutgoingResponse, ResponseOutparam, Scheme,
};
use wasip2::io::streams::StreamError;

struct Service;

wasip2::http::proxy::export!(Service);

fn wait(milliseconds: u64) {
    subscribe_duration(milliseconds * 1_000_000).block();
}

/// Begins an answer; its body is to be written.
fn begin(out: ResponseOutparam, length: Option<usize>) -> OutgoingBody {
    let headers = Fields::new();
    if let Some(length) = length {
        headers
            .append("content-length", length.to_string().as_bytes())
            .expect("a header");
    }
    let response = OutgoingResponse::new(headers);
    let body = response.body().expect("a body");
    ResponseOutparam::set(out, Ok(response));
    body
}

fn send(out: ResponseOutparam, text: &[u8], trailers: Option<Fields>) {
    finish(begin(out, None), text, trailers);
}

fn finish(body: OutgoingBody, text: &[u8], trailers: Option<Fields>) {
    let stream = body.write().expect("a stream");
    for piece in text.chunks(4096) {
        stream.blocking_write_and_flush(piece).expect("written");
    }
    drop(stream);
    OutgoingBody::finish(body, trailers).expect("finished");
}

/// The status of what the other one answers.
fn fetch(path: &str) -> Result<u16, ErrorCode> {
    let request = OutgoingRequest::new(Fields::new());
    let set = request
        .set_scheme(Some(&Scheme::Http))
        .and_then(|()| request.set_authority(Some(OTHER)))
        .and_then(|()| request.set_path_with_query(Some(path)));
    set.expect("a request");
    let response = outgoing_handler::handle(request, None)?;
    response.subscribe().block();
    Ok(response.get().expect("an answer").expect("the first look")?.status())
}

impl wasip2::exports::http::incoming_handler::Guest for Service {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        match answer(&path) {
            Answer::Text(text) => send(out, text.as_bytes(), None),
            Answer::Sized(text) => finish(begin(out, Some(text.len())), text.as_bytes(), None),
            Answer::Asked => {
                let asked = format!("{:?} {:?} {path}\n", request.scheme(), request.authority());
                send(out, asked.as_bytes(), None);
            }
            Answer::Later(milliseconds, text) => {
                wait(milliseconds);
                send(out, text.as_bytes(), None);
            }
            Answer::Echo => {
                let incoming = request.consume().expect("the body");
                let input = incoming.stream().expect("a stream");
                let body = begin(out, None);
                let output = body.write().expect("a stream");
                loop {
                    match input.blocking_read(4096) {
                        Ok(piece) => output.blocking_write_and_flush(&piece).expect("written"),
                        Err(StreamError::Closed) => break,
                        Err(error) => panic!("the body cannot be read: {error}"),
                    }
                }
                drop(output);
                OutgoingBody::finish(body, None).expect("finished");
            }
            Answer::Drip => {
                let body = begin(out, None);
                let stream = body.write().expect("a stream");
                while stream.blocking_write_and_flush(b".").is_ok() {
                    wait(50);
                }
            }
            Answer::Overrun => {
                let body = begin(out, Some(5));
                let stream = body.write().expect("a stream");
                let _ = stream.blocking_write_and_flush(b"0123456789");
                drop(stream);
                let _ = OutgoingBody::finish(body, None);
            }
            Answer::Trailers => {
                let trailers = Fields::new();
                trailers.append("x-checksum", b"42").expect("a trailer");
                send(out, b"with trailers", Some(trailers));
            }
            Answer::Torn => {
                let body = begin(out, None);
                let stream = body.write().expect("a stream");
                stream.blocking_write_and_flush(b"torn").expect("written");
                panic!("told to trap");
            }
            Answer::Linger(text) => {
                send(out, text.as_bytes(), None);
                spin();
            }
            Answer::Fetch(path) => send(out, format!("{:?}", fetch(&path)).as_bytes(), None),
            Answer::Never => wait(3_600_000),
        }
    }
}
