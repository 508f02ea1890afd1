//! The shim's server as tests look at it: its control socket and its process.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::containerd::{Node, SHIM};
use crate::machine::shim_processes;

/// The pids of processes that run `command` of the shim for this node: `serve`, `launch`.
pub fn pids_of(node: &Node, command: &str) -> Vec<i32> {
    shim_processes(&node.namespace)
        .into_iter()
        .filter(|pid| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            arguments
                .split(|byte| *byte == 0)
                .any(|argument| argument == command.as_bytes())
        })
        .collect()
}

/// The one server of this node.
#[track_caller]
pub fn pid(node: &Node) -> i32 {
    match pids_of(node, "serve")[..] {
        [pid] => pid,
        ref other => panic!("there had to be one server, not {other:?}"),
    }
}

/// Asks the server for its status: counters of containers, compilations and reads.
#[track_caller]
pub fn status(node: &Node) -> Value {
    let server = pid(node);
    let socket = control_socket(server);
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(b"{\"status\":{}}\n").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{}: {error}: {line:?}", socket.display()))
}

/// A number of the status, by its path: `compile.compiled`.
#[track_caller]
pub fn count(status: &Value, path: &str) -> u64 {
    let found = path.split('.').try_fold(status, |value, key| value.get(key));
    found
        .and_then(Value::as_u64)
        .unwrap_or_else(|| panic!("no number {path} in {status}"))
}

/// How many file descriptors a process holds.
pub fn open_files(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// The control socket below /run/kubewasi whose other end is `server`.
#[track_caller]
fn control_socket(server: i32) -> PathBuf {
    let folders = fs::read_dir("/run/kubewasi")
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    let sockets = folders.flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    sockets
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().contains("control"))
        })
        .find(|path| {
            let Ok(stream) = UnixStream::connect(path) else {
                return false;
            };
            rustix::net::sockopt::socket_peercred(&stream).is_ok_and(|peer| peer.pid.as_raw_nonzero().get() == server)
        })
        .unwrap_or_else(|| panic!("no control socket of {SHIM}, pid {server}, below /run/kubewasi"))
}
