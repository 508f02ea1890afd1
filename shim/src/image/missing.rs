//! Why there is no program, in the words by which Docker and other clients of containerd recognize it (pure).

use std::fmt;

/// What the container has instead of its entry point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It was created from no image, and has no such file.
    NoImage,
    /// Its image is not on the node any more, so its wasm layers are not known.
    Gone { image: String },
    /// Neither such a file nor wasm layers.
    NoLayers {
        image: String,
        /// The media types of layers that mean nothing here.
        unknown: Vec<String>,
    },
    /// Its image has no shell, and wasm files.
    NoShell { image: String, programs: Vec<String> },
}

/// What files are listed that may be programs, and how many of them.
pub const SUFFIX: &str = ".wasm";
pub const MAX_LISTED: usize = 16;

/// Whether Docker's shell form of an ENTRYPOINT or CMD is for this program.
pub fn is_shell(program: &str) -> bool {
    ["/bin/sh", "sh", "/bin/bash", "bash", "/bin/ash", "ash"].contains(&program)
}

/// What to do about it.
const ADVICE: &str = "set the first argument (in Kubernetes, the container's command) to a file of the image";

/// What runc says when there is no program `entry`, from which Docker and others take their exit codes (moby,
/// daemon/errors.go: both are 127).
pub fn absence(entry: &str) -> String {
    match entry.contains('/') {
        true => format!("stat {entry}: no such file or directory"),
        false => "executable file not found in $PATH".to_owned(),
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Missing::NoImage => write!(f, "the container has no such file, and names no image: {ADVICE}"),
            Missing::Gone { image } => write!(
                f,
                "the container has no such file, and its image {image} is no longer on this node: pull the image and create the container again"
            ),
            Missing::NoLayers { image, unknown } if unknown.is_empty() => {
                write!(f, "the image {image} has no such file and no wasm layers: {ADVICE}")
            }
            Missing::NoLayers { image, unknown } => write!(
                f,
                "the image {image} has no such file, no wasm layers, and layers of the media types {unknown:?}, which are not understood: publish the wasm as application/wasm, or {ADVICE}"
            ),
            Missing::NoShell { image, programs } => write!(
                f,
                "the image {image} has no shell, which an ENTRYPOINT or CMD that is not a JSON array needs: write it as one, [\"/app.wasm\", \"argument\"]. The .wasm files of the image: {}",
                programs.join(", ")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_reported_as_runc_reports_it() {
        assert_eq!(absence("app"), "executable file not found in $PATH");
        assert_eq!(absence("/app"), "stat /app: no such file or directory");
        assert_eq!(absence("./app"), "stat ./app: no such file or directory");
    }

    #[test]
    fn layers_of_unknown_media_types_are_named() {
        let missing = |unknown: &[&str]| {
            let unknown = unknown.iter().map(|kind| (*kind).to_owned()).collect();
            let image = "example.com/a:1".to_owned();
            Missing::NoLayers { image, unknown }.to_string()
        };
        assert!(
            missing(&["text/wasm"]).contains(r#"["text/wasm"]"#),
            "{}",
            missing(&["text/wasm"])
        );
        assert!(!missing(&[]).contains("media type"), "{}", missing(&[]));
    }
}
