//! `status`: the live servers of the node and their counters, for people and tests.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::json;

use super::control::{self, ControlError, Reply, Request};
use super::folder;

/// A JSON line for each live server; one that does not answer has an `error` instead of its counters.
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
            // One that ends just now, or another build's; it does not hide the others.
            Ok(other) => write(&mut lines, &socket, format!("it answers {other:?}"))?,
            Err(error) => write(&mut lines, &socket, error.to_string())?,
        }
        lines.push(b'\n');
    }
    Ok(lines)
}

fn write(lines: &mut Vec<u8>, socket: &Path, error: String) -> io::Result<()> {
    Ok(serde_json::to_writer(
        lines,
        &json!({ "control": socket, "error": error }),
    )?)
}
