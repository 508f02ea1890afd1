//! Which containerd speaks to us: what it wrote to `start`'s stdin, and the reply it understands (pure).
//!
//! | containerd | stdin | reply |
//! |---|---|---|
//! | 1.6, 1.7, 2.0-2.2 | an options `Any`, or nothing | the plain address, task API v2 |
//! | 2.3 and newer | `BootstrapParams` | `BootstrapResult`, task API v3 |
//!
//! An `Any` decodes as `BootstrapParams` too (both begin with a string and bytes), so only params that name this very
//! container are believed; every containerd understands the plain address.

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;

/// The task API that a version-3 reply announces.
const TASK_V3: i32 = 3;

/// The language of a `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// A plain address; containerd then speaks task API v2.
    Plain,
    /// A `BootstrapResult`; containerd then speaks task API v3.
    Bootstrap,
}

/// What containerd wrote to `start`'s stdin.
#[derive(Debug, PartialEq, Eq)]
pub struct Input {
    pub dialect: Dialect,
    /// The handler's options, when there are some in our own type.
    pub options: Option<RuntimeOptions>,
    /// Where the socket should be.
    pub socket_dir: Option<String>,
    /// containerd's ttrpc socket, when it is not only in the environment.
    pub ttrpc_address: Option<String>,
}

/// `runtimeoptions.v1.Options`, in which containerd passes the options of a runtime it does not know.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RuntimeOptions {
    /// What the body is; unused.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// A TOML file.
    #[prost(string, tag = "2")]
    pub config_path: String,
    /// TOML; wins over the file.
    #[prost(bytes = "vec", tag = "3")]
    pub config_body: Vec<u8>,
}

