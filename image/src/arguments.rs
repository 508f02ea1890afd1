//! The command line.

use std::path::PathBuf;

use clap::Parser;
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::name::Name;
use crate::source::Source;

/// Packs programs as an OCI image.
///
/// Unless a source names platforms, the image is an index for linux/amd64, linux/arm64 and wasi/wasm with shared layers: the
/// form that every containerd pulls, whatever the node's configuration.
#[derive(Debug, Parser)]
#[command(name = "kubewasi-image", version, after_help = AFTER_HELP)]
pub struct Arguments {
    /// The image's name: [REGISTRY/]REPOSITORY[:TAG].
    #[arg(long)]
    pub name: Name,
    /// Where to write it: an OCI archive where the name ends in .tar, else the directory of an OCI layout.
    #[arg(long)]
    pub output: PathBuf,
    /// An argument of the entry point; repeat it for more. The default is the first .wasm file among the sources.
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    entrypoint: Vec<String>,
    /// A default argument after the entry point; repeat it for more.
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    cmd: Vec<String>,
    /// A variable of the environment; repeat it for more.
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// A port that the program listens on, like 8080 or 53/udp; repeat it for more.
    #[arg(long, value_name = "PORT")]
    expose: Vec<String>,
    /// The user, and the group after a colon. A number where the namespace is of the Pod Security level restricted.
    #[arg(long)]
    user: Option<String>,
    /// The working directory.
    #[arg(long)]
    workdir: Option<String>,
    /// A label; repeat it for more.
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// The `config` object of the image's configuration as JSON. Options above replace its fields; --env, --expose and
    /// --label add to them.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    config: String,
    /// Leaves the layers as they are: larger, and faster to load on this machine.
    #[arg(long)]
    pub uncompressed: bool,
    /// What goes into the image, a layer each: [PLATFORM[,PLATFORM...]=]PATH[:DESTINATION].
    ///
    /// A file goes to the root directory under its own name, and the contents of a directory to the root directory, unless
    /// an absolute DESTINATION is given.
    #[arg(required = true, value_name = "SOURCE")]
    pub sources: Vec<Source>,
}

const AFTER_HELP: &str = "\
Examples:
  kubewasi-image --name registry.example/hello:1.0 --output hello.tar hello.wasm
  kubewasi-image --name registry.example/shop:1.0 --output shop.tar --expose 8080 --user 65532 shop.wasm assets:/srv
  skopeo copy --all oci-archive:hello.tar docker://registry.example/hello:1.0
  ctr --namespace k8s.io image import hello.tar
  docker load --input hello.tar";

impl Arguments {
    /// The `config` of the image's configuration (OCI image-spec, config.md).
    pub fn config(&self) -> Result<Map<String, Value>, Error> {
        let mut config: Map<String, Value> = serde_json::from_str(&self.config).map_err(|cause| Error::Config {
            text: self.config.clone(),
            cause,
        })?;
        for variable in &self.env {
            pair("env", variable)?;
        }
        let ports = self.expose.iter().map(|port| {
            let port = if port.contains('/') {
                port.clone()
            } else {
                format!("{port}/tcp")
            };
            (port, json!({}))
        });
        let mut labels = Map::new();
        for label in &self.label {
            let (name, value) = pair("label", label)?;
            labels.insert(name.to_owned(), value.into());
        }
        let entrypoint = match self.entrypoint.as_slice() {
            [] if !config.contains_key("Entrypoint") => self.program().into_iter().collect(),
            given => given.to_vec(),
        };
        for (field, value) in [
            ("Entrypoint", json!(entrypoint)),
            ("Cmd", json!(self.cmd)),
            ("Env", json!(self.env)),
            ("ExposedPorts", Value::Object(ports.collect())),
            ("User", json!(self.user.as_deref().unwrap_or_default())),
            ("WorkingDir", json!(self.workdir.as_deref().unwrap_or_default())),
            ("Labels", Value::Object(labels)),
        ] {
            if is_empty(&value) {
                continue;
            }
            match (config.get_mut(field), value) {
                (Some(Value::Array(given)), Value::Array(more)) if field == "Env" => given.extend(more),
                (Some(Value::Object(given)), Value::Object(more)) => given.extend(more),
                (_, value) => _ = config.insert(field.to_owned(), value),
            }
        }
        Ok(config)
    }

