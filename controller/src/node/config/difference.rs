//! What two dumps of a configuration differ in, and whether that is one handler alone.

use std::collections::BTreeMap;

use toml_edit::{DocumentMut, Item};

use super::root::plugin;

/// Keys of a dump, dotted, with their values as TOML.
pub type Flat = BTreeMap<String, String>;

/// How a configuration changes when a handler is written into it or taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Nothing that containerd sees.
    None,
    /// The handler, and nothing else, is new.
    Added,
    /// The handler, and nothing else, is gone.
    Removed,
}

/// Why a candidate is not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DifferenceError {
    #[error("what containerd dumps is no TOML: {0}")]
    Unparsable(String),
    #[error("the candidate configuration changes more than the handler: {0}")]
    More(String),
}

/// Compares two dumps of `containerd config dump`, made with the old file and with the candidate.
///
/// # Errors
///
/// When a key outside the handler's table differs; the message names some of them.
pub fn difference(old: &str, new: &str, handler: &str) -> Result<Difference, DifferenceError> {
    let (old, new) = (parse(old)?, parse(new)?);
    let ours = [2, 3].map(|version| format!("plugins.{}.containerd.runtimes.{handler}.", plugin(version)));
    let is_ours = |key: &str| ours.iter().any(|prefix| key.starts_with(prefix.as_str()));
    // The candidate of an imported file is imported by its own name.
    let counts = |key: &str| key != "imports" && !is_ours(key);
    let mut more: Vec<&str> = Vec::new();
    for (key, value) in &old {
        if counts(key) && new.get(key) != Some(value) {
            more.push(key);
        }
    }
    more.extend(
        new.keys()
            .filter(|key| counts(key) && !old.contains_key(*key))
            .map(String::as_str),
    );
    if !more.is_empty() {
        let rest = more.len().saturating_sub(5);
        let mut text = more.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        if rest > 0 {
            text.push_str(&format!(" and {rest} more"));
        }
        return Err(DifferenceError::More(text));
    }
    let has = |flat: &Flat| flat.keys().any(|key| is_ours(key));
    Ok(match (has(&old), has(&new)) {
        (false, true) => Difference::Added,
        (true, false) => Difference::Removed,
        _ => Difference::None,
    })
}

fn parse(dump: &str) -> Result<Flat, DifferenceError> {
    let document: DocumentMut = dump
        .parse()
        .map_err(|cause: toml_edit::TomlError| DifferenceError::Unparsable(cause.to_string().trim().to_owned()))?;
    let mut flat = Flat::new();
    flatten(document.as_item(), &mut String::new(), &mut flat);
    Ok(flat)
}

/// Collects the values below `item`, whose own key is `path`. Tables without values leave no trace.
pub fn flatten(item: &Item, path: &mut String, into: &mut Flat) {
    let Some(table) = item.as_table_like() else {
        into.insert(path.clone(), normal(item));
        return;
    };
    let length = path.len();
    for (key, child) in table.iter() {
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(key);
        flatten(child, path, into);
        path.truncate(length);
    }
}

/// A value without what is only writing: comments, spaces, kinds of quotes.
fn normal(item: &Item) -> String {
    match item {
        Item::Value(value) if value.is_str() => format!("{:?}", value.as_str().unwrap_or_default()),
        Item::Value(value) => match value.as_array() {
            Some(array) => {
                let parts = array.iter().map(|value| normal(&Item::Value(value.clone())));
                format!("[{}]", parts.collect::<Vec<_>>().join(", "))
            }
            None => value.clone().decorated("", "").to_string(),
        },
        other => other.to_string().trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = 'pause'\n\
        [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = 'runc'\n";
    const WASI: &str = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.wasi]\nruntime_type = 'wasi'\n";

    #[test]
    fn a_handler_alone_is_added_or_removed() {
        let new = format!("{OLD}{WASI}");
        assert_eq!(difference(OLD, &new, "wasi"), Ok(Difference::Added));
        assert_eq!(difference(&new, OLD, "wasi"), Ok(Difference::Removed));
        assert_eq!(difference(OLD, OLD, "wasi"), Ok(Difference::None));
    }

    #[test]
    fn another_handler_with_our_name_at_its_beginning_is_not_ours() {
        let new = format!("{OLD}{}", WASI.replace("runtimes.wasi", "runtimes.wasi-old"));
        let error = difference(OLD, &new, "wasi").unwrap_err().to_string();
        assert!(error.contains("runtimes.wasi-old.runtime_type"), "{error}");
    }

    #[test]
    fn a_lost_runtime_is_a_difference() {
        let new = format!(
            "{}{WASI}",
            OLD.split("[plugins.\"io.containerd.grpc.v1.cri\".containerd")
                .next()
                .unwrap()
        );
        let error = difference(OLD, &new, "wasi").unwrap_err().to_string();
        assert!(error.contains("runtimes.runc.runtime_type"), "{error}");
    }

    #[test]
    fn a_changed_value_elsewhere_is_a_difference_and_another_way_to_write_it_is_none() {
        let changed = OLD.replace("'pause'", "'other'");
        assert!(matches!(
            difference(OLD, &changed, "wasi"),
            Err(DifferenceError::More(_))
        ));
        let rewritten = OLD.replace("'pause'", "\"pause\" # the same");
        assert_eq!(difference(OLD, &rewritten, "wasi"), Ok(Difference::None));
        let imported = format!("imports = ['/a']\n{OLD}");
        assert_eq!(difference(OLD, &imported, "wasi"), Ok(Difference::None));
    }

    #[test]
    fn many_differences_are_counted() {
        let many: String = (0..9).map(|number| format!("key{number} = {number}\n")).collect();
        let error = difference("", &many, "wasi").unwrap_err().to_string();
        assert!(error.ends_with("key4 and 4 more"), "{error}");
    }
}
