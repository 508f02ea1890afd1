//! The agent's text in a file: how it is inserted, and how exactly that is removed, whatever others did to the rest.
//!
//! ```text
//! # kubewasi default: written by the node agent, and removed by it
//! [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.wasi]
//! runtime_type = "io.containerd.wasi.v1"
//! # kubewasi default: end of what the node agent wrote (5f3a9c01)
//! ```
//!
//! The end has a digest of what is between the marks. An unchanged block is removed by its span; an edited one
//! is examined line by line, and what others wrote stays.

use std::ops::Range;

use sha2::{Digest, Sha256};
use toml_edit::DocumentMut;

use super::dump::PLUGINS;
use super::entry::{Entry, Handler, LOCAL_PULL, spelled};
use super::line::{BYTE_ORDER_MARK, break_before, header, lines};

/// What a block has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The handler, or another key that the agent wants.
    Own,
    /// A runtime of containerd's, which 1.x drops where any other is written.
    Copy,
}

/// Entries that are written and removed together.
#[derive(Clone, Debug)]
pub struct Part {
    pub kind: Kind,
    pub entries: Vec<Entry>,
}

/// A line that somebody else wrote into the agent's table, and that has no place without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignLine {
    /// The line's number, from 1.
    pub number: usize,
    pub text: String,
}

/// What the first mark says where the line break above it was missing.
const ABOVE: &str = ", with the line break above";

fn begin(runtime: &str, kind: Kind) -> String {
    match kind {
        Kind::Own => format!("# kubewasi {runtime}: written by the node agent, and removed by it"),
        Kind::Copy => {
            format!(
                "# kubewasi {runtime}: a copy of containerd's own runtime, which it drops where another one is written"
            )
        }
    }
}

fn end(runtime: &str) -> String {
    format!("# kubewasi {runtime}: end of what the node agent wrote")
}

