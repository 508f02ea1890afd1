//! Which options there are.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::{Engine, Optimization};
use crate::http::Http;
use crate::kind::{Kind, Value};
use crate::world::WorldChoice;

/// Which containers share one shim server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// All containers of a node.
    #[default]
    Node,
    /// The containers of one containerd namespace.
    Namespace,
    /// The containers of one pod, or one container outside a pod.
    Pod,
}

/// The options of a runtime handler, every one with a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Which containers share one server.
    pub scope: Scope,
    /// A filter in the syntax of `RUST_LOG`.
    pub log: String,
    /// The root-only folder of compiled artifacts.
    pub cache_dir: PathBuf,
    /// The most bytes the artifact cache keeps.
    pub cache_size: u64,
    /// The most processor time that one compilation may use.
    pub compile_timeout: Duration,
    /// The most memory one compilation may use, in bytes.
    pub compile_memory: u64,
    /// How long a server without containers lives.
    pub idle_timeout: Duration,
    /// After how many forks the launcher is renewed.
    pub launcher_max_forks: u64,
    /// After which time the launcher is renewed.
    pub launcher_max_age: Duration,
    /// The OCI runtime of native containers: a name on the PATH, or a path.
    pub runc_binary: String,
    /// The runtime moves its root by MS_MOVE, for a node whose root is a ramdisk.
    pub runc_no_pivot_root: bool,
    /// Native containers share the server's session keyring.
    pub runc_no_new_keyring: bool,
    /// How code is compiled and run.
    pub engine: Engine,
    /// What a guest runs with when its pod says nothing.
    pub guest: Guest,
}

/// What one guest runs with: the options that pods may set too. It travels in the guest's plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// The most bytes that its linear memories may have together, beside the limit of its cgroup.
    pub memory_limit: u64,
    /// The most stack that its calls may take, in bytes.
    pub stack_size: u64,
    /// What it runs as where its component leaves the choice.
    pub world: WorldChoice,
    /// What it reads by wasi:config; from annotations alone.
    pub config: BTreeMap<String, String>,
    /// How it serves HTTP.
    pub http: Http,
}

/// Where a key may be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Only in the handler's options, by who administers the node.
    Handler,
    /// Also in a pod's annotations, by who may create pods.
    Pod,
}

/// A row of the table.
pub struct Entry {
    pub key: &'static str,
    pub kind: Kind,
    /// The default, as it would be written.
    pub default: &'static str,
    pub place: Place,
    pub doc: &'static str,
    pub(crate) set: fn(&mut Options, Value),
}

const KI: u64 = 1 << 10;
const MI: u64 = 1 << 20;
const GI: u64 = 1 << 30;

