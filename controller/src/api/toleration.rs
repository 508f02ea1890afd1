//! What Kubernetes asks of a toleration, as rules of the schema: the type in its own has none, and a pod with a wrong one
//! is refused only when the DaemonSet or the RuntimeClass is written, where nobody looks.

use schemars::Schema;
use serde_json::{Value, json};

/// The key of a taint: a name, perhaps below a domain.
pub const TAINT_KEY: &str = r"^([a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$";

/// The value of a taint. None is left out: the API server forgets an empty one, and what is not as it was written would
/// be written again and again.
const TAINT_VALUE: &str = "^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$";

/// Adds the rules to the schema of a list of tolerations. The bounds also are what makes the rules cheap enough for the
/// API server, which estimates their cost.
pub fn strict(list: &mut Schema) {
    let Some(item) = list.get_mut("items").and_then(Value::as_object_mut) else {
        return;
    };
    let rules = [
        ("key", json!({"minLength": 1, "maxLength": 317, "pattern": TAINT_KEY})),
        ("operator", json!({"enum": ["Exists", "Equal"]})),
        (
            "value",
            json!({"minLength": 1, "maxLength": 63, "pattern": TAINT_VALUE}),
        ),
        (
            "effect",
            json!({"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]}),
        ),
    ];
    for (field, rule) in rules {
        if let (Some(field), Value::Object(rule)) =
            (item.get_mut("properties").and_then(|all| all.get_mut(field)), rule)
            && let Some(field) = field.as_object_mut()
        {
            field.extend(rule);
        }
    }
    item.insert(
        "x-kubernetes-validations".to_owned(),
        json!([
            {
                "rule": "has(self.key) || (has(self.operator) && self.operator == 'Exists')",
                "message": "a toleration without a key is for every taint, and needs operator Exists",
            },
            {
                "rule": "!has(self.value) || !has(self.operator) || self.operator != 'Exists'",
                "message": "a toleration with operator Exists is for every value, and has none",
            },
            {
                "rule": "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
                "message": "tolerationSeconds need effect NoExecute",
            },
        ]),
    );
}
