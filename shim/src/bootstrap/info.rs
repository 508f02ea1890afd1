//! What `-info` answers: constants, in milliseconds, touching no lock, socket or cache, since containerd runs it without
//! a timeout when it boots.

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};

/// The runtime type under which containerd finds this binary.
pub const RUNTIME: &str = "io.containerd.wasi.v1";

/// How containerd registers the OCI features document (typeurl, core/runtime).
const FEATURES_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The OCI features document: `rro` and idmap decide whether the kubelet allows recursive read-only mounts and user
/// namespaces with this runtime.
const FEATURES: &str = r#"{
  "ociVersionMin": "1.0.0",
  "ociVersionMax": "1.3.0",
  "mountOptions": [
    "async", "atime", "bind", "defaults", "diratime", "dirsync", "exec", "iversion", "mand", "noatime", "nodev",
    "nodiratime", "noexec", "noiversion", "nomand", "norelatime", "nostrictatime", "nosuid", "private", "rbind",
    "relatime", "remount", "ro", "rprivate", "rro", "rw", "silent", "strictatime", "suid", "sync"
  ],
  "hooks": ["prestart", "createRuntime", "poststart", "poststop"],
  "linux": {
    "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
    "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": false},
    "seccomp": {"enabled": true},
    "apparmor": {"enabled": true},
    "selinux": {"enabled": true},
    "intelRdt": {"enabled": false},
    "mountExtensions": {"idmap": {"enabled": true}}
  }
}"#;

/// The protobuf `containerd.types.RuntimeInfo` to print on stdout.
pub fn info() -> Result<Vec<u8>, containerd_shim_protos::protobuf::Error> {
    RuntimeInfo {
        name: RUNTIME.to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..RuntimeVersion::default()
        }),
        features: MessageField::some(Any {
            type_url: FEATURES_URL.to_owned(),
            value: FEATURES.as_bytes().to_vec(),
            ..Any::default()
        }),
        ..RuntimeInfo::default()
    }
    .write_to_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_features_allow_recursive_read_only_mounts_and_user_namespaces() {
        let info = RuntimeInfo::parse_from_bytes(&info().unwrap()).unwrap();
        assert_eq!(info.name, "io.containerd.wasi.v1");
        assert_eq!(info.version.version, env!("CARGO_PKG_VERSION"));
        let features: serde_json::Value = serde_json::from_slice(&info.features.value).unwrap();
        assert!(features["mountOptions"].as_array().unwrap().contains(&"rro".into()));
        assert_eq!(features["linux"]["mountExtensions"]["idmap"]["enabled"], true);
    }
}