/// All options, in the order of the documentation.
pub const TABLE: &[Entry] = &[
    Entry {
        key: "scope",
        kind: Kind::Word(&["node", "namespace", "pod"]),
        default: "node",
        place: Place::Handler,
        doc: "Which containers share one shim server.",
        set: |options, value| {
            if let Value::Text(word) = value {
                options.scope = match word.as_str() {
                    "namespace" => Scope::Namespace,
                    "pod" => Scope::Pod,
                    _ => Scope::Node,
                };
            }
        },
    },
    Entry {
        key: "log",
        kind: Kind::Text,
        default: "info",
        place: Place::Handler,
        doc: "What is logged, in the syntax of RUST_LOG.",
        set: |options, value| set_text(&mut options.log, value),
    },
    Entry {
        key: "cache_dir",
        kind: Kind::Path,
        default: "/var/lib/kubewasi/cache",
        place: Place::Handler,
        doc: "The root-only folder of compiled artifacts.",
        set: |options, value| {
            if let Value::Text(path) = value {
                options.cache_dir = path.into();
            }
        },
    },
    Entry {
        key: "cache_size",
        // The largest artifacts are some 34 MB; below this one image would evict itself.
        kind: Kind::Bytes {
            min: 64 * MI,
            max: 1024 * GI,
        },
        default: "2Gi",
        place: Place::Handler,
        doc: "The most bytes the artifact cache keeps; the least recently used go first.",
        set: |options, value| set_number(&mut options.cache_size, value),
    },
    Entry {
        key: "compile_timeout",
        kind: Kind::Seconds { min: 1, max: 86400 },
        // The largest programs that toolchains make take a minute on one cpu of a server; small nodes are ten times as slow.
        default: "600",
        place: Place::Handler,
        doc: "The most processor time, of all its threads together, that one compilation may use.",
        set: |options, value| set_seconds(&mut options.compile_timeout, value),
    },
    Entry {
        key: "compile_memory",
        kind: Kind::Bytes {
            min: 64 * MI,
            max: 64 * GI,
        },
        default: "1Gi",
        place: Place::Handler,
        doc: "The most memory one compilation may use.",
        set: |options, value| set_number(&mut options.compile_memory, value),
    },
    Entry {
        key: "idle_timeout",
        kind: Kind::Seconds { min: 0, max: 86400 },
        default: "60",
        place: Place::Handler,
        doc: "How long a server lives after its last container.",
        set: |options, value| set_seconds(&mut options.idle_timeout, value),
    },
    Entry {
        key: "launcher_max_forks",
        kind: Kind::Count {
            min: 1,
            max: 1_000_000_000,
        },
        default: "10000",
        place: Place::Handler,
        doc: "After how many forks the launcher, whose address layout its guests share, is renewed.",
        set: |options, value| set_number(&mut options.launcher_max_forks, value),
    },
    Entry {
        key: "launcher_max_age",
        kind: Kind::Seconds {
            min: 1,
            max: 30 * 86400,
        },
        default: "21600",
        place: Place::Handler,
        doc: "After which time the launcher is renewed, by the first start that comes then.",
        set: |options, value| set_seconds(&mut options.launcher_max_age, value),
    },
    Entry {
        key: "runc_binary",
        kind: Kind::Text,
        default: "runc",
        place: Place::Handler,
        doc: "The OCI runtime of a pod's native containers, runc or crun: a name on the PATH, or a path.",
        set: |options, value| set_text(&mut options.runc_binary, value),
    },
    Entry {
        key: "runc_no_pivot_root",
        kind: Kind::Switch,
        default: "false",
        place: Place::Handler,
        doc: "Native containers change their root without pivot_root, for a node whose root is a ramdisk.",
        set: |options, value| set_switch(&mut options.runc_no_pivot_root, value),
    },
    Entry {
        key: "runc_no_new_keyring",
        kind: Kind::Switch,
        default: "false",
        place: Place::Handler,
        doc: "Native containers get no session keyring of their own.",
        set: |options, value| set_switch(&mut options.runc_no_new_keyring, value),
    },
    Entry {
        key: "optimization",
        kind: Kind::Word(&["none", "speed", "speed_and_size"]),
        default: "speed",
        place: Place::Handler,
        doc: "How code is compiled: soonest, to run fastest, or to be small as well.",
        set: |options, value| {
            if let Value::Text(word) = value {
                options.engine.optimization = match word.as_str() {
                    "none" => Optimization::None,
                    "speed_and_size" => Optimization::SpeedAndSize,
                    _ => Optimization::Speed,
                };
            }
        },
    },
    Entry {
        key: "stack_size",
        // Less is not enough for what compilers emit; each guest has address space for the most.
        kind: Kind::Bytes {
            min: 64 * KI,
            max: 64 * MI,
        },
        default: "512Ki",
        place: Place::Pod,
        doc: "The most stack that a guest's calls may take; more is a trap.",
        set: |options, value| {
            set_number(&mut options.guest.stack_size, value);
            options.engine.stack_size = options.guest.stack_size;
        },
    },
    Entry {
        key: "wasm_gc",
        kind: Kind::Switch,
        default: "true",
        place: Place::Handler,
        doc: "Whether modules may use the proposal gc: structs and arrays that the host collects.",
        set: |options, value| set_switch(&mut options.engine.gc, value),
    },
    Entry {
        key: "wasm_exceptions",
        kind: Kind::Switch,
        default: "true",
        place: Place::Handler,
        doc: "Whether modules may use the proposal exceptions: throwing and catching.",
        set: |options, value| set_switch(&mut options.engine.exceptions, value),
    },
    Entry {
        key: "wasm_threads",
        kind: Kind::Switch,
        default: "true",
        place: Place::Handler,
        doc: "Whether modules may use the proposal threads: atomic instructions; a guest still has one thread.",
        set: |options, value| set_switch(&mut options.engine.threads, value),
    },
    Entry {
        key: "wasm_tail_call",
        kind: Kind::Switch,
        default: "true",
        place: Place::Handler,
        doc: "Whether modules may use the proposal tail-call: calls that replace their caller.",
        set: |options, value| set_switch(&mut options.engine.tail_call, value),
    },
    Entry {
        key: "wasm_memory64",
        kind: Kind::Switch,
        default: "true",
        place: Place::Handler,
        doc: "Whether modules may use the proposal memory64: memories with 64-bit addresses.",
        set: |options, value| set_switch(&mut options.engine.memory64, value),
    },
    Entry {
        key: "wasm_wide_arithmetic",
        kind: Kind::Switch,
        default: "false",
        place: Place::Handler,
        doc: "Whether modules may use the proposal wide-arithmetic: 128-bit arithmetic.",
        set: |options, value| set_switch(&mut options.engine.wide_arithmetic, value),
    },
    Entry {
        key: "memory_limit",
        // One page of wasm; and as good as no limit.
        kind: Kind::Bytes {
            min: 64 * KI,
            max: 1024 * GI,
        },
        default: "1024Gi",
        place: Place::Pod,
        doc: "The most that a guest's linear memories may have together, beside the limit of its container.",
        set: |options, value| set_number(&mut options.guest.memory_limit, value),
    },
    Entry {
        key: "world",
        kind: Kind::Word(&["auto", "command", "service"]),
        default: "auto",
        place: Place::Pod,
        doc: "What a component runs as when it exports both wasi:cli/run and a handler of wasi:http; auto: a service. A program that is not what is set here is refused.",
        set: |options, value| {
            if let Value::Text(word) = value
                && let Ok(choice) = word.parse()
            {
                options.guest.world = choice;
            }
        },
    },
    Entry {
        key: "http_port",
        kind: Kind::Count { min: 0, max: 65535 },
        default: "0",
        place: Place::Pod,
        doc: "The port a service listens on; 0: what PORT says in its environment, else 8080.",
        set: |options, value| set_port(&mut options.guest.http.port, value),
    },
    Entry {
        key: "metrics_port",
        kind: Kind::Count { min: 0, max: 65535 },
        default: "0",
        place: Place::Pod,
        doc: "The port on which a service shows its metrics to Prometheus; 0: none.",
        set: |options, value| set_port(&mut options.guest.http.metrics_port, value),
    },
    Entry {
        key: "instance",
        kind: Kind::Instance { max: 1_000_000_000 },
        default: "auto",
        place: Place::Pod,
        doc: "How a service's instances are used: a fresh one for each request, or one for N; auto: per-request for wasi:http 0.2, reuse(128) for 0.3.",
        set: |options, value| {
            if let Value::Number(requests) = value {
                options.guest.http.requests_per_instance = Some(requests).filter(|requests| *requests > 0);
            }
        },
    },
    Entry {
        key: "request_timeout",
        kind: Kind::Seconds { min: 1, max: 86400 },
        default: "30",
        place: Place::Pod,
        doc: "How long a service may take until an answer begins, between two pieces of it, and to go on after it.",
        set: |options, value| set_seconds(&mut options.guest.http.request_timeout, value),
    },
    Entry {
        key: "max_connections",
        kind: Kind::Count { min: 1, max: 1_000_000 },
        // As Tomcat has it.
        default: "8192",
        place: Place::Pod,
        doc: "So many connections a service has open at the same time; the next ones wait until one is closed.",
        set: |options, value| set_number(&mut options.guest.http.max_connections, value),
    },
    Entry {
        key: "max_concurrent_requests",
        // Each has room for its memories in the address space, twice 12 GiB of 128 TiB.
        kind: Kind::Count { min: 1, max: 2048 },
        default: "128",
        place: Place::Pod,
        doc: "So many requests a service answers at the same time.",
        set: |options, value| set_number(&mut options.guest.http.max_concurrent_requests, value),
    },
    Entry {
        key: "max_queued_requests",
        kind: Kind::Count { min: 0, max: 1_000_000 },
        default: "1024",
        place: Place::Pod,
        doc: "So many more wait for their turn; the next one is answered 503.",
        set: |options, value| set_number(&mut options.guest.http.max_queued_requests, value),
    },
    Entry {
        key: "max_header_size",
        // hyper reads no less at a time.
        kind: Kind::Bytes { min: 8 * KI, max: MI },
        default: "64Ki",
        place: Place::Pod,
        doc: "The most bytes of a request's head; more is answered 431.",
        set: |options, value| set_number(&mut options.guest.http.max_header_size, value),
    },
    Entry {
        key: "max_body_size",
        kind: Kind::Bytes { min: 0, max: 1024 * GI },
        default: "1Gi",
        place: Place::Pod,
        doc: "The most bytes of a request's body; more is answered 413, or an error to who reads it.",
        set: |options, value| set_number(&mut options.guest.http.max_body_size, value),
    },
    Entry {
        key: "drain_timeout",
        kind: Kind::Seconds { min: 0, max: 86400 },
        // Kubernetes kills 30 s after SIGTERM unless a pod says otherwise.
        default: "25",
        place: Place::Pod,
        doc: "How long after SIGTERM a service may answer what was begun.",
        set: |options, value| set_seconds(&mut options.guest.http.drain_timeout, value),
    },
    Entry {
        key: "busy_poll",
        kind: Kind::Switch,
        default: "true",
        place: Place::Pod,
        doc: "Where a service's cpu limit is none or of whole cpus, its threads look for the next request for up to 100 us before they sleep, while requests come as soon as that.",
        set: |options, value| set_switch(&mut options.guest.http.busy_poll, value),
    },
    Entry {
        key: "access_log",
        kind: Kind::Switch,
        default: "false",
        place: Place::Pod,
        doc: "A service writes a line on its stdout for each request.",
        set: |options, value| set_switch(&mut options.guest.http.access_log, value),
    },
];

