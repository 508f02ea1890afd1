//! The tables that are ours: what they say, and how they are known again.

use std::path::PathBuf;

use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use toml_edit::{Array, DocumentMut, Item, Table, Value, value};

use super::difference::{Flat, flatten};
use super::root::PATH;

/// What our table says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handler {
    /// The WasmRuntime that it belongs to: the mark by which our tables are known.
    pub runtime: String,
    /// The handler's name.
    pub name: String,
    /// The stable path of the shim.
    pub shim: PathBuf,
}

/// The comment above our table; its beginning is how we know it again.
fn mark(runtime: &str) -> String {
    format!("# kubewasi {runtime}: written by the node agent, and removed by it")
}

/// The comment above a default runtime that containerd 1.x would lose if ours were alone in the map. It ends with a
/// digest of what the copy says, so that one that was edited since is known to be somebody else's by now.
fn copy_mark(runtime: &str, copy: &Item) -> String {
    let mut flat = Flat::new();
    flatten(copy, &mut String::new(), &mut flat);
    let mut digest = Sha256::new();
    for (key, value) in flat {
        digest.update(format!("{key}={value}\n"));
    }
    let digest: String = digest.finalize()[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!(
        "# kubewasi {runtime}: a copy of containerd's default, which would drop out beside the next table ({digest})"
    )
}

/// Our table. It has no `options`: containerd 2.x starts no pod with `hostUsers: false` for a handler that has some, and
/// those beside the binary change without a restart.
pub fn our_table(handler: &Handler) -> Table {
    let annotations = || value(Value::Array(Array::from_iter(["kubewasi.dev/*"])));
    let mut table = Table::new();
    table.decor_mut().set_prefix(format!("\n{}\n", mark(&handler.runtime)));
    table.insert("runtime_type", value("io.containerd.wasi.v1"));
    table.insert("runtime_path", value(handler.shim.display().to_string()));
    table.insert("pod_annotations", annotations());
    table.insert("container_annotations", annotations());
    table
}

/// Whether a table says what ours does, whoever wrote it.
pub fn says(item: &Item, handler: &Handler) -> bool {
    let flat = |item: &Item| {
        let mut flat = Flat::new();
        flatten(item, &mut String::new(), &mut flat);
        flat
    };
    flat(item) == flat(&Item::Table(our_table(handler)))
}

/// The default runtime as a table, from what the running CRI plugin has: its type and all of its options.
///
/// Nothing when the running one does not tell its type.
pub fn copy_of(entry: &Json, handler: &Handler) -> Option<Table> {
    let runtime_type = entry["runtimeType"].as_str().filter(|text| !text.is_empty())?;
    let mut table = Table::new();
    table.insert("runtime_type", value(runtime_type));
    // 1.7's default has one, and a table without it has none.
    if let Some(mode) = entry["sandboxMode"].as_str().filter(|mode| !mode.is_empty()) {
        table.insert("sandbox_mode", value(mode));
    }
    if let Some(options) = entry["options"].as_object().filter(|options| !options.is_empty()) {
        let mut copied = Table::new();
        for (key, option) in options {
            match option {
                Json::Bool(on) => copied.insert(key, value(*on)),
                Json::String(text) => copied.insert(key, value(text.as_str())),
                Json::Number(number) => number.as_i64().and_then(|number| copied.insert(key, value(number))),
                // runc's options have no others.
                _ => None,
            };
        }
        table.insert("options", Item::Table(copied));
    }
    let mark = copy_mark(&handler.runtime, &Item::Table(table.clone()));
    table.decor_mut().set_prefix(format!("\n{mark}\n"));
    Some(table)
}

/// Whether the comment above a table says that it is ours.
pub fn is_marked(item: &Item, handler: &Handler) -> bool {
    comment(item).contains(&mark(&handler.runtime))
}

/// Whether a table is a copied default that nobody has edited since.
pub fn is_our_copy(item: &Item, handler: &Handler) -> bool {
    comment(item).contains(&copy_mark(&handler.runtime, item))
}

/// The comment above a table.
fn comment(item: &Item) -> &str {
    let prefix = item.as_table().and_then(|table| table.decor().prefix());
    prefix.and_then(|prefix| prefix.as_str()).unwrap_or_default()
}

/// The map of handlers, to be edited; nothing where it, or what it is in, is no [table].
pub fn runtimes_mut<'a>(document: &'a mut DocumentMut, plugin: &str) -> Option<&'a mut Table> {
    let mut table = document.as_table_mut();
    for key in PATH.map(|key| key.unwrap_or(plugin)) {
        table = table.get_mut(key)?.as_table_mut()?;
    }
    Some(table)
}

/// As [`runtimes_mut`], with the tables on the way made where they are missing; nothing where one is no table.
pub fn runtimes_made<'a>(document: &'a mut DocumentMut, plugin: &str) -> Option<&'a mut Table> {
    let mut table = document.as_table_mut();
    for key in PATH.map(|key| key.unwrap_or(plugin)) {
        let item = table.entry(key).or_insert_with(|| {
            let mut made = Table::new();
            // Without a header of its own: it has nothing but tables.
            made.set_implicit(true);
            Item::Table(made)
        });
        table = item.as_table_mut().filter(|table| !table.is_dotted())?;
    }
    Some(table)
}
