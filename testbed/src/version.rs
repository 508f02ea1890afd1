//! The containerds that tests run.

use std::path::PathBuf;

use crate::script::hack;

/// The containerd versions that are supported and tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// Debian 12's own.
    V1_6,
    V1_7,
    /// Built from source by those tests alone that `make test-pulls` runs.
    V2_3,
    V2_4,
}

impl Version {
    /// The folder of its binaries, built when it is missing.
    pub fn folder(self) -> PathBuf {
        match self {
            Version::V1_6 => PathBuf::from("/usr/bin"),
            Version::V1_7 => hack("build-containerd", &["1.7.35"]),
            Version::V2_3 => hack("build-containerd", &["2.3.7"]),
            Version::V2_4 => hack("build-containerd", &["2.4.2"]),
        }
    }

    /// The version of the configuration's format, and the CRI plugin's name in it.
    pub fn format(self) -> (u32, &'static str) {
        match self {
            Version::V1_6 | Version::V1_7 => (2, "io.containerd.grpc.v1.cri"),
            Version::V2_3 | Version::V2_4 => (3, "io.containerd.cri.v1.runtime"),
        }
    }
}
