//! What `containerd config dump` says, and what two dumps differ in.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use toml_edit::{DocumentMut, Item, Value};

use super::entry::{Entry, Handler, KeyPath, LOCAL_PULL, Values, spelled, values_of};

/// The plugins that have CRI's handlers: in format 3 and later, in format 2, and in format 1.
pub const PLUGINS: [&str; 3] = ["io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "cri"];
/// Plugins without which containerd has no CRI.
pub(super) const CRI: [&str; 4] = [
    "cri",
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.runtime",
    "io.containerd.cri.v1.images",
];
/// The maximum number of keys that are named; the rest is counted.
const NAMED: usize = 5;

/// A configuration as containerd makes it of its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump {
    values: Values,
    disabled: Vec<String>,
}

/// What the agent has in a configuration, apart from [`LOCAL_PULL`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ours {
    pub handler: Handler,
    /// Runtimes of containerd's own of which the agent's text has a copy, because containerd 1.x drops them otherwise.
    pub copies: Vec<String>,
}

impl Ours {
    /// A handler alone.
    pub fn new(handler: &Handler) -> Ours {
        Ours {
            handler: handler.clone(),
            copies: Vec::new(),
        }
    }
}

/// Why a candidate is not written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("the output of `containerd config dump` is not TOML: {0}")]
    Unparsable(String),
    #[error("the candidate configuration changes more than the handler: {0}")]
    More(String),
    #[error("the candidate configuration loses runtimes: {}", lost(.0))]
    Lost(Vec<String>),
    #[error("containerd sees no change of the handler {0:?} in the candidate: another file overrides it")]
    NotSeen(String),
    #[error("containerd still has the handler {0:?} without the agent's text")]
    StillSeen(String),
}

fn lost(names: &[String]) -> String {
    let names = names.iter().map(|name| format!("runtimes.{name}"));
    names.collect::<Vec<_>>().join(", ")
}

impl Dump {
    /// Reads what `containerd config dump` prints.
    ///
    /// # Errors
    ///
    /// When that is not TOML.
    pub fn parse(text: &str) -> Result<Dump, Mismatch> {
        let document: DocumentMut = text
            .parse()
            .map_err(|cause: toml_edit::TomlError| Mismatch::Unparsable(cause.to_string().trim().to_owned()))?;
        let disabled = document.get("disabled_plugins").and_then(Item::as_array);
        let disabled = disabled.into_iter().flatten().filter_map(Value::as_str);
        let disabled = disabled.map(str::to_owned).collect();
        let mut values = values_of(document.as_item());
        // A candidate has other file names, and containerd 1.x lists them in any order.
        values.retain(|path, _| path[0] != "imports");
        Ok(Dump { values, disabled })
    }

    /// The names of CRI's handlers.
    pub fn runtimes(&self) -> BTreeSet<&str> {
        self.values.keys().filter_map(|path| runtime_of(path)).collect()
    }

    /// What the handler `name` has, by paths relative to its table; empty when there is none.
    pub fn runtime(&self, name: &str) -> Values {
        let of_it = self.values.iter().filter(|(path, _)| runtime_of(path) == Some(name));
        of_it
            .map(|(path, value)| (path[RUNTIMES..].to_vec(), value.clone()))
            .collect()
    }

    /// Whether the handler is there with the agent's values; others may have added to it.
    pub fn has(&self, handler: &Handler) -> bool {
        let found = self.runtime(&handler.name);
        handler
            .values()
            .iter()
            .all(|(path, value)| found.get(path) == Some(value))
    }

    /// Whether CRI is configured to pull images itself. That other keys have the same effect is not seen.
    pub fn pulls_locally(&self) -> bool {
        let path = LOCAL_PULL.map(str::to_owned).to_vec();
        self.values.get(&path).is_some_and(|value| value == "true")
    }

    /// The disabled plugin without which there is no CRI.
    pub fn disables_cri(&self) -> Option<&str> {
        let mut disabled = self.disabled.iter().map(String::as_str);
        disabled.find(|plugin| CRI.contains(plugin))
    }