fn set_text(field: &mut String, value: Value) {
    if let Value::Text(text) = value {
        *field = text;
    }
}

fn set_number(field: &mut u64, value: Value) {
    if let Value::Number(number) = value {
        *field = number;
    }
}

fn set_seconds(field: &mut Duration, value: Value) {
    if let Value::Number(seconds) = value {
        *field = Duration::from_secs(seconds);
    }
}

/// Port 0 stands for none.
fn set_port(field: &mut Option<u16>, value: Value) {
    if let Value::Number(port) = value {
        *field = u16::try_from(port).ok().filter(|port| *port > 0);
    }
}

fn set_switch(field: &mut bool, value: Value) {
    if let Value::Switch(on) = value {
        *field = on;
    }
}

impl Default for Options {
    /// The values of the table; the fields' own are replaced row by row.
    fn default() -> Options {
        let mut options = Options {
            scope: Scope::default(),
            log: String::new(),
            cache_dir: PathBuf::new(),
            cache_size: 0,
            compile_timeout: Duration::ZERO,
            compile_memory: 0,
            idle_timeout: Duration::ZERO,
            launcher_max_forks: 0,
            launcher_max_age: Duration::ZERO,
            runc_binary: String::new(),
            runc_no_pivot_root: false,
            runc_no_new_keyring: false,
            engine: Engine {
                optimization: Optimization::default(),
                stack_size: 0,
                gc: false,
                exceptions: false,
                threads: false,
                tail_call: false,
                memory64: false,
                wide_arithmetic: false,
            },
            guest: Guest {
                memory_limit: 0,
                stack_size: 0,
                world: WorldChoice::default(),
                config: BTreeMap::new(),
                http: Http::default(),
            },
        };
        for entry in TABLE {
            if let Ok(value) = entry.kind.read(entry.default) {
                (entry.set)(&mut options, value);
            }
        }
        options
    }
}