/// Why what containerd wrote is refused.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error("the runtime options on stdin are neither BootstrapParams nor an Any: {0}")]
    NotProtobuf(#[from] containerd_shim_protos::protobuf::Error),
    #[error("the runtime options on stdin are not a runtimeoptions.v1.Options: {0}")]
    NotOptions(#[from] prost::DecodeError),
}

/// Reads what containerd wrote for the container `id` of `namespace`.
pub fn input(stdin: &[u8], namespace: &str, id: &str) -> Result<Input, InputError> {
    if let Ok(params) = BootstrapParams::parse_from_bytes(stdin)
        && params.instance_id == id
        && params.namespace == namespace
    {
        let options = params
            .extensions
            .iter()
            .filter_map(|extension| extension.value.as_ref());
        let options = options.map(runtime_options).find_map(Result::transpose).transpose()?;
        return Ok(Input {
            dialect: Dialect::Bootstrap,
            options,
            socket_dir: params.socket_dir.filter(|dir| !dir.is_empty()),
            ttrpc_address: Some(params.containerd_ttrpc_address).filter(|address| !address.is_empty()),
        });
    }
    Ok(Input {
        dialect: Dialect::Plain,
        options: runtime_options(&Any::parse_from_bytes(stdin)?)?,
        socket_dir: None,
        ttrpc_address: None,
    })
}

/// The options in `any`; other types, such as runc's that some clients send to every runtime, are not ours.
fn runtime_options(any: &Any) -> Result<Option<RuntimeOptions>, InputError> {
    if any.type_url.rsplit('/').next() != Some("runtimeoptions.v1.Options") {
        return Ok(None);
    }
    Ok(Some(prost::Message::decode(any.value.as_slice())?))
}

/// The bytes to print on stdout: nothing before them, nothing behind.
pub fn reply(dialect: Dialect, address: &str) -> Vec<u8> {
    match dialect {
        Dialect::Plain => address.as_bytes().to_vec(),
        Dialect::Bootstrap => {
            let result = BootstrapResult {
                version: TASK_V3,
                address: address.to_owned(),
                protocol: "ttrpc".to_owned(),
                ..BootstrapResult::default()
            };
            // Writing a message without required fields into memory cannot fail; an empty reply would name no server.
            result.write_to_bytes().unwrap_or_default()
        }
    }
}

/// The address in a `bootstrap.json`, in which containerd 2 keeps the reply: JSON, a `BootstrapResult` or plain.
pub fn recorded_address(bytes: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Recorded {
        address: String,
    }
    let address = match serde_json::from_slice::<Recorded>(bytes) {
        Ok(recorded) => recorded.address,
        Err(_) => match BootstrapResult::parse_from_bytes(bytes) {
            Ok(result) if !result.address.is_empty() => result.address,
            _ => std::str::from_utf8(bytes).ok()?.trim().to_owned(),
        },
    };
    Some(address).filter(|address| address.starts_with("unix://"))
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::bootstrap_api::Extension;
    use containerd_shim_protos::protobuf::MessageField;

    use super::*;

    fn any(type_url: &str, options: &RuntimeOptions) -> Any {
        Any {
            type_url: type_url.into(),
            value: prost::Message::encode_to_vec(options),
            ..Any::default()
        }
    }

    fn body() -> RuntimeOptions {
        RuntimeOptions {
            config_body: b"scope = 'pod'".to_vec(),
            ..RuntimeOptions::default()
        }
    }

    fn params(id: &str) -> BootstrapParams {
        BootstrapParams {
            instance_id: id.into(),
            namespace: "k8s.io".into(),
            containerd_ttrpc_address: "/run/containerd/containerd.sock.ttrpc".into(),
            socket_dir: Some("/run/s".into()),
            extensions: vec![
                Extension {
                    value: MessageField::some(any("containerd.runc.v1.Options", &RuntimeOptions::default())),
                    ..Extension::default()
                },
                Extension {
                    value: MessageField::some(any("runtimeoptions.v1.Options", &body())),
                    ..Extension::default()
                },
            ],
            ..BootstrapParams::default()
        }
    }

    #[test]
    fn an_empty_stdin_is_answered_with_a_plain_address() {
        let input = input(b"", "k8s.io", "c1").unwrap();
        assert_eq!(
            input,
            Input {
                dialect: Dialect::Plain,
                options: None,
                socket_dir: None,
                ttrpc_address: None
            }
        );
        assert_eq!(reply(input.dialect, "unix:///run/s/k"), b"unix:///run/s/k");
    }

    #[test]
    fn an_options_any_decodes_as_params_too_and_is_still_answered_with_a_plain_address() {
        let bytes = any("runtimeoptions.v1.Options", &body()).write_to_bytes().unwrap();
        assert!(BootstrapParams::parse_from_bytes(&bytes).is_ok());
        let input = input(&bytes, "k8s.io", "c1").unwrap();
        assert_eq!(input.dialect, Dialect::Plain);
        assert_eq!(input.options, Some(body()));
    }

    #[test]
    fn params_of_this_container_are_answered_with_a_bootstrap_result() {
        let input = input(&params("c1").write_to_bytes().unwrap(), "k8s.io", "c1").unwrap();
        assert_eq!(
            input,
            Input {
                dialect: Dialect::Bootstrap,
                options: Some(body()),
                socket_dir: Some("/run/s".into()),
                ttrpc_address: Some("/run/containerd/containerd.sock.ttrpc".into()),
            }
        );
        let reply = reply(input.dialect, "unix:///run/s/k");
        let result = BootstrapResult::parse_from_bytes(&reply).unwrap();
        assert_eq!(
            (result.version, result.address.as_str(), result.protocol.as_str()),
            (3, "unix:///run/s/k", "ttrpc")
        );
    }

    #[test]
    fn params_of_another_container_are_not_believed() {
        let input = input(&params("c2").write_to_bytes().unwrap(), "k8s.io", "c1").unwrap();
        assert_eq!((input.dialect, input.socket_dir), (Dialect::Plain, None));
    }

    #[test]
    fn a_bootstrap_result_survives_containerds_trimming_of_white_space() {
        let reply = reply(Dialect::Bootstrap, "unix:///run/containerd/s/0123456789abcdef");
        let white = |byte: &u8| matches!(byte, 9..=13 | b' ' | 0x85 | 0xa0);
        assert!(
            !white(reply.first().unwrap()) && !white(reply.last().unwrap()),
            "{reply:?}"
        );
    }

    #[test]
    fn options_of_other_types_are_not_ours() {
        let bytes = any("containerd.runc.v1.Options", &RuntimeOptions::default())
            .write_to_bytes()
            .unwrap();
        assert_eq!(input(&bytes, "n", "c").unwrap().options, None);
    }

    #[test]
    fn garbage_on_stdin_is_refused() {
        assert!(matches!(input(&[0xff; 9], "n", "c"), Err(InputError::NotProtobuf(_))));
    }

    #[test]
    fn the_recorded_address_is_read_in_all_three_forms() {
        let address = "unix:///run/s/k";
        let json = br#"{"version":3,"address":"unix:///run/s/k","protocol":"ttrpc"}"#;
        assert_eq!(recorded_address(json).as_deref(), Some(address));
        assert_eq!(
            recorded_address(&reply(Dialect::Bootstrap, address)).as_deref(),
            Some(address)
        );
        assert_eq!(recorded_address(b"unix:///run/s/k\n").as_deref(), Some(address));
        assert_eq!(recorded_address(b"vsock://1:2"), None);
    }
}