    /// The path in the image of the first .wasm file among the sources.
    fn program(&self) -> Option<String> {
        let is_program = |source: &&Source| {
            source.path.extension().is_some_and(|extension| extension == "wasm") && !source.path.is_dir()
        };
        let source = self.sources.iter().find(is_program)?;
        Some(source.target().display().to_string())
    }
}

fn pair<'a>(option: &'static str, text: &'a str) -> Result<(&'a str, &'a str), Error> {
    let found = text.split_once('=').filter(|(name, _)| !name.is_empty());
    found.ok_or_else(|| Error::Pair {
        option,
        value: text.to_owned(),
    })
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(arguments: &[&str]) -> Result<Value, Error> {
        let fixed = ["kubewasi-image", "--name", "hello", "--output", "hello.tar"];
        let parsed = Arguments::try_parse_from(fixed.iter().chain(arguments)).unwrap();
        parsed.config().map(Value::Object)
    }

    #[test]
    fn the_first_wasm_file_is_the_entry_point() {
        let found = config(&["assets:/srv", "out/hello.wasm", "more.wasm"]).unwrap();
        assert_eq!(found, json!({"Entrypoint": ["/hello.wasm"]}));
        let found = config(&["out/hello.wasm:/bin/hello"]).unwrap();
        assert_eq!(found, json!({"Entrypoint": ["/bin/hello"]}));
        let found = config(&["out/hello.wasm:/bin/"]).unwrap();
        assert_eq!(found, json!({"Entrypoint": ["/bin/hello.wasm"]}));
        let directory = tempfile::tempdir().unwrap();
        let named = directory.path().join("site.wasm");
        std::fs::create_dir(&named).unwrap();
        let found = config(&[&named.display().to_string(), "hello.wasm"]).unwrap();
        assert_eq!(found, json!({"Entrypoint": ["/hello.wasm"]}));
    }

    #[test]
    fn options_become_the_fields_of_the_configuration() {
        let options = [
            "--entrypoint",
            "/app.wasm",
            "--entrypoint",
            "serve",
            "--cmd",
            "--verbose",
            "--env",
            "A=b=c",
            "--expose",
            "8080",
            "--expose",
            "53/udp",
            "--user",
            "65532:65532",
            "--workdir",
            "/srv",
            "--label",
            "a.b=c",
            "root",
        ];
        let expected = json!({
            "Entrypoint": ["/app.wasm", "serve"], "Cmd": ["--verbose"], "Env": ["A=b=c"],
            "ExposedPorts": {"8080/tcp": {}, "53/udp": {}}, "User": "65532:65532", "WorkingDir": "/srv",
            "Labels": {"a.b": "c"},
        });
        assert_eq!(config(&options).unwrap(), expected);
    }

    #[test]
    fn a_given_configuration_is_kept_and_added_to() {
        let found = config(&[
            "--config",
            r#"{"Entrypoint":["/x"],"User":"1"}"#,
            "--user",
            "2",
            "a.wasm",
        ])
        .unwrap();
        assert_eq!(found, json!({"Entrypoint": ["/x"], "User": "2"}));
        let given = r#"{"Env":["PATH=/bin"],"Labels":{"a":"1"},"ExposedPorts":{"80/tcp":{}}}"#;
        let found = config(&[
            "--config", given, "--env", "B=2", "--label", "b=2", "--expose", "81", "root",
        ])
        .unwrap();
        let expected = json!({
            "Env": ["PATH=/bin", "B=2"], "Labels": {"a": "1", "b": "2"}, "ExposedPorts": {"80/tcp": {}, "81/tcp": {}},
        });
        assert_eq!(found, expected);
        let refused = config(&["--config", "[]", "a.wasm"]).unwrap_err().to_string();
        assert!(refused.contains("must be a JSON object"), "{refused}");
    }

    #[test]
    fn a_variable_without_a_value_is_refused() {
        let refused = config(&["--env", "HOME", "a.wasm"]).unwrap_err().to_string();
        assert_eq!(refused, "invalid --env \"HOME\": must be NAME=VALUE");
    }
}
