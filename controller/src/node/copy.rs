//! `kubewasi-node copy`: how programs of images come to the agent, since an image of one static program has no `cp`.

use std::fs;
use std::io;
use std::path::Path;

use super::durable::{self, WriteError};

/// Copies the program `from` into the folder `to`, under its name.
///
/// An `optional` one may be missing: the agent says so in its report, where a failed container would only say that it
/// failed.
pub fn copy(from: &Path, to: &Path, optional: bool) -> Result<(), WriteError> {
    let to = to.join(from.file_name().unwrap_or_default());
    match fs::read(from) {
        // One of an earlier image must not be taken for this one's.
        Err(error) if optional && error.kind() == io::ErrorKind::NotFound => durable::remove(&to),
        Err(error) => Err(WriteError::of("read", from)(error)),
        Ok(bytes) => durable::write(&to, &bytes, 0o755),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_copied_and_one_that_is_missing_takes_the_old_one_away() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (program, copied) = (from.path().join("shim"), to.path().join("shim"));
        fs::write(&program, "one").unwrap();
        copy(&program, to.path(), true).unwrap();
        assert_eq!(fs::read(&copied).unwrap(), b"one");
        fs::remove_file(&program).unwrap();
        copy(&program, to.path(), false).unwrap_err();
        copy(&program, to.path(), true).unwrap();
        assert!(!copied.exists());
    }
}
