//! Where everything of a runtime is on its host.
//!
//! ```text
//! /opt/kubewasi/lock                                     held by who changes the host
//! /opt/kubewasi/RUNTIME/containerd-shim-wasi-v1          a link, which containerd's configuration names
//!                       versions/DIGEST/containerd-shim-wasi-v1 and its .toml of options
//!                       kubewasi-node                    the helper, which works while containerd is down
//!                       smoke/smoke.wasm                 the root filesystem of the module that proves the node
//!                       journal.json                     the plan that the agent is at
//!                       order.json, progress.json        what the helper is to do, and how far it is
//!                       changes.json                     how often the agent changed the host lately
//!                       kept.json                        the desired state that is reached
//!                       written.json                     the configuration files that the agent ever wrote
//! ```

use std::path::{Path, PathBuf};

/// The folder of all runtimes on a host.
pub const BASE: &str = "/opt/kubewasi";
/// The shim's name, also within its image.
pub const SHIM: &str = "containerd-shim-wasi-v1";

/// The folder of one runtime.
#[derive(Clone, Debug)]
pub struct Layout {
    base: PathBuf,
    runtime: String,
}

impl Layout {
    /// The layout of `runtime` below `base`.
    pub fn new(base: &Path, runtime: &str) -> Layout {
        Layout {
            base: base.to_owned(),
            runtime: runtime.to_owned(),
        }
    }

    pub fn base(&self) -> &Path {
        &self.base
    }

    pub fn runtime(&self) -> &str {
        &self.runtime
    }

    pub fn folder(&self) -> PathBuf {
        self.base.join(&self.runtime)
    }

    pub fn lock(&self) -> PathBuf {
        self.base.join("lock")
    }

    /// What `runtime_path` names; a link into [`Layout::version`].
    pub fn stable(&self) -> PathBuf {
        self.folder().join(SHIM)
    }

    pub fn versions(&self) -> PathBuf {
        self.folder().join("versions")
    }

    /// The folder of the shim with this SHA-256.
    pub fn version(&self, digest: &str) -> PathBuf {
        self.versions().join(digest)
    }

    /// The options of the shim with this SHA-256; it reads them beside its own file.
    pub fn options(&self, digest: &str) -> PathBuf {
        self.version(digest).join(SHIM).with_extension("toml")
    }

    pub fn helper(&self) -> PathBuf {
        self.folder().join("kubewasi-node")
    }

    pub fn smoke(&self) -> PathBuf {
        self.folder().join("smoke")
    }

    pub fn journal(&self) -> PathBuf {
        self.folder().join("journal.json")
    }

    pub fn order(&self) -> PathBuf {
        self.folder().join("order.json")
    }

    pub fn progress(&self) -> PathBuf {
        self.folder().join("progress.json")
    }

    pub fn changes(&self) -> PathBuf {
        self.folder().join("changes.json")
    }

    pub fn kept(&self) -> PathBuf {
        self.folder().join("kept.json")
    }

    pub fn written(&self) -> PathBuf {
        self.folder().join("written.json")
    }

    /// The transient unit of the helper.
    pub fn unit(&self) -> String {
        format!("kubewasi-{}.service", self.runtime)
    }
}
