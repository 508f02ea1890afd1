//! A small JSON file that outlives its writer: replaced whole or not at all, read only in a version that is known.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Writes `value` to `path`.
///
/// # Errors
///
/// What write(2) and rename(2) say.
pub fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut new = OsString::from(path);
    new.push(".new");
    let new = PathBuf::from(new);
    fs::write(&new, serde_json::to_vec(value)?)?;
    fs::rename(new, path)
}

/// Reads the file at `path`, of whose values `version_of` tells the version; `None` when there is no file.
///
/// # Errors
///
/// What read(2) says, and `InvalidData` naming the file when it is malformed or not of `version`.
pub fn read<T: DeserializeOwned>(path: &Path, version: u32, version_of: impl Fn(&T) -> u32) -> io::Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let invalid = |reason: String| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} is not a record: {reason}", path.display()),
        )
    };
    let value: T = serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
    match version_of(&value) {
        found if found == version => Ok(Some(value)),
        found => Err(invalid(format!("version {found} is newer than this build's {version}"))),
    }
}

/// Removes the file at `path` and returns whether it was there: of several callers one alone is told so.
///
/// # Errors
///
/// What unlink(2) says.
pub fn take(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes the file at `path`; one that is gone is fine.
///
/// # Errors
///
/// What unlink(2) says.
pub fn remove(path: &Path) -> io::Result<()> {
    take(path).map(drop)
}
