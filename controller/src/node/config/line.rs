//! The lines of a TOML text: where they are, and which table one opens.

use std::ops::Range;

use toml_edit::{DocumentMut, Item};

use super::entry::KeyPath;

/// What some editors put before the first line; containerd 1.x reads such files.
pub const BYTE_ORDER_MARK: &str = "\u{feff}";

/// The table that a line opens.
pub fn header(line: &str) -> Option<KeyPath> {
    let line = line.trim_start_matches(BYTE_ORDER_MARK).trim();
    if !line.starts_with('[') || line.starts_with("[[") {
        return None;
    }
    let document: DocumentMut = line.parse().ok()?;
    let mut path = KeyPath::new();
    let mut item = document.as_item();
    while let Some((key, child)) = item.as_table().and_then(|table| table.iter().next()) {
        path.push(key.to_owned());
        item = child;
    }
    matches!(item, Item::Table(_)).then_some(path)
}

/// The lines of a text with their ends.
pub fn lines(text: &str) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    text.split_inclusive('\n').map(move |line| {
        let range = start..start + line.len();
        start = range.end;
        range
    })
}

/// How many bytes the line break before an offset has.
pub fn break_before(text: &str, offset: usize) -> usize {
    match &text[..offset] {
        before if before.ends_with("\r\n") => 2,
        before if before.ends_with('\n') => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_that_a_line_opens_is_known_however_it_is_spelled() {
        let path = |line: &str| header(line).map(|path| path.join("/"));
        assert_eq!(path("  [a . \"b.c\".'d']  # [e]\r\n"), Some("a/b.c/d".into()));
        assert_eq!(path("\u{feff}[a]"), Some("a".into()));
        for line in ["[[a]]", "a = 1", "# [a]", "[a", "  ]", ""] {
            assert_eq!(path(line), None, "{line}");
        }
    }

    #[test]
    fn a_line_break_is_as_long_as_it_is() {
        for (text, length) in [("a\r\n", 2), ("a\n", 1), ("a", 0)] {
            assert_eq!(break_before(text, text.len()), length, "{text:?}");
            assert_eq!(lines(text).next(), Some(0..text.len()));
        }
    }
}
