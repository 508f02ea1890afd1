//! What a container's first argument asks for: which export, and at which paths the file may be (pure).

use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Splits `app.wasm#export` into the file and the export; `None` when there is no `#` with a name on each side.
pub fn split_export(entry: &str) -> Option<(&str, &str)> {
    entry
        .split_once('#')
        .filter(|(file, export)| !file.is_empty() && !export.is_empty())
}

/// Why no places are looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "PATH names {folders} folders; a program is looked for in at most {MOST_FOLDERS}: give its path, or a shorter PATH"
)]
pub struct PathError {
    folders: usize,
}

/// So many folders of PATH are looked at.
const MOST_FOLDERS: usize = 256;

/// A path of so many bytes names nothing (PATH_MAX).
const LONGEST: usize = 4096;

/// Where a first argument may be in a root filesystem.
#[derive(Debug, PartialEq, Eq)]
pub struct Places {
    /// The argument itself.
    pub name: String,
    /// The paths of the whole argument, the first one first.
    pub whole: Vec<PathBuf>,
    /// When it may name an export: the paths of the file, and the export.
    pub file: Option<(Vec<PathBuf>, String)>,
}

impl Places {
    /// The places of `entry` for a process in `cwd` with this `PATH`.
    pub fn new(entry: &str, cwd: &str, path: Option<&str>) -> Result<Places, PathError> {
        let file = match split_export(entry) {
            Some((file, export)) => Some((places(file, cwd, path)?, export.to_owned())),
            None => None,
        };
        Ok(Places {
            name: entry.to_owned(),
            whole: places(entry, cwd, path)?,
            file,
        })
    }
}

/// The absolute paths at which `entry` may be, the first one first: itself when it has a slash, else the folders of
/// `path` and then `cwd`. Relative paths start in `cwd`, an empty folder in `path` is `cwd` (execvp(3)).
fn places(entry: &str, cwd: &str, path: Option<&str>) -> Result<Vec<PathBuf>, PathError> {
    let whole = |folder: &str| {
        let short = cwd.len() + folder.len() + entry.len() < LONGEST;
        short.then(|| Path::new("/").join(cwd).join(folder).join(entry))
    };
    if entry.contains('/') {
        return Ok(whole("").into_iter().collect());
    }
    let folders = || path.into_iter().flat_map(|path| path.split(':'));
    let mut seen = HashSet::new();
    let named: Vec<&str> = folders()
        .filter(|folder| seen.insert(*folder))
        .take(MOST_FOLDERS + 1)
        .collect();
    if named.len() > MOST_FOLDERS {
        let folders = folders().count();
        return Err(PathError { folders });
    }
    let mut places: Vec<PathBuf> = Vec::new();
    // Few by now: several names of one folder are found by comparing.
    for place in named.into_iter().chain([""]).filter_map(whole) {
        if !places.contains(&place) {
            places.push(place);
        }
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(entry: &str, cwd: &str, path: Option<&str>) -> Vec<String> {
        places(entry, cwd, path)
            .expect("few folders")
            .iter()
            .map(|place| place.display().to_string())
            .collect()
    }

    #[test]
    fn a_name_without_a_slash_is_looked_up_in_path_and_then_in_cwd() {
        assert_eq!(
            shown("app.wasm", "/srv", Some("/bin:rel::/bin")),
            ["/bin/app.wasm", "/srv/rel/app.wasm", "/srv/app.wasm"]
        );
        assert_eq!(shown("app.wasm", "", None), ["/app.wasm"]);
    }

    #[test]
    fn a_path_of_too_many_folders_is_refused_and_one_that_repeats_them_is_not() {
        let numbers = |count: usize| (0..count).map(|number| format!("/{number}:")).collect::<String>();
        assert_eq!(shown("sh", "/", Some(&numbers(MOST_FOLDERS - 1))).len(), MOST_FOLDERS);
        let error = places("sh", "/", Some(&numbers(100_000)))
            .expect_err("too many")
            .to_string();
        assert!(
            error.starts_with("PATH names 100001 folders; ") && error.contains(" 256"),
            "{error}"
        );
        assert_eq!(
            shown("/bin/sh", "/", Some(&numbers(100_000))),
            ["/bin/sh"],
            "nothing is looked for"
        );
        assert_eq!(shown("sh", "/", Some(&"/bin:".repeat(100_000))), ["/bin/sh", "/sh"]);
    }

    #[test]
    fn what_is_longer_than_a_path_can_be_is_nowhere() {
        let long = "x".repeat(LONGEST);
        assert_eq!(shown(&long, "/", Some("/bin")), [] as [String; 0]);
        assert_eq!(shown("sh", "/", Some(&format!("/bin:/{long}"))), ["/bin/sh", "/sh"]);
    }

    #[test]
    fn an_argument_that_may_name_an_export_has_the_places_of_both() {
        let places = Places::new("a#run", "/", Some("/bin")).expect("few");
        assert_eq!(places.whole, [Path::new("/bin/a#run"), Path::new("/a#run")]);
        let file = vec![PathBuf::from("/bin/a"), PathBuf::from("/a")];
        assert_eq!(places.file, Some((file, "run".to_owned())));
    }

    #[test]
    fn a_name_with_a_slash_is_taken_as_it_is_from_cwd() {
        assert_eq!(shown("/app.wasm", "/srv", Some("/bin")), ["/app.wasm"]);
        assert_eq!(shown("./app.wasm", "/srv", Some("/bin")), ["/srv/./app.wasm"]);
        assert_eq!(shown("../app.wasm", "srv", None), ["/srv/../app.wasm"]);
    }

    #[test]
    fn an_export_needs_a_name_on_both_sides_of_the_hash() {
        assert_eq!(split_export("app.wasm#run"), Some(("app.wasm", "run")));
        assert_eq!(split_export("app.wasm#run#fast"), Some(("app.wasm", "run#fast")));
        for entry in ["app.wasm", "app.wasm#", "#run", ""] {
            assert_eq!(split_export(entry), None, "{entry}");
        }
    }
}
