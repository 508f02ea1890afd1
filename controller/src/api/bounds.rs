//! Bounds of the schemas where the types have bounds of their own: an object that the API server takes and a type cannot
//! read would be seen by nobody.

use schemars::Schema;
use serde_json::{Value, json};

/// The most of whatever is counted: what every integer type of ours can hold.
pub const MOST_COUNTED: u32 = 2_147_483_647;

/// How many characters a message in a report has at most. An agent cuts what is longer.
pub const MOST_MESSAGE: usize = 8192;

/// How many characters a name, a hash or a version in a report has at most.
pub const MOST_WORD: usize = 253;

/// A time to the second in UTC, as our types write it. The API server's own notion of a date-time has offsets of 99 hours.
const INSTANT: &str =
    r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?Z$";

/// Bounds the schema of a time to what the type can read.
pub fn instant(time: &mut Schema) {
    let Some(time) = time.as_object_mut() else {
        return;
    };
    time.insert("pattern".to_owned(), json!(INSTANT));
    time.insert("maxLength".to_owned(), json!(30));
    // What is compared must be a day of the calendar, and the type's time ends a day before the year 10000 does.
    time.insert(
        "x-kubernetes-validations".to_owned(),
        Value::Array(vec![json!({
            "rule": "self < timestamp('9999-01-01T00:00:00Z')",
            "message": "must be a time before the year 9999",
        })]),
    );
}

/// The first so many characters of a text.
pub fn cut(text: &str, most: usize) -> &str {
    match text.char_indices().nth(most) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::crds;

    /// Calls `look` with each schema below one, and where it is.
    fn each(schema: &Value, path: &str, look: &mut dyn FnMut(&Value, &str)) {
        look(schema, path);
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            each(field, &format!("{path}.{name}"), look);
        }
        if schema["items"].is_object() {
            each(&schema["items"], &format!("{path}[]"), look);
        }
    }

    fn each_of_all(mut look: impl FnMut(&Value, &str)) {
        for crd in crds::all() {
            let crd = json!(crd);
            let kind = crd["spec"]["names"]["kind"].as_str().unwrap();
            each(
                &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"],
                kind,
                &mut look,
            );
        }
    }

    #[test]
    fn every_number_of_32_bits_is_bounded_to_them() {
        let mut found = 0;
        each_of_all(|schema, path| {
            if matches!(schema["format"].as_str(), Some("uint32" | "int32")) {
                found += 1;
                let most = schema["maximum"].as_f64();
                assert!(
                    most.is_some_and(|most| most <= f64::from(MOST_COUNTED)),
                    "{path}: {most:?}"
                );
            }
            if schema["x-kubernetes-int-or-string"] == true {
                found += 1;
                assert!(schema["nullable"].is_null(), "{path}");
                let rule = schema["x-kubernetes-validations"][0]["rule"].as_str().unwrap();
                assert!(rule.contains(&format!("self <= {MOST_COUNTED}")), "{path}: {rule}");
            }
        });
        assert!(found > 8, "{found}");
    }

    #[test]
    fn every_time_and_text_of_a_report_is_bounded() {
        let mut found = 0;
        each_of_all(|schema, path| {
            if !path.starts_with("WasmNode.status.") || schema["type"] != "string" || schema["enum"].is_array() {
                return;
            }
            found += 1;
            assert!(schema["maxLength"].is_u64(), "{path}");
            if schema["format"] == "date-time" {
                assert_eq!(schema["pattern"], INSTANT, "{path}");
                assert!(schema["x-kubernetes-validations"][0]["rule"].is_string(), "{path}");
            }
        });
        assert!(found > 15, "{found}");
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        for (text, kept) in [("äöü", "äö"), ("äö", "äö"), ("", "")] {
            assert_eq!(cut(text, 2), kept);
        }
    }
}
