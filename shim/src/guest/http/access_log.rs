//! The access log, when it is asked for: a line on stdout for each answer, and one about all of them at the end.

use std::borrow::Cow;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Instant;

use hyper::{Request, StatusCode};

use super::figures::LEFT;

/// One request, told when its answer is over: `peer "METHOD /path HTTP/1.1" status bytes seconds`.
pub struct Record {
    peer: SocketAddr,
    line: String,
    begun: Instant,
    status: u16,
    bytes: usize,
}

impl Record {
    /// Begins a record of `request`. A path is percent-encoded by its client, so it breaks no line; a quotation mark, which
    /// some leave as it is, would end the quoted part of it.
    pub fn new<B>(peer: SocketAddr, request: &Request<B>) -> Record {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let path = match path.contains('"') {
            true => Cow::Owned(path.replace('"', "%22")),
            false => Cow::Borrowed(path),
        };
        Record {
            peer,
            line: format!("{} {path} {:?}", request.method(), request.version()),
            begun: Instant::now(),
            status: LEFT,
            bytes: 0,
        }
    }

    /// The answer's status.
    pub fn answered(&mut self, status: StatusCode) {
        self.status = status.as_u16();
    }

    /// So many bytes more of its body were handed out.
    pub fn sent(&mut self, bytes: usize) {
        self.bytes += bytes;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Record {
            peer,
            line,
            begun,
            status,
            bytes,
        } = self;
        let seconds = begun.elapsed().as_secs_f64();
        write(&format!("{peer} \"{line}\" {status} {bytes} {seconds:.6}\n"));
    }
}

/// Writes the log's last line.
pub fn summary(text: &str) {
    write(&format!("{text}\n"));
}

fn write(line: &str) {
    // A reader that is gone must not keep a service from answering.
    let _ = std::io::stdout().write_all(line.as_bytes());
}