    /// The runtime `name` as entries, for a table that says the same: zero values are left out where they are the default.
    pub fn entries_of(&self, name: &str) -> Vec<Entry> {
        let is_zero = |value: &str| matches!(value, "\"\"" | "0" | "false" | "[]");
        let values = self.runtime(name).into_iter();
        // What is in no table has to come before what is in one.
        let (own, below): (Vec<_>, Vec<_>) = values.partition(|(path, _)| path.len() == 1);
        let kept = own.into_iter().filter(|(_, value)| !is_zero(value)).chain(below);
        kept.filter_map(|(path, value)| {
            let value = value.parse().ok()?;
            Some(Entry { path, value })
        })
        .collect()
    }
}

/// How many segments a path has before a runtime's own keys.
const RUNTIMES: usize = 5;

/// The runtime that a key belongs to.
fn runtime_of(path: &[String]) -> Option<&str> {
    let [plugins, plugin, containerd, runtimes, name, _, ..] = path else {
        return None;
    };
    let is_runtime = plugins == "plugins"
        && PLUGINS.contains(&plugin.as_str())
        && containerd == "containerd"
        && runtimes == "runtimes";
    is_runtime.then_some(name)
}

/// Whether the difference of two dumps is what the agent wants: its handler is there when `listed`, or gone, and nothing
/// else differs than what `ours` names. After an upgrade of containerd a copy of its default differs from the default that
/// takes its place.
///
/// # Errors
///
/// How the difference is another one.
pub fn verify(old: &Dump, new: &Dump, ours: &Ours, listed: bool) -> Result<(), Mismatch> {
    let (before, after) = (old.runtimes(), new.runtimes());
    let handler = &ours.handler;
    let is_lost = |name: &&str| !after.contains(name) && *name != handler.name;
    let lost: Vec<String> = before.iter().copied().filter(is_lost).map(str::to_owned).collect();
    if !lost.is_empty() {
        return Err(Mismatch::Lost(lost));
    }
    let is_ours = |path: &KeyPath| {
        *path == LOCAL_PULL
            || runtime_of(path).is_some_and(|name| name == handler.name || ours.copies.iter().any(|copy| copy == name))
    };
    let changed = old
        .values
        .iter()
        .filter(|(path, value)| new.values.get(*path) != Some(value));
    let added = new.values.keys().filter(|path| !old.values.contains_key(*path));
    let more: Vec<&KeyPath> = changed
        .map(|(path, _)| path)
        .chain(added)
        .filter(|path| !is_ours(path))
        .collect();
    if !more.is_empty() {
        let named = more.iter().take(NAMED).map(|path| spelled(path));
        let mut text = named.collect::<Vec<_>>().join(", ");
        if more.len() > NAMED {
            text.push_str(&format!(" and {} more", more.len() - NAMED));
        }
        return Err(Mismatch::More(text));
    }
    match listed {
        true if !new.has(handler) => Err(Mismatch::NotSeen(handler.name.clone())),
        false if after.contains(handler.name.as_str()) => Err(Mismatch::StillSeen(handler.name.clone())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = 'pause'\n\
        [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = 'runc'\n";
    const WASI: &str = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.wasi]\n\
        runtime_type = 'io.containerd.wasi.v1'\nruntime_path = '/shim'\n\
        pod_annotations = ['kubewasi.dev/*']\ncontainer_annotations = ['kubewasi.dev/*']\nsnapshotter = ''\n";

    fn ours() -> Ours {
        Ours::new(&Handler::example())
    }

    fn verified(old: &str, new: &str, listed: bool) -> Result<(), Mismatch> {
        verify(&Dump::parse(old).unwrap(), &Dump::parse(new).unwrap(), &ours(), listed)
    }

    #[test]
    fn a_handler_alone_is_added_or_removed() {
        let new = format!("{OLD}{WASI}");
        assert_eq!(verified(OLD, &new, true), Ok(()));
        assert_eq!(verified(&new, OLD, false), Ok(()));
        assert_eq!(verified(OLD, OLD, true), Err(Mismatch::NotSeen("wasi".into())));
        assert_eq!(verified(&new, &new, false), Err(Mismatch::StillSeen("wasi".into())));
        let overridden = new.replace("'/shim'", "'/other'");
        assert_eq!(verified(OLD, &overridden, true), Err(Mismatch::NotSeen("wasi".into())));
    }

    #[test]
    fn another_handler_with_our_name_at_its_beginning_is_not_ours() {
        for name in ["wasi-old", "\"wasi.x\""] {
            let new = format!(
                "{OLD}{WASI}{}",
                WASI.replace("runtimes.wasi", &format!("runtimes.{name}"))
            );
            let error = verified(OLD, &new, true).unwrap_err().to_string();
            assert!(
                error.contains(&format!("runtimes.{name}.runtime_type")) || error.contains("more"),
                "{error}"
            );
            let changed = new.replace(
                &format!("runtimes.{name}]\nruntime_type = 'io"),
                &format!("runtimes.{name}]\nruntime_type = 'other"),
            );
            assert!(matches!(verified(&new, &changed, true), Err(Mismatch::More(_))));
        }
    }

    #[test]
    fn a_lost_runtime_is_named() {
        let without = OLD
            .split("[plugins.\"io.containerd.grpc.v1.cri\".containerd")
            .next()
            .unwrap();
        let error = verified(OLD, &format!("{without}{WASI}"), true).unwrap_err();
        assert_eq!(error, Mismatch::Lost(vec!["runc".into()]));
    }

    #[test]
    fn a_changed_value_elsewhere_is_a_difference_and_another_spelling_is_none() {
        let new = format!("{OLD}{WASI}");
        let changed = new.replace("'pause'", "'other'");
        assert!(matches!(verified(OLD, &changed, true), Err(Mismatch::More(_))));
        assert_eq!(
            verified(OLD, &new.replace("'pause'", "\"pause\" # the same"), true),
            Ok(())
        );
        assert_eq!(verified(OLD, &format!("imports = ['/a']\n{new}"), true), Ok(()));
    }

    #[test]
    fn a_copy_of_the_default_may_differ_from_it_and_its_loss_may_not_go_unnoticed() {
        let mut ours = ours();
        ours.copies = vec!["runc".into()];
        let new = Dump::parse(&format!("{OLD}{WASI}")).unwrap();
        let default = Dump::parse(&OLD.replace("'runc'\n", "'runc'\nsandboxer = 'podsandbox'\n")).unwrap();
        assert_eq!(verify(&new, &default, &ours, false), Ok(()));
    }

    #[test]
    fn the_key_of_a_local_pull_is_no_difference_and_any_other_is() {
        let [_, plugin, key] = LOCAL_PULL;
        let with = |key: &str| format!("{OLD}{WASI}[plugins.'{plugin}']\n{key} = true\n");
        assert_eq!(verified(OLD, &with(key), true), Ok(()));
        let other = verified(OLD, &with("other"), true);
        assert!(matches!(other, Err(Mismatch::More(_))), "{other:?}");
    }

    #[test]
    fn many_differences_are_counted() {
        let many: String = (0..9).map(|number| format!("key{number} = {number}\n")).collect();
        let error = verified("", &many, false).unwrap_err().to_string();
        assert!(error.ends_with("key4 and 4 more"), "{error}");
    }

    #[test]
    fn a_plugin_without_which_there_is_no_cri_is_named() {
        let disables = |text: &str| Dump::parse(text).unwrap().disables_cri().map(str::to_owned);
        assert_eq!(disables("disabled_plugins = ['io.containerd.nri.v1.nri']"), None);
        assert_eq!(disables("disabled_plugins = ['a', 'cri']"), Some("cri".into()));
    }
}