impl Default for Guest {
    /// The values of the table.
    fn default() -> Guest {
        Options::default().guest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_passes_its_own_kind() {
        for entry in TABLE {
            assert!(entry.kind.read(entry.default).is_ok(), "{}", entry.key);
        }
        let options = Options::default();
        assert_eq!(options.scope, Scope::Node);
        assert_eq!(options.log, "info");
        assert_eq!(options.cache_dir, PathBuf::from("/var/lib/kubewasi/cache"));
        assert_eq!(options.cache_size, 2 << 30);
        assert_eq!(options.compile_timeout, Duration::from_secs(600));
        assert_eq!(options.compile_memory, 1 << 30);
        assert_eq!(options.idle_timeout, Duration::from_secs(60));
        assert_eq!(options.launcher_max_forks, 10_000);
        assert_eq!(options.launcher_max_age, Duration::from_secs(6 * 3600));
        assert_eq!(options.runc_binary, "runc");
        assert!(!options.runc_no_pivot_root && !options.runc_no_new_keyring);
        assert_eq!(options.engine.optimization, Optimization::Speed);
        assert_eq!(options.engine.stack_size, 512 << 10);
        assert!(options.engine.gc && options.engine.exceptions && options.engine.threads);
        assert!(options.engine.tail_call && options.engine.memory64 && !options.engine.wide_arithmetic);
        assert_eq!(options.guest.memory_limit, 1 << 40);
        assert!(options.guest.config.is_empty());
    }
}
