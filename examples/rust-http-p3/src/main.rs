//! An HTTP service for WASI 0.3, where one instance serves many requests at once: /wait answers after a second, and a
//! hundred of them after a second too.

use std::time::Duration;

use wasip3::clocks::monotonic_clock;
use wasip3::http::types::{ErrorCode, Request, Response};
use wasip3::http_compat::{http_from_wasi_request, http_into_wasi_response};

/// A program needs one; the handler is called instead.
fn main() {}

const WAIT: Duration = Duration::from_secs(1);

struct Service;

wasip3::http::service::export!(Service);

impl wasip3::exports::http::handler::Guest for Service {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let request = http_from_wasi_request(request)?;
        let (status, body) = match request.uri().path() {
            "/" => (200, "Hello from Rust and WASI 0.3\n"),
            "/wait" => {
                monotonic_clock::wait_for(WAIT.as_nanos() as u64).await;
                (200, "waited\n")
            }
            _ => (404, "not found\n"),
        };
        let mut response = http::Response::new(body.to_owned());
        *response.status_mut() = http::StatusCode::from_u16(status).expect("a status of the table above");
        http_into_wasi_response(response)
    }
}
