//! The table as text for people.

use std::fmt::Write;

use crate::annotations::{PREFIX, name};
use crate::table::{Entry, Place, TABLE};

/// The table as `--help` shows it: a line an option.
pub fn reference() -> String {
    let mut text = String::new();
    for Entry {
        key,
        kind,
        default,
        doc,
        ..
    } in TABLE
    {
        let _ = writeln!(text, "  {key:<19} {doc} ({}; default {default})", kind.shown());
    }
    text
}

/// What stands above the table in docs/options.md.
const HEAD: &str = "\
# Options

A handler's options are TOML: in containerd's configuration, or in a file beside the binary, `containerd-shim-wasi-v1.toml`.
A pod narrows those that have an annotation, for all its containers or, as CRI has it, for one. An annotation beats the
handler's option, which beats the default. An unknown key, one that only the handler may set, and a value out of range fail
the pod with key, value and range. Annotations reach the shim where the handler's table in containerd's configuration has
`pod_annotations` and `container_annotations` with `kubewasi.dev/*`.

`kubewasi.dev/config.NAME` is the value that a guest reads as NAME by wasi:config. A name is a label's: at most 63
characters, letters, digits, `-`, `_` and `.`.

This page is written by `cargo run --package kubewasi-options --example reference > docs/options.md`.

| Option | Annotation | What it does | Values | Default |
|---|---|---|---|---|
";

/// The table as docs/options.md has it.
pub fn markdown() -> String {
    let mut text = HEAD.to_owned();
    for Entry {
        key,
        kind,
        default,
        place,
        doc,
        ..
    } in TABLE
    {
        let annotation = match place {
            Place::Handler => String::new(),
            Place::Pod => format!("`{PREFIX}{}`", name(key)),
        };
        let kind = kind.shown().replace('|', "\\|");
        let _ = writeln!(text, "| `{key}` | {annotation} | {doc} | {kind} | `{default}` |");
    }
    text
}

/// A number of bytes as it would be written, in the largest unit that divides it.
pub fn size(bytes: u64) -> String {
    [(1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")]
        .into_iter()
        .find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit))
        .map_or_else(|| bytes.to_string(), |(unit, name)| format!("{}{name}", bytes / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_in_the_reference_with_its_default() {
        let text = reference();
        for entry in TABLE {
            assert!(
                text.lines()
                    .any(|line| line.contains(entry.key) && line.contains(entry.default)),
                "{}",
                entry.key
            );
        }
    }

    #[test]
    fn the_page_of_options_is_the_tables() {
        let page = include_str!("../../docs/options.md");
        assert_eq!(
            page,
            markdown(),
            "docs/options.md is old; its text says how it is written"
        );
    }
}
