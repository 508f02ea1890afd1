//! The control socket: how `start`, `delete` and `status` speak with a live server, a JSON line each way.
//!
//! A `delete` of another build speaks it too: requests and replies only ever gain fields and variants.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long a live server may take to answer: below the 5 s that containerd gives to `delete`.
const ANSWER: Duration = Duration::from_millis(4500);

/// What is asked of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Request {
    /// Stay for the container: its Create comes soon.
    Reserve {
        namespace: String,
        id: String,
        bundle: PathBuf,
    },
    /// End the container and remove what it holds.
    Delete {
        namespace: String,
        id: String,
        bundle: PathBuf,
    },
    /// Tell how you are.
    Status,
}

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "re", rename_all = "lowercase")]
pub enum Reply {
    /// The server stays; the task API is at `address`.
    Reserved {
        address: String,
    },
    /// The container is gone, or never was. `exit` when the server saw its end.
    Deleted {
        exit: Option<Exit>,
    },
    Status(serde_json::Value),
    Failed {
        error: String,
    },
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub pid: u32,
    pub code: u32,
    /// Nanoseconds since the epoch.
    pub at: u64,
}

/// Why a server gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens: the server is gone.
    #[error("no server listens at {}", .0.display())]
    Refused(PathBuf),
    #[error("the server at {} does not answer: {cause}", socket.display())]
    Silent { socket: PathBuf, cause: io::Error },
    #[error("the server at {}: {error}", socket.display())]
    Failed { socket: PathBuf, error: String },
}

/// Asks the server at `socket` one thing.
pub fn ask(socket: &Path, request: &Request) -> Result<Reply, ControlError> {
    let silent = |cause| ControlError::Silent {
        socket: socket.to_owned(),
        cause,
    };
    let stream = UnixStream::connect(socket).map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ControlError::Refused(socket.to_owned()),
        _ => silent(cause),
    })?;
    match exchange(&stream, request).map_err(silent)? {
        Reply::Failed { error } => Err(ControlError::Failed {
            socket: socket.to_owned(),
            error,
        }),
        reply => Ok(reply),
    }
}

fn exchange(mut stream: &UnixStream, request: &Request) -> io::Result<Reply> {
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut reply = String::new();
    if BufReader::new(stream).read_line(&mut reply)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&reply)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    fn path(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("kubewasi-control-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    #[test]
    fn a_missing_or_dead_socket_refuses() {
        let path = path("dead");
        assert!(matches!(ask(&path, &Request::Status), Err(ControlError::Refused(_))));
        drop(UnixListener::bind(&path).unwrap());
        assert!(matches!(ask(&path, &Request::Status), Err(ControlError::Refused(_))));
    }

    #[test]
    fn a_request_and_its_reply_are_a_line_each() {
        let path = path("line");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            stream
                .write_all(b"{\"re\":\"reserved\",\"address\":\"unix:///a\"}\n")
                .unwrap();
            line
        });
        let request = Request::Reserve {
            namespace: "n".into(),
            id: "c".into(),
            bundle: "/b".into(),
        };
        assert_eq!(
            ask(&path, &request).unwrap(),
            Reply::Reserved {
                address: "unix:///a".into()
            }
        );
        assert_eq!(
            server.join().unwrap(),
            "{\"op\":\"reserve\",\"namespace\":\"n\",\"id\":\"c\",\"bundle\":\"/b\"}\n"
        );
    }

    #[test]
    fn a_server_that_hangs_up_is_silent_and_not_refused() {
        let path = path("eof");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || drop(listener.accept().unwrap()));
        assert!(matches!(ask(&path, &Request::Status), Err(ControlError::Silent { .. })));
        server.join().unwrap();
    }
}
