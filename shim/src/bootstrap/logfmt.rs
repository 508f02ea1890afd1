//! A log line in containerd's own style, logrus' text format (pure).

use std::fmt::{self, Write};
use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::Level;
use tracing::field::{Field, Visit};

/// The longest line: longer writes into a pipe are not atomic (pipe(7), PIPE_BUF).
pub const LINE_MAX: usize = 4096;

/// The fields of a span or an event, in the order they were recorded; a message is kept apart.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    pub message: String,
    pub pairs: Vec<(&'static str, String)>,
}

impl Fields {
    /// The value of `key`, the last one when it was recorded twice.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs
            .iter()
            .rev()
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value.as_str())
    }

    fn put(&mut self, field: &Field, value: String) {
        if field.name() == "message" {
            self.message = value;
        } else {
            self.pairs.push((field.name(), value));
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

/// One line with its line feed, cut at [`LINE_MAX`] bytes. `fields` are those of the spans, outermost first, and of the
/// event.
pub fn line(time: SystemTime, level: Level, message: &str, fields: &[(&'static str, String)]) -> String {
    // A clock out of RFC 3339's range must not silence the line.
    let stamp = OffsetDateTime::from(time).format(&Rfc3339);
    let level = match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    };
    let mut line = format!("time={:?} level={level} msg=", stamp.unwrap_or_default());
    value(&mut line, message);
    for (key, text) in fields {
        let _ = write!(line, " {key}=");
        value(&mut line, text);
    }
    if line.len() >= LINE_MAX {
        let mut end = LINE_MAX - 1;
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line.truncate(end);
    }
    line.push('\n');
    line
}

/// Quotes what logrus quotes: everything but plain words.
fn value(line: &mut String, text: &str) {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+:".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        line.push_str(text);
    } else {
        let _ = write!(line, "{text:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(nanoseconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds)
    }

    #[test]
    fn a_line_is_what_containerd_itself_would_write() {
        let fields = [
            ("namespace", "k8s.io".to_owned()),
            ("id", "c1".to_owned()),
            ("cause", "no space".to_owned()),
        ];
        assert_eq!(
            line(at(1_700_000_000_123_456_789), Level::WARN, "cannot compile", &fields),
            "time=\"2023-11-14T22:13:20.123456789Z\" level=warning msg=\"cannot compile\" namespace=k8s.io id=c1 \
             cause=\"no space\"\n"
        );
    }

    #[test]
    fn a_value_can_not_forge_a_line_or_a_field() {
        let fields = [
            ("id", "x level=error\nmsg=\"forged\"".to_owned()),
            ("empty", String::new()),
        ];
        assert_eq!(
            line(at(0), Level::INFO, "a", &fields),
            "time=\"1970-01-01T00:00:00Z\" level=info msg=a id=\"x level=error\\nmsg=\\\"forged\\\"\" empty=\"\"\n"
        );
    }

    #[test]
    fn a_long_line_is_cut_so_that_a_pipe_takes_it_whole() {
        let line = line(at(0), Level::INFO, &"ä".repeat(LINE_MAX), &[]);
        assert!(line.len() <= LINE_MAX && line.len() > LINE_MAX - 4, "{}", line.len());
        assert!(line.ends_with('\n'));
    }
}
