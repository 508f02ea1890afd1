//! What is mounted in a container's root filesystem, as far as programs are looked for there.

use std::path::PathBuf;

/// One mount of a container's spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// As the spec has it: symbolic links of the root filesystem and of earlier mounts are still to be followed.
    pub destination: PathBuf,
    pub content: Content,
}

/// What a mount shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A directory or file of the node, with what is mounted below it where it is `recursive`.
    Bind { source: PathBuf, recursive: bool },
    /// A new file system without files.
    Empty,
    /// What cannot be seen from here: a file system of the kernel, or of another kind.
    Unknown,
}
