//! Why no image was made.

use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {}: {cause}", path.display())]
    Read { path: PathBuf, cause: io::Error },
    #[error("cannot write {}: {cause}", path.display())]
    Write { path: PathBuf, cause: io::Error },
    #[error(
        "{} is not a WebAssembly binary: it begins with {start:02x?} instead of 00 61 73 6d; `wasm-tools parse` makes one \
         of the text format",
        path.display()
    )]
    NotWasm { path: PathBuf, start: Vec<u8> },
    #[error("{} is neither a file, a directory nor a symbolic link: an image cannot hold it", path.display())]
    SpecialFile { path: PathBuf },
    #[error("invalid --config {text:?}: must be a JSON object like {{\"User\":\"65532\"}}: {cause}")]
    Config { text: String, cause: serde_json::Error },
    #[error("invalid --{option} {value:?}: must be NAME=VALUE")]
    Pair { option: &'static str, value: String },
    #[error("cannot make a layer of {}: {cause}", path.display())]
    Layer { path: PathBuf, cause: io::Error },
}

impl Error {
    /// The failure to read `path`.
    pub fn read(path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |cause| Error::Read { path, cause }
    }

    /// The failure to write `path`.
    pub fn write(path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |cause| Error::Write { path, cause }
    }

    /// The failure to put `path` into a layer.
    pub fn layer(path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |cause| Error::Layer { path, cause }
    }
}
