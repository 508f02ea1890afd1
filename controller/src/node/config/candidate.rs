//! Candidates for a change of containerd's files: into which file, for which plugin. containerd itself
//! decides which of them does what is wanted.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml_edit::Item;

use super::block::{Kind, Part, is_marked, keeping_copies, with, without};
use super::dump::{Dump, Ours, PLUGINS};
use super::entry::{Entry, Handler};
use super::files::{File, Files};
use super::refusal::Refusal;
use super::release::Release;

const RUNTIME: &str = PLUGINS[0];
const CRI: &str = PLUGINS[1];
const CRI_V1: &str = PLUGINS[2];

/// A change of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    pub file: PathBuf,
    /// Its present text; none when it is created.
    pub old: Option<String>,
    /// Its new text; none when it is removed.
    pub new: Option<String>,
}

/// A change of containerd's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The files that change, each once.
    pub edits: Vec<Edit>,
    /// What may differ in what containerd makes of them.
    pub ours: Ours,
    /// Whether containerd sees the change: it does not see a file that nothing imports.
    pub is_seen: bool,
}

/// Where the handler can be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: PathBuf,
    plugin: &'static str,
    /// The version that the file is given: that of the root file in a file of the agent's own.
    version: Option<i64>,
    /// Whether the file is the agent's own.
    is_own: bool,
}

/// The name of the agent's own file.
pub fn own_file(directory: &Path, runtime: &str) -> PathBuf {
    directory.join(format!("90-kubewasi-{runtime}.toml"))
}

/// The places for a handler, the best one first. `drop_ins` is the imported directory for files like the agent's, where
/// there is one.
pub fn places(files: &Files, release: Release, drop_ins: Option<&Path>, runtime: &str) -> Vec<Place> {
    let root = files.root();
    let mut places = Vec::new();
    let mut add = |file: &Path, of: &File, own: Option<Option<i64>>| {
        for (plugin, version) in plugins(files, of, release) {
            places.push(Place {
                file: file.to_owned(),
                plugin,
                version: own.unwrap_or(version),
                is_own: own.is_some(),
            });
        }
    };
    if let Some(directory) = drop_ins.filter(|_| release.merges_imports()) {
        let written = root.document().get("version").and_then(Item::as_integer);
        // Equal to the root's: a higher one stops containerd, or the migration of the root.
        add(&own_file(directory, runtime), root, Some(written));
    }
    add(&root.path, root, None);
    // containerd 1.x has the CRI plugin's table from the last file that has one.
    let others = files.loaded().iter().skip(1).rev();
    for other in others.filter(|other| PLUGINS.iter().any(|plugin| has_plugin(other, plugin))) {
        add(&other.path, other, None);
    }
    places.dedup();
    places
}

/// The plugins whose table containerd may look into, each with the version that the file is given for it.
fn plugins(files: &Files, file: &File, release: Release) -> Vec<(&'static str, Option<i64>)> {
    let has = |plugin: &str| files.loaded().iter().any(|file| has_plugin(file, plugin));
    let written = file.document().get("version").and_then(Item::as_integer);
    match (
        written.unwrap_or_else(|| files.root().version()),
        release.merges_imports(),
    ) {
        (..=1, merges) => {
            let mut found = Vec::new();
            if is_version_free(file) {
                found.push((CRI, Some(2)));
            }
            // Tables of both names are one plugin's to containerd 2.x, which takes either.
            if has(CRI) && !has(CRI_V1) && merges {
                found.extend([(CRI, None), (RUNTIME, None)]);
            } else {
                found.push((CRI_V1, None));
            }
            if has(RUNTIME) && merges {
                found.push((RUNTIME, None));
            }
            found.dedup();
            found
        }
        (_, false) => vec![(CRI, None)],
        (2, true) if !has(RUNTIME) => vec![(CRI, None), (RUNTIME, None)],
        (2, true) => vec![(RUNTIME, None), (CRI, None)],
        (_, true) => vec![(RUNTIME, None), (CRI, None)],
    }
}