/// A digest of what is between two marks, whatever its line ends are.
fn digest(body: &str) -> String {
    let digest = Sha256::digest(body.replace("\r\n", "\n").as_bytes());
    digest[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a text has a block of the agent of `runtime`.
pub fn is_marked(text: &str, runtime: &str) -> bool {
    [Kind::Own, Kind::Copy]
        .iter()
        .any(|kind| text.contains(&begin(runtime, *kind)))
}

/// Puts the parts into a text: keys of a table that has a header go below it, keys of no table to the beginning, and all
/// other tables to the end. Nothing else changes.
pub fn with(text: &str, runtime: &str, parts: &[Part]) -> String {
    let newline = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let mut blocks: Vec<(Place, Kind, String)> = Vec::new();
    for part in parts {
        let mut rest: Vec<&Entry> = part.entries.iter().collect();
        while let Some(first) = rest.first() {
            let here = place(text, parent(first));
            let (placed, others) = rest.iter().partition(|entry| place(text, parent(entry)) == here);
            rest = others;
            blocks.push((here, part.kind, body(&placed, here == Place::End, newline)));
        }
    }
    blocks.sort_by_key(|(place, ..)| *place);
    let (mut with, mut copied) = (String::new(), 0);
    for (place, kind, body) in blocks {
        let at = match place {
            Place::Below(at) => at,
            Place::End => text.len(),
        };
        with.push_str(&text[copied..at]);
        copied = at;
        let has_line_end = with.is_empty() || with == BYTE_ORDER_MARK || with.ends_with('\n');
        let (above, suffix) = if has_line_end { ("", "") } else { (newline, ABOVE) };
        let (begin, end, digest) = (begin(runtime, kind), end(runtime), digest(&body));
        with.push_str(&format!(
            "{above}{begin}{suffix}{newline}{body}{end} ({digest}){newline}"
        ));
    }
    with.push_str(&text[copied..]);
    with
}

/// Where entries of a table go, in the order of a text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// At an offset, where the table is open.
    Below(usize),
    /// At the end, with a header.
    End,
}

fn place(text: &str, table: &[String]) -> Place {
    if table.is_empty() {
        let mark = text.strip_prefix(BYTE_ORDER_MARK).map_or(0, |_| BYTE_ORDER_MARK.len());
        return Place::Below(mark);
    }
    let header = lines(text).find(|line| header(&text[line.clone()]).is_some_and(|path| path == table));
    header.map_or(Place::End, |line| Place::Below(line.end))
}

/// The path of the table that a key is in.
fn parent(entry: &Entry) -> &[String] {
    entry.path.split_last().map_or(&[], |(_, table)| table)
}

fn body(entries: &[&Entry], with_headers: bool, newline: &str) -> String {
    let mut body = String::new();
    let mut table: Option<&[String]> = None;
    for entry in entries {
        if with_headers && table != Some(parent(entry)) {
            table = Some(parent(entry));
            body.push_str(&format!("[{}]{newline}", spelled(parent(entry))));
        }
        let key = spelled(entry.path.last().map_or(&[], std::slice::from_ref));
        body.push_str(&format!("{key} = {}{newline}", entry.value.to_string().trim()));
    }
    body
}

/// A text without the agent's blocks. What others wrote into a block stays, and so does a copy that they edited.
///
/// # Errors
///
/// The first line that has no place without the agent's table.
pub fn without(text: &str, handler: &Handler) -> Result<String, ForeignLine> {
    let mut rest = text.to_owned();
    // From the last to the first, so that spans stay.
    for block in blocks(text, handler).into_iter().rev() {
        let body = &text[block.body.clone()];
        let theirs = match (block.is_intact, block.kind) {
            (true, _) => String::new(),
            (false, Kind::Copy) => body.to_owned(),
            (false, Kind::Own) => foreign(text, &block, handler)?,
        };
        let opens_table = |text: &str| lines(text).any(|line| text[line].trim_start().starts_with('['));
        if opens_table(body) && !opens_table(&theirs) {
            expect_table_below(text, block.span.end)?;
        }
        let is_last = rest.len() == block.span.end;
        let start = match block.has_line_break && is_last && theirs.is_empty() {
            true => block.span.start - break_before(text, block.span.start),
            false => block.span.start,
        };
        rest.replace_range(start..block.span.end, &theirs);
    }
    Ok(rest)
}

/// A text with the agent's copies of containerd's own runtimes, and without its other blocks: it keeps those runtimes
/// where others rely on the copies.
pub fn keeping_copies(text: &str, handler: &Handler) -> Result<String, ForeignLine> {
    let mut kept = text.to_owned();
    for block in blocks(text, handler).into_iter().rev() {
        if block.kind == Kind::Copy {
            kept.replace_range(block.span, &text[block.body]);
        }
    }
    without(&kept, handler)
}

/// The runtimes of which a text has a copy of the agent's.
pub fn copies(text: &str, handler: &Handler) -> Vec<String> {
    let copies = blocks(text, handler)
        .into_iter()
        .filter(|block| block.kind == Kind::Copy);
    let header_of =
        |block: Block| lines(&text[block.body.clone()]).find_map(|line| header(&text[block.body.clone()][line]));
    copies
        .filter_map(header_of)
        .filter_map(|path| path.get(4).cloned())
        .collect()
}

/// Whether a text has [`LOCAL_PULL`] in a block of the agent of `runtime`.
pub fn has_local_pull(text: &str, runtime: &str) -> bool {
    let [.., key] = LOCAL_PULL;
    let (begin, end) = (begin(runtime, Kind::Own), end(runtime));
    let mut is_ours = false;
    text.lines().map(str::trim).any(|line| {
        is_ours = line.starts_with(&begin) || (is_ours && !line.starts_with(&end));
        is_ours && line.starts_with(key)
    })
}

/// A block in a text.
#[derive(Debug)]
struct Block {
    kind: Kind,
    /// With its marks.
    span: Range<usize>,
    /// Between its marks.
    body: Range<usize>,
    /// Whether the line break above is the agent's.
    has_line_break: bool,
    is_intact: bool,
}

fn blocks(text: &str, handler: &Handler) -> Vec<Block> {
    let lines: Vec<Range<usize>> = lines(text).collect();
    let line = |index: usize| text[lines[index].clone()].trim_start_matches(BYTE_ORDER_MARK).trim();
    let opens = |index: usize| {
        [Kind::Own, Kind::Copy].into_iter().find_map(|kind| {
            let rest = line(index).strip_prefix(&begin(&handler.runtime, kind))?;
            Some((kind, rest == ABOVE))
        })
    };
    let end = end(&handler.runtime);
    let mut found = Vec::new();
    let mut index = 0;
    while index < lines.len() {
        let Some((kind, has_line_break)) = opens(index) else {
            index += 1;
            continue;
        };
        let first = index + 1;
        let close = (first..lines.len())
            .take_while(|next| opens(*next).is_none())
            .find(|next| line(*next).starts_with(&end));
        // Without an end mark, the block extends as far as the lines are the agent's.
        let last = close.unwrap_or_else(|| match kind {
            Kind::Own => (first..lines.len())
                .find(|next| !is_own(line(*next), handler))
                .unwrap_or(lines.len()),
            Kind::Copy => first,
        });
        let at = |index: usize| lines.get(index).map_or(text.len(), |line| line.start);
        let body = at(first)..at(last);
        let is_intact = close.is_some_and(|close| line(close) == format!("{end} ({})", digest(&text[body.clone()])));
        // A mark may be the first line after a byte order mark, which is not the agent's.
        let start = at(index)
            + if text[at(index)..].starts_with(BYTE_ORDER_MARK) {
                BYTE_ORDER_MARK.len()
            } else {
                0
            };
        index = close.map_or(last, |close| close + 1);
        found.push(Block {
            kind,
            span: start..at(index),
            body,
            has_line_break,
            is_intact,
        });
    }
    found
}

/// What others wrote into a block of the agent's handler: tables of their own, and comments.
fn foreign(text: &str, block: &Block, handler: &Handler) -> Result<String, ForeignLine> {
    let mut theirs = String::new();
    let mut is_theirs = false;
    for line in lines(text).filter(|line| block.body.start <= line.start && line.end <= block.body.end) {
        let written = &text[line.clone()];
        let trimmed = written.trim();
        if trimmed.starts_with('[') {
            is_theirs = !is_own(trimmed, handler);
        } else if !is_theirs && is_own(trimmed, handler) {
            continue;
        } else if !is_theirs && !trimmed.is_empty() && !trimmed.starts_with('#') {
            return Err(foreign_line(text, line.start));
        } else {
            theirs.push_str(written);
            continue;
        }
        if is_theirs {
            theirs.push_str(written);
        }
    }
    Ok(theirs)
}

/// Whether a line is one of those that the agent writes for its handler, with whatever value.
fn is_own(line: &str, handler: &Handler) -> bool {
    let [above @ .., key_of_pull] = LOCAL_PULL;
    if let Some(path) = header(line) {
        if path == above {
            return true;
        }
        let [plugins, plugin, containerd, runtimes, name] = path.as_slice() else {
            return false;
        };
        return plugins == "plugins"
            && PLUGINS.contains(&plugin.as_str())
            && containerd == "containerd"
            && runtimes == "runtimes"
            && *name == handler.name;
    }
    let Ok(document) = line.parse::<DocumentMut>() else {
        return false;
    };
    let own = handler.table();
    let mut keys = document.iter();
    keys.next()
        .is_some_and(|(key, _)| ["version", key_of_pull].contains(&key) || own.iter().any(|entry| entry.path == [key]))
        && keys.next().is_none()
}

/// Refuses a key below a table of the agent's: it is in that table, whoever wrote it, and would be in another one.
fn expect_table_below(text: &str, offset: usize) -> Result<(), ForeignLine> {
    let below = lines(text).filter(|line| line.start >= offset).find(|line| {
        let line = text[line.clone()].trim();
        !line.is_empty() && !line.starts_with('#')
    });
    match below {
        Some(line) if !text[line.clone()].trim_start().starts_with('[') => Err(foreign_line(text, line.start)),
        _ => Ok(()),
    }
}

fn foreign_line(text: &str, offset: usize) -> ForeignLine {
    ForeignLine {
        number: text[..offset].matches('\n').count() + 1,
        text: text[offset..].lines().next().unwrap_or_default().trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: [&str; 5] = [
        "plugins",
        "io.containerd.cri.v1.runtime",
        "containerd",
        "runtimes",
        "wasi",
    ];

    fn handler() -> Handler {
        Handler {
            runtime: "default".into(),
            name: "wasi".into(),
            shim: "/opt/shim".into(),
            local_pull: false,
        }
    }

    fn below(table: &[&str], entries: Vec<Entry>) -> Vec<Entry> {
        let prefixed = entries.into_iter().map(|entry| Entry {
            path: table
                .iter()
                .map(|segment| (*segment).to_owned())
                .chain(entry.path)
                .collect(),
            value: entry.value,
        });
        prefixed.collect()
    }

    fn parts() -> Vec<Part> {
        let runc = [&TABLE[..4], &["runc"]].concat();
        let copy = vec![
            Entry::new(&["runtime_type"], "io.containerd.runc.v2"),
            Entry::new(&["options", "SystemdCgroup"], true),
        ];
        vec![
            Part {
                kind: Kind::Copy,
                entries: below(&runc, copy),
            },
            Part {
                kind: Kind::Own,
                entries: below(&TABLE, handler().table()),
            },
        ]
    }

    #[test]
    fn a_block_is_put_in_and_taken_out_to_the_byte() {
        for text in [
            "",
            "# a comment",
            "version = 3\n",
            "version = 3",
            "version = 3\r\n[debug]\r\nlevel = 'info'\r\n",
            "version = 3\r\n[debug]\r\nlevel = 'info'",
            "\u{feff}version = 2\n",
            "\u{feff}",
            "[[a.b]]\nx = 1\n\n\n",
            "[plugins.\"x\".\"containerd\".'runtimes'.\"runc\"]\n  a = '1' # one",
        ] {
            let new = with(text, "default", &parts());
            let document: DocumentMut = new.parse().unwrap();
            let mut item = document.as_item();
            for key in TABLE {
                item = &item[key];
            }
            assert_eq!(item["runtime_path"].as_str(), Some("/opt/shim"), "{new}");
            assert!(is_marked(&new, "default") && !is_marked(&new, "other"));
            assert_eq!(without(&new, &handler()).unwrap(), text);
            assert_eq!(new.matches("\r\n").count() > 0, text.contains("\r\n"));
        }
    }

    #[test]
    fn keys_of_no_table_go_to_the_beginning_and_those_of_one_with_a_header_below_it() {
        let text = "\u{feff}# first\r\n[debug] # logs\r\nlevel = 'info'\r\n[grpc]";
        let mut parts = parts();
        parts.push(Part {
            kind: Kind::Own,
            entries: vec![
                Entry::new(&["version"], 2),
                Entry::new(&["debug", "format"], "json"),
                Entry::new(&["grpc", "uid"], 1),
            ],
        });
        let new = with(text, "default", &parts);
        let document: DocumentMut = new.parse().unwrap();
        assert_eq!(document["version"].as_integer(), Some(2), "{new}");
        assert_eq!(document["debug"]["format"].as_str(), Some("json"), "{new}");
        assert_eq!(document["debug"]["level"].as_str(), Some("info"), "{new}");
        assert_eq!(document["grpc"]["uid"].as_integer(), Some(1), "{new}");
        assert_eq!(without(&new, &handler()).unwrap(), text);
    }

    #[test]
    fn what_others_write_around_a_block_stays() {
        let new = with("a = 1", "default", &parts());
        let edited = format!("# above\n{new}\n# below\n[c]\nd = 2\n");
        assert_eq!(
            without(&edited, &handler()).unwrap(),
            "# above\na = 1\n\n# below\n[c]\nd = 2\n"
        );
    }

    #[test]
    fn what_others_write_into_a_block_stays_or_is_named() {
        let new = with("a = 1\n", "default", &parts());
        let end = new.rfind("# kubewasi default: end").unwrap();
        let into = |theirs: &str| format!("{}{theirs}{}", &new[..end], &new[end..]);
        assert_eq!(
            without(&into("# theirs\n[b]\nc = 1\n"), &handler()).unwrap(),
            "a = 1\n# theirs\n[b]\nc = 1\n"
        );
        let named = without(&into("snapshotter = 'x'\n"), &handler()).unwrap_err();
        assert_eq!(named.text, "snapshotter = 'x'");
        assert_eq!(
            into("snapshotter = 'x'\n").lines().nth(named.number - 1),
            Some("snapshotter = 'x'")
        );
        let named = without(&format!("{new}oom_score = 1\n"), &handler()).unwrap_err();
        assert_eq!(
            (named.number, named.text.as_str()),
            (new.lines().count() + 1, "oom_score = 1")
        );
        // Another value of a key of ours is still ours.
        assert_eq!(
            without(&new.replace("/opt/shim", "/tmp/shim"), &handler()).unwrap(),
            "a = 1\n"
        );
    }

    #[test]
    fn a_copy_that_was_edited_is_theirs_from_then_on() {
        let new = with("a = 1\n", "default", &parts()).replace("SystemdCgroup = true", "SystemdCgroup = false");
        let left = without(&new, &handler()).unwrap();
        assert!(
            left.contains("SystemdCgroup = false") && !left.contains("kubewasi"),
            "{left}"
        );
        let kept = keeping_copies(&with("a = 1\n", "default", &parts()), &handler()).unwrap();
        assert!(
            kept.contains("SystemdCgroup = true") && !kept.contains("kubewasi"),
            "{kept}"
        );
    }

    #[test]
    fn a_block_whose_end_is_gone_ends_with_our_lines() {
        let new = with("a = 1\n", "default", &parts()[1..]);
        let end = new.find("# kubewasi default: end").unwrap();
        let open = format!("{}# theirs\n[b]\n", &new[..end]);
        assert_eq!(without(&open, &handler()).unwrap(), "a = 1\n# theirs\n[b]\n");
    }
}
