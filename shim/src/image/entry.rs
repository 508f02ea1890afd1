//! What a container's first argument asks for: which export, and at which paths the file may be (pure).

use std::path::{Path, PathBuf};

/// Splits `app.wasm#export` into the file and the export; `None` when there is no `#` with a name on each side.
pub fn split_export(entry: &str) -> Option<(&str, &str)> {
    entry
        .split_once('#')
        .filter(|(file, export)| !file.is_empty() && !export.is_empty())
}

/// The absolute paths at which `entry` may be, the first one first: itself when it has a slash, else the folders of
/// `path` and then `cwd`. Relative paths start in `cwd`, an empty folder in `path` is `cwd` (execvp(3)).
pub fn places(entry: &str, cwd: &str, path: Option<&str>) -> Vec<PathBuf> {
    let cwd = Path::new("/").join(cwd);
    if entry.contains('/') {
        return vec![cwd.join(entry)];
    }
    let mut places: Vec<PathBuf> = Vec::new();
    for folder in path
        .unwrap_or_default()
        .split(':')
        .filter(|_| path.is_some())
        .chain([""])
    {
        let place = cwd.join(folder).join(entry);
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

/// Whether one of `places` lies in one of `volumes`.
pub fn may_be_in(volumes: &[&Path], places: &[PathBuf]) -> bool {
    places
        .iter()
        .any(|place| volumes.iter().any(|volume| place.starts_with(volume)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_be_in_a_volume_at_or_above_one_of_its_places() {
        let volumes = [Path::new("/tools"), Path::new("/srv/bin/one")];
        let is_in = |entry| may_be_in(&volumes, &places(entry, "/", Some("/bin:/srv/bin")));
        assert!(is_in("/tools/bin/two") && is_in("one"));
        assert!(!is_in("/toolsbin/two") && !is_in("two"));
    }

    fn shown(entry: &str, cwd: &str, path: Option<&str>) -> Vec<String> {
        places(entry, cwd, path)
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