fn has_plugin(file: &File, plugin: &str) -> bool {
    let document = file.document();
    let plugins = document.get("plugins").and_then(Item::as_table_like);
    plugins.is_some_and(|plugins| plugins.contains_key(plugin))
}

/// Whether a file has no version, and says the same in format 1 and 2.
fn is_version_free(file: &File) -> bool {
    let document = file.document();
    let is_empty = |key: &str| match document.get(key) {
        None => true,
        Some(item) => item.as_array().is_some_and(toml_edit::Array::is_empty),
    };
    !document.contains_key("version")
        && !document.contains_key("plugins")
        && is_empty("disabled_plugins")
        && is_empty("required_plugins")
}

/// The edits that remove all of the agent's text from `marked` files; with `keep_copies`, the copied runtimes stay.
///
/// # Errors
///
/// When somebody wrote into the agent's table.
pub fn cuts(marked: &[(PathBuf, String)], handler: &Handler, keep_copies: bool) -> Result<Vec<Edit>, Refusal> {
    let mut edits = Vec::new();
    for (file, text) in marked.iter().filter(|(_, text)| is_marked(text, &handler.runtime)) {
        let cut = match keep_copies {
            true => keeping_copies(text, handler),
            false => without(text, handler),
        };
        let rest = cut.map_err(|line| Refusal::Edited {
            file: file.clone(),
            line,
        })?;
        let is_own = file.file_name() == own_file(Path::new(""), &handler.runtime).file_name();
        edits.push(Edit {
            file: file.clone(),
            old: Some(text.clone()),
            new: Some(rest).filter(|rest| !is_own || !is_version_alone(rest)),
        });
    }
    Ok(edits)
}

/// Whether only the version is left in a file of the agent's own.
fn is_version_alone(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.next().is_none_or(|line| line.starts_with("version = ")) && lines.next().is_none()
}

