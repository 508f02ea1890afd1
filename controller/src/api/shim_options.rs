//! The shim's options in a WasmRuntime: a view of the option table, as a schema, a map and TOML.

use std::borrow::Cow;
use std::collections::BTreeMap;

use kubewasi_options::{Entry, Kind, OptionsError, TABLE};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Options of the shim, by the keys of the option table; a key that is missing has its default.
///
/// The schema has each key with its kind and range, so the API server refuses what the shim would refuse.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShimOptions(pub BTreeMap<String, OptionValue>);

/// A value as it is written in YAML and in TOML.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OptionValue {
    Switch(bool),
    Number(i64),
    Text(String),
}

impl ShimOptions {
    /// Whether everything has its default.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The options as the shim reads them, keys in order.
    pub fn to_toml(&self) -> String {
        let mut document = toml_edit::DocumentMut::new();
        for (key, value) in &self.0 {
            document[key] = match value {
                OptionValue::Switch(on) => toml_edit::value(*on),
                OptionValue::Number(number) => toml_edit::value(*number),
                OptionValue::Text(text) => toml_edit::value(text),
            };
        }
        document.to_string()
    }

    /// Asks the shim's own parser; it is stricter than a schema can be where a newer controller met an older resource.
    pub fn check(&self) -> Result<(), OptionsError> {
        kubewasi_options::parse(&self.to_toml()).map(drop)
    }
}

impl JsonSchema for ShimOptions {
    fn schema_name() -> Cow<'static, str> {
        "ShimOptions".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let properties: Map<String, Value> = TABLE
            .iter()
            .map(|entry| (entry.key.to_owned(), property(entry)))
            .collect();
        json_schema!({
            "description": "Options of the shim; a change needs no restart of containerd.",
            "type": "object",
            "properties": properties,
        })
    }
}

fn property(entry: &Entry) -> Value {
    let doc = format!("{} Default: {}.", entry.doc, entry.default);
    match entry.kind {
        Kind::Word(words) => json!({"description": doc, "type": "string", "enum": words}),
        // Long enough for any filter or name, short enough for the cost limit of validation.
        Kind::Text => json!({"description": doc, "type": "string", "maxLength": 1024}),
        Kind::Path => json!({"description": doc, "type": "string", "maxLength": 1024, "pattern": "^/"}),
        Kind::Bytes { min, max } => json!({
            "description": format!("{doc} Bytes, with Ki, Mi or Gi behind the number or nothing."),
            "type": "string",
            "maxLength": 20,
            "pattern": "^[0-9]+(Ki|Mi|Gi)?$",
            "x-kubernetes-validations": [{
                "rule": format!(
                    "quantity(self).compareTo(quantity('{min}')) >= 0 && quantity(self).compareTo(quantity('{max}')) <= 0"
                ),
                "message": format!("must be {} to {}", kubewasi_options::size(min), kubewasi_options::size(max)),
            }],
        }),
        Kind::Seconds { min, max } => json!({
            "description": format!("{doc} Seconds."),
            "type": "integer", "format": "int64", "minimum": min, "maximum": max,
        }),
        Kind::Count { min, max } => json!({
            "description": doc, "type": "integer", "format": "int64", "minimum": min, "maximum": max,
        }),
        Kind::Switch => json!({"description": doc, "type": "boolean"}),
        Kind::Instance { max } => json!({
            "description": doc,
            "type": "string",
            "maxLength": 20,
            "pattern": r"^(auto|per-request|reuse\([0-9]{1,12}\))$",
            "x-kubernetes-validations": [{
                "rule": format!(
                    "!self.startsWith('reuse(') || (int(self.substring(6, size(self) - 1)) >= 1 && \
                     int(self.substring(6, size(self) - 1)) <= {max})"
                ),
                "message": format!("must be auto, per-request or reuse(1) to reuse({max})"),
            }],
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(value: Value) -> ShimOptions {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn every_option_of_the_table_is_in_the_schema_with_its_documentation() {
        let schema = schemars::schema_for!(ShimOptions);
        for entry in TABLE {
            let property = &schema.as_value()["properties"][entry.key];
            let description = property["description"].as_str().unwrap();
            assert!(description.starts_with(entry.doc), "{}: {description}", entry.key);
        }
    }

    #[test]
    fn options_reach_the_shims_parser_as_they_were_written() {
        let toml = options(json!({"log": "a \"b\"", "idle_timeout": 5, "runc_no_pivot_root": true})).to_toml();
        let parsed = kubewasi_options::parse(&toml).unwrap();
        assert_eq!(parsed.log, "a \"b\"");
        assert_eq!(parsed.idle_timeout.as_secs(), 5);
        assert!(parsed.runc_no_pivot_root);
    }

    #[test]
    fn an_option_that_the_table_does_not_know_is_refused_by_the_check() {
        let error = options(json!({"idle_timout": 5})).check().unwrap_err();
        assert!(error.to_string().contains("did you mean idle_timeout?"), "{error}");
    }
}
