//! A `wasi:http/handler` 0.3 service.

#[path = "answers.rs"]
mod answers;

use answers::{Answer, OTHER, answer, spin};
use wasip3::clocks::monotonic_clock::wait_for;
use wasip3::http::client;
use wasip3::http::types::{ErrorCode, Fields, Request, Response, Scheme};
use wasip3::{wit_bindgen, wit_future, wit_stream};

struct Service;

wasip3::http::service::export!(Service);

async fn wait(milliseconds: u64) {
    wait_for(milliseconds * 1_000_000).await;
}

/// An answer of `pieces` of `text`, with what comes `after`.
fn send(text: Vec<u8>, headers: Fields, after: Option<Fields>) -> Response {
    let (mut writer, reader) = wit_stream::new();
    let (trailers, trailers_reader) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(headers, Some(reader), trailers_reader);
    wit_bindgen::spawn_local(async move {
        let _ = writer.write_all(text).await;
        drop(writer);
        let _ = trailers.write(Ok(after)).await;
    });
    response
}

/// The status of what the other one answers.
async fn fetch(path: &str) -> Result<u16, ErrorCode> {
    let (trailers, no_trailers) = wit_future::new(|| Ok(None));
    let (request, _sent) = Request::new(Fields::new(), None, no_trailers, None);
    drop(trailers);
    let set = request
        .set_scheme(Some(&Scheme::Http))
        .and_then(|()| request.set_authority(Some(OTHER)))
        .and_then(|()| request.set_path_with_query(Some(path)));
    set.expect("a request");
    Ok(client::send(request).await?.get_status_code())
}

impl wasip3::exports::http::handler::Guest for Service {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let path = request.get_path_with_query().unwrap_or_default();
        Ok(match answer(&path) {
            Answer::Text(text) => send(text.into_bytes(), Fields::new(), None),
            Answer::Sized(text) => {
                let headers = Fields::new();
                let length = text.len().to_string();
                headers.append("content-length", length.as_bytes()).expect("a header");
                send(text.into_bytes(), headers, None)
            }
            Answer::Asked => {
                let asked = format!("{:?} {:?} {path}\n", request.get_scheme(), request.get_authority());
                send(asked.into_bytes(), Fields::new(), None)
            }
            Answer::Later(milliseconds, text) => {
                wait(milliseconds).await;
                send(text.into(), Fields::new(), None)
            }
            Answer::Echo => {
                let (_done, result) = wit_future::new(|| Ok(()));
                let (body, trailers) = Request::consume_body(request, result);
                Response::new(Fields::new(), Some(body), trailers).0
            }
            Answer::Drip => {
                let (mut writer, reader) = wit_stream::new();
                let (_trailers, trailers_reader) = wit_future::new(|| Ok(None));
                wit_bindgen::spawn_local(async move {
                    while writer.write_all(b".".to_vec()).await.is_empty() {
                        wait(50).await;
                    }
                });
                Response::new(Fields::new(), Some(reader), trailers_reader).0
            }
            Answer::Overrun => {
                let headers = Fields::new();
                headers.append("content-length", b"5").expect("a header");
                send(b"0123456789".to_vec(), headers, None)
            }
            Answer::Trailers => {
                let trailers = Fields::new();
                trailers.append("x-checksum", b"42").expect("a trailer");
                send(b"with trailers".to_vec(), Fields::new(), Some(trailers))
            }
            Answer::Torn => {
                let (mut writer, reader) = wit_stream::new();
                let (_trailers, trailers_reader) = wit_future::new(|| Ok(None));
                wit_bindgen::spawn_local(async move {
                    let _ = writer.write_all(b"torn".to_vec()).await;
                    panic!("told to trap");
                });
                Response::new(Fields::new(), Some(reader), trailers_reader).0
            }
            Answer::Linger(text) => {
                let (mut writer, reader) = wit_stream::new();
                let (trailers, trailers_reader) = wit_future::new(|| Ok(None));
                wit_bindgen::spawn_local(async move {
                    let _ = writer.write_all(text.into()).await;
                    drop(writer);
                    let _ = trailers.write(Ok(None)).await;
                    spin();
                });
                Response::new(Fields::new(), Some(reader), trailers_reader).0
            }
            Answer::Fetch(path) => send(format!("{:?}", fetch(&path).await).into_bytes(), Fields::new(), None),
            Answer::Never => {
                wait(3_600_000).await;
                send(Vec::new(), Fields::new(), None)
            }
        })
    }
}
