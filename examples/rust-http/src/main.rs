//! An HTTP service: a greeting at /, its own health at /ready, and /echo, which streams what it is sent.

use wstd::http::{Body, Error, Request, Response, StatusCode};

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    match request.uri().path() {
        "/" => {
            let name = std::env::var("NAME").unwrap_or_else(|_| "world".to_owned());
            Ok(Response::new(format!("Hello, {name}, from Rust\n").into()))
        }
        "/ready" => Ok(Response::new("ready\n".to_owned().into())),
        // The answer begins before the request has been read: nothing is held in memory.
        "/echo" => Ok(Response::new(request.into_body())),
        _ => Ok(Response::builder()
            .status(StatusCode::NOT_FOUND)
            .body("not found\n".to_owned().into())?),
    }
}