/// The edits that write the handler at `place` into files without the agent's text (`cuts` removed it), with copies of
/// these runtimes of `dump`, and `key`.
///
/// # Errors
///
/// When removing the text from the new file does not restore the old one byte for byte.
pub fn written(
    files: &Files,
    cuts: &[Edit],
    place: &Place,
    handler: &Handler,
    copies: &[String],
    key: Option<&Entry>,
    dump: &Dump,
) -> Result<Vec<Edit>, Refusal> {
    let present = files
        .loaded()
        .iter()
        .find(|file| file.path == place.file)
        .map(|file| file.text.clone());
    let base = match (&present, place.is_own, place.version) {
        (Some(text), _, _) => text.clone(),
        (None, true, Some(version)) => format!("version = {version}\n"),
        (None, _, _) => String::new(),
    };
    let table = |name: &str, entries: Vec<Entry>| -> Vec<Entry> {
        let above = ["plugins", place.plugin, "containerd", "runtimes", name].map(str::to_owned);
        let below = |entry: Entry| Entry {
            path: above.iter().cloned().chain(entry.path).collect(),
            value: entry.value,
        };
        entries.into_iter().map(below).collect()
    };
    let mut parts: Vec<Part> = copies
        .iter()
        .map(|name| Part {
            kind: Kind::Copy,
            entries: table(name, dump.entries_of(name)),
        })
        .collect();
    if let Some(version) = place.version.filter(|_| !place.is_own) {
        parts.push(Part {
            kind: Kind::Own,
            entries: vec![Entry::new(&["version"], version)],
        });
    }
    parts.push(Part {
        kind: Kind::Own,
        entries: table(&handler.name, handler.table()),
    });
    parts.extend(key.map(|key| Part {
        kind: Kind::Own,
        entries: vec![key.clone()],
    }));
    let new = with(&base, &handler.runtime, &parts);
    if without(&new, handler).as_ref() != Ok(&base) {
        return Err(Refusal::Form {
            file: place.file.clone(),
            why: "the agent's text could not be taken out of it again".into(),
        });
    }
    let mut edits: Vec<Edit> = cuts.iter().filter(|cut| cut.file != place.file).cloned().collect();
    let cut = cuts.iter().find(|cut| cut.file == place.file);
    edits.push(Edit {
        file: place.file.clone(),
        old: cut.map_or(present, |cut| cut.old.clone()),
        new: Some(new),
    });
    Ok(edits)
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::Memory;
    use super::*;

    fn places_of(release: &str, text: &str) -> Vec<(&'static str, Option<i64>)> {
        let files = Files::load(Path::new("/c.toml"), &Memory::with(&[("/c.toml", text)])).unwrap();
        let places = places(&files, release.parse().unwrap(), None, "default");
        places.iter().map(|place| (place.plugin, place.version)).collect()
    }

    #[test]
    fn the_plugin_depends_on_release_version_and_what_is_there() {
        assert_eq!(places_of("1.7.35", "version = 2"), [(CRI, None)]);
        assert_eq!(places_of("1.6.20", "version = 3"), [(CRI, None)]);
        assert_eq!(places_of("2.4.2", "version = 3"), [(RUNTIME, None), (CRI, None)]);
        assert_eq!(places_of("2.4.2", "version = 2"), [(CRI, None), (RUNTIME, None)]);
        let mixed = "version = 2\n[plugins.'io.containerd.cri.v1.runtime'.containerd]";
        assert_eq!(places_of("2.4.2", mixed)[0], (RUNTIME, None));
        for release in ["1.6.20", "1.7.35", "2.4.2"] {
            assert_eq!(places_of(release, "# nothing")[0], (CRI, Some(2)));
            assert_eq!(places_of(release, "disabled_plugins = []")[0], (CRI, Some(2)));
            assert_eq!(places_of(release, "[plugins.cri]"), [(CRI_V1, None)]);
        }
    }

    #[test]
    fn a_directory_for_files_like_ours_comes_first_on_containerd_2() {
        let disk = Memory::with(&[
            ("/c.toml", "version = 3\nimports = ['/d/*.toml']"),
            ("/d/a.toml", "[plugins.'io.containerd.cri.v1.runtime']"),
        ]);
        let files = Files::load(Path::new("/c.toml"), &disk).unwrap();
        let of = |release: &str| {
            let places = places(&files, release.parse().unwrap(), Some(Path::new("/d")), "default");
            places
                .iter()
                .map(|place| place.file.display().to_string())
                .collect::<Vec<_>>()
        };
        let own = "/d/90-kubewasi-default.toml";
        assert_eq!(of("2.4.2"), [own, own, "/c.toml", "/c.toml", "/d/a.toml", "/d/a.toml"]);
        assert_eq!(of("1.7.35"), ["/c.toml", "/d/a.toml"]);
    }

    #[test]
    fn a_file_of_our_own_goes_with_its_last_block_and_stays_for_what_others_wrote() {
        let handler = Handler::example();
        let disk = Memory::with(&[("/c.toml", "version = 3\n")]);
        let files = Files::load(Path::new("/c.toml"), &disk).unwrap();
        let place = &places(&files, "2.4.2".parse().unwrap(), Some(Path::new("/d")), "default")[0];
        let edits = written(&files, &[], place, &handler, &[], None, &Dump::parse("").unwrap()).unwrap();
        let [
            Edit {
                file,
                old: None,
                new: Some(new),
            },
        ] = edits.as_slice()
        else {
            panic!("{edits:?}")
        };
        assert!(new.starts_with("version = 3\n"), "{new}");
        let cut = |text: &str| {
            cuts(&[(file.clone(), text.to_owned())], &handler, false).unwrap()[0]
                .new
                .clone()
        };
        assert_eq!(cut(new), None);
        assert_eq!(cut(&format!("{new}[debug]\n")), Some("version = 3\n[debug]\n".into()));
        let root = cuts(&[("/c.toml".into(), new.clone())], &handler, false).unwrap();
        assert_eq!(root[0].new.as_deref(), Some("version = 3\n"));
        assert_eq!(
            cuts(&[("/c.toml".into(), "version = 3\n".into())], &handler, false),
            Ok(vec![])
        );
    }
}
