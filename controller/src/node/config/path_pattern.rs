//! Patterns of paths as Go's `filepath.Glob` reads them: containerd's `imports` are such.

use std::io;
use std::path::{Component, Path, PathBuf};

use super::files::Disk;

/// Whether a path, or a part of one, is a pattern.
fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '[', '\\'])
}

/// A path without `.`, `..` and doubled slashes, by its text alone: Go's `filepath.Clean`.
pub fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                cleaned.pop();
            }
            component => cleaned.push(component),
        }
    }
    cleaned
}

/// The paths that an absolute pattern matches, in Go's order; directories that cannot be read match nothing.
pub fn expand(pattern: &Path, disk: &impl Disk) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::from("/")];
    let mut components = pattern.components().skip(1).peekable();
    while let Some(component) = components.next() {
        let text = component.as_os_str().to_string_lossy().into_owned();
        let is_last = components.peek().is_none();
        if !is_pattern(&text) && !is_last {
            found = found.into_iter().map(|path| path.join(&text)).collect();
            continue;
        }
        let pattern: Vec<char> = text.chars().collect();
        let mut next = Vec::new();
        for directory in found {
            let mut names = match disk.list(&directory) {
                Ok(names) => names,
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    continue;
                }
                Err(error) => return Err(error),
            };
            names.sort_unstable();
            names.retain(|name| matches(&pattern, &name.chars().collect::<Vec<_>>()));
            next.extend(names.into_iter().map(|name| directory.join(name)));
        }
        found = next;
    }
    Ok(found)
}

/// Whether a name matches: Go's `filepath.Match` without separators.
fn matches(pattern: &[char], name: &[char]) -> bool {
    match (pattern.first(), name.first()) {
        (None, None) => true,
        (Some('*'), _) => matches(&pattern[1..], name) || (!name.is_empty() && matches(pattern, &name[1..])),
        (Some('?'), Some(_)) => matches(&pattern[1..], &name[1..]),
        (Some('['), Some(first)) => {
            let Some(length) = pattern.iter().skip(2).position(|char| *char == ']') else {
                return false;
            };
            class(&pattern[1..length + 2], *first) && matches(&pattern[length + 3..], &name[1..])
        }
        (Some('\\'), Some(first)) => pattern.get(1) == Some(first) && matches(&pattern[2..], &name[1..]),
        (Some(char), Some(first)) => char == first && matches(&pattern[1..], &name[1..]),
        _ => false,
    }
}

/// Whether a class like `a-z` or `^0` has `char`.
fn class(class: &[char], char: char) -> bool {
    let (negated, mut rest) = match class.first() {
        Some('^') => (true, &class[1..]),
        _ => (false, class),
    };
    let mut is_in = false;
    while let [low, tail @ ..] = rest {
        match tail {
            ['-', high, more @ ..] => {
                is_in |= (low..=high).contains(&&char);
                rest = more;
            }
            _ => {
                is_in |= *low == char;
                rest = tail;
            }
        }
    }
    is_in != negated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_in_go() {
        let matches = |pattern: &str, name: &str| {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            super::matches(&chars(pattern), &chars(name))
        };
        for (pattern, name) in [
            ("*.toml", "a.toml"),
            ("*.toml", ".hidden.toml"),
            ("*", ""),
            ("a*b*c", "a1b2c"),
            ("[0-9]*", "9x"),
            ("[^a]?", "bc"),
            ("\\*", "*"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("*.toml", "a.conf"),
            ("[0-9]", "a"),
            ("[^a]", "a"),
            ("a", "ab"),
            ("[", "["),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn paths_are_cleaned_by_their_text() {
        for (path, cleaned) in [("/a/./b//c", "/a/b/c"), ("/a/../b", "/b"), ("/../a", "/a")] {
            assert_eq!(clean(Path::new(path)), Path::new(cleaned));
        }
    }
}
