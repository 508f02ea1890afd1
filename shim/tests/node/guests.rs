//! The guests that tests run: the probe, built from source, and hand-written modules for what no compiler emits.

use std::path::PathBuf;
use std::sync::OnceLock;

use kubewasi_testbed::script::hack;

/// What a probe is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A core module with WASI 0.1.
    P1,
    /// A `wasi:cli/command` 0.2 component.
    P2,
    /// A `wasi:cli/command` 0.3 component.
    P3,
    /// A static Linux program.
    Native,
}

impl Probe {
    /// The wasm worlds.
    pub const WASM: [Probe; 3] = [Probe::P1, Probe::P2, Probe::P3];

    pub fn file(self) -> &'static str {
        match self {
            Probe::P1 => "probe01.wasm",
            Probe::P2 => "probe02.wasm",
            Probe::P3 => "probe03.wasm",
            Probe::Native => "probe",
        }
    }

    pub fn path(self) -> PathBuf {
        built(self.file())
    }

    pub fn bytes(self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }
}

/// The wasi:http services: one behaviour a path (e2e/guests/src/answers.rs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// `wasi:http/incoming-handler` 0.2.
    Http02,
    /// `wasi:http/handler` 0.3.
    Http03,
}

impl Service {
    pub const ALL: [Service; 2] = [Service::Http02, Service::Http03];

    pub fn bytes(self) -> Vec<u8> {
        let file = match self {
            Service::Http02 => "service02.wasm",
            Service::Http03 => "service03.wasm",
        };
        std::fs::read(built(file)).unwrap()
    }
}

fn built(file: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| hack("guests", &[])).join(file)
}

/// Assembles the text of a module or component.
pub fn wat(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}
