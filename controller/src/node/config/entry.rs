//! What the agent wants containerd's configuration to have: keys with values, by the paths of the keys.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml_edit::{Array, Item, Key, Value};

/// The path of a key: its segments from the root of a document.
pub type KeyPath = Vec<String>;

/// Values by the paths of their keys, each as canonical TOML.
pub type Values = BTreeMap<KeyPath, String>;

/// The key by which CRI pulls images itself instead of by the transfer service, from containerd 2.1 on. Files of format 2 and
/// later have it at the same place.
pub const LOCAL_PULL: [&str; 3] = ["plugins", "io.containerd.cri.v1.images", "use_local_image_pull"];

/// A key that the agent writes.
#[derive(Clone, Debug)]
pub struct Entry {
    pub path: KeyPath,
    pub value: Value,
}

impl Entry {
    pub fn new(path: &[&str], value: impl Into<Value>) -> Entry {
        Entry {
            path: path.iter().map(|segment| (*segment).to_owned()).collect(),
            value: value.into(),
        }
    }
}

/// The handler that the agent writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handler {
    /// The WasmRuntime that it belongs to; it names the marks around the agent's text.
    pub runtime: String,
    /// The handler's name.
    pub name: String,
    /// The stable path of the shim.
    pub shim: PathBuf,
    /// Whether CRI is to pull images itself, see [`LOCAL_PULL`].
    #[serde(default)]
    pub local_pull: bool,
}

impl Handler {
    /// One for tests.
    #[cfg(test)]
    pub fn example() -> Handler {
        Handler {
            runtime: "default".into(),
            name: "wasi".into(),
            shim: "/shim".into(),
            local_pull: false,
        }
    }

    /// The keys of the handler's table, relative to it. It has no `options`: containerd 2.x starts no pod with
    /// `hostUsers: false` for a handler that has some, and those next to the shim change without a restart.
    pub fn table(&self) -> Vec<Entry> {
        let annotations = || Value::Array(Array::from_iter(["kubewasi.dev/*"]));
        vec![
            Entry::new(&["runtime_type"], "io.containerd.wasi.v1"),
            Entry::new(&["runtime_path"], self.shim.display().to_string()),
            Entry::new(&["pod_annotations"], annotations()),
            Entry::new(&["container_annotations"], annotations()),
        ]
    }

    /// The same by path, as [`values_of`] reads them.
    pub fn values(&self) -> Values {
        let entries = self.table().into_iter();
        entries
            .map(|entry| (entry.path, canonical(&Item::Value(entry.value))))
            .collect()
    }
}

/// A key's path as TOML spells it.
pub fn spelled(path: &[String]) -> String {
    let segments = path.iter().map(|segment| Key::new(segment).to_string());
    segments.collect::<Vec<_>>().join(".")
}

/// All values below `item`. Tables without values leave no trace.
pub fn values_of(item: &Item) -> Values {
    let mut values = Values::new();
    collect(item, &mut KeyPath::new(), &mut values);
    values
}

fn collect(item: &Item, path: &mut KeyPath, into: &mut Values) {
    let Some(table) = item.as_table_like() else {
        into.insert(path.clone(), canonical(item));
        return;
    };
    for (key, child) in table.iter() {
        path.push(key.to_owned());
        collect(child, path, into);
        path.pop();
    }
}

/// A value independent of its spelling: without comments and spaces, with one kind of quotes.
pub fn canonical(item: &Item) -> String {
    match item {
        Item::Value(value) if value.is_str() => format!("{:?}", value.as_str().unwrap_or_default()),
        Item::Value(value) => match value.as_array() {
            Some(array) => {
                let parts = array.iter().map(|value| canonical(&Item::Value(value.clone())));
                format!("[{}]", parts.collect::<Vec<_>>().join(", "))
            }
            None => value.clone().decorated("", "").to_string(),
        },
        other => other.to_string().trim().to_owned(),
    }
}
