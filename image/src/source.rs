//! What goes into an image: `[PLATFORM[,PLATFORM...]=]PATH[:DESTINATION]`.

use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The platforms of an image that runs on every node: a node's containerd takes the entry for its own platform, and a client
/// that asks for wasm finds it too.
pub const EVERY_NODE: [&str; 3] = ["linux/amd64", "linux/arm64", "wasi/wasm"];

/// A file or directory, which becomes one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// As `OS/ARCHITECTURE`.
    pub platforms: Vec<String>,
    pub path: PathBuf,
    /// The absolute path in the image of the file, or of the directory's contents. Without it a file gets its own name in the
    /// root directory, and a directory's contents are in the root directory.
    pub destination: Option<String>,
}

impl Source {
    /// The path in the image of a file: as cp(1) has it, a destination that ends in a slash is a directory.
    pub fn target(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default();
        match self.destination.as_deref() {
            None => Path::new("/").join(name),
            Some(directory) if directory.ends_with('/') => Path::new(directory).join(name),
            Some(file) => PathBuf::from(file),
        }
    }
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Source, String> {
        let (platforms, rest) = match text.split_once('=') {
            Some((platforms, rest)) if platforms.split(',').all(is_platform) => {
                (platforms.split(',').map(str::to_owned).collect(), rest)
            }
            _ => (EVERY_NODE.map(str::to_owned).to_vec(), text),
        };
        let (path, destination) = match rest.rfind(":/") {
            Some(colon) => (&rest[..colon], Some(rest[colon + 1..].to_owned())),
            None => (rest, None),
        };
        if path.is_empty() {
            return Err("the path is missing: must be like hello.wasm or assets:/srv".to_owned());
        }
        if destination
            .as_ref()
            .is_some_and(|path| path.split('/').any(|part| part == ".."))
        {
            return Err("the path in the image must not contain ..".to_owned());
        }
        Ok(Source {
            platforms,
            path: PathBuf::from(path),
            destination,
        })
    }
}

/// Whether `text` is a platform's operating system and architecture.
fn is_platform(text: &str) -> bool {
    let is_word = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
    matches!(text.split('/').collect::<Vec<_>>().as_slice(), [os, architecture] if is_word(os) && is_word(architecture))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        text.parse().unwrap()
    }

    #[test]
    fn a_bare_path_is_for_every_node() {
        let found = source("out/hello.wasm");
        assert_eq!(found.platforms, EVERY_NODE);
        assert_eq!((found.path, found.destination), ("out/hello.wasm".into(), None));
    }

    #[test]
    fn platforms_and_destination_are_read() {
        let found = source("linux/amd64,wasi/wasm=a=b:c:/srv/data");
        assert_eq!(found.platforms, ["linux/amd64", "wasi/wasm"]);
        assert_eq!(
            (found.path, found.destination),
            ("a=b:c".into(), Some("/srv/data".into()))
        );
    }

    #[test]
    fn a_path_with_an_equals_sign_needs_no_platforms() {
        assert_eq!(source("a/b/c=d").path, PathBuf::from("a/b/c=d"));
        assert_eq!(source("a=d").path, PathBuf::from("a=d"));
    }

    #[test]
    fn a_destination_outside_the_image_is_refused() {
        assert!("a:/srv/../etc".parse::<Source>().is_err());
        assert!(":/srv".parse::<Source>().is_err());
    }
}
