//! `status`: the live servers of the node and their counters, for people and tests.

use std::fs;
use std::io;
use std::path::Path;

use super::control::{self, ControlError, Reply, Request};
use super::folder;

/// A JSON line for each live server.
pub fn run() -> io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    let folders = match fs::read_dir(Path::new(folder::ROOT)) {
        Ok(folders) => folders,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(lines),
        Err(error) => return Err(error),
    };
    for folder in folders {
        let socket = folder::control(&folder?.path());
        match control::ask(&socket, &Request::Status) {
            Ok(Reply::Status(status)) => serde_json::to_writer(&mut lines, &status)?,
            Err(ControlError::Refused(_)) => continue,
            Ok(other) => return Err(io::Error::other(format!("{} answers {other:?}", socket.display()))),
            Err(error) => return Err(io::Error::other(error)),
        }
        lines.push(b'\n');
    }
    Ok(lines)
}
