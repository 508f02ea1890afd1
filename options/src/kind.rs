//! What a value may be, and the test that a written one must pass.

use crate::reference::size;

/// What a value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One of these words.
    Word(&'static [&'static str]),
    /// Any text.
    Text,
    /// An absolute path.
    Path,
    /// A number of bytes, with `Ki`, `Mi` or `Gi` behind it or nothing.
    Bytes { min: u64, max: u64 },
    /// A whole number of seconds.
    Seconds { min: u64, max: u64 },
    /// A whole number.
    Count { min: u64, max: u64 },
    /// `true` or `false`.
    Switch,
    /// How often an instance is used: `auto` (0), `per-request` (1) or `reuse(N)`.
    Instance { max: u64 },
}

/// A value that passed its kind's test.
pub(crate) enum Value {
    Text(String),
    Number(u64),
    Switch(bool),
}

/// Why a value is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("{value} is not {wanted}")]
    Kind { value: String, wanted: String },
    #[error("{value} is out of range, it must be {min} to {max}")]
    Range { value: String, min: String, max: String },
}

impl Kind {
    /// Tests a value as it is written in TOML strings and in annotations.
    pub(crate) fn read(self, written: &str) -> Result<Value, ValueError> {
        let wrong = || self.wrong(format!("{written:?}"));
        match self {
            Kind::Word(words) if words.contains(&written) => Ok(Value::Text(written.to_owned())),
            Kind::Text => Ok(Value::Text(written.to_owned())),
            Kind::Path if written.starts_with('/') => Ok(Value::Text(written.to_owned())),
            Kind::Switch => written.parse().map(Value::Switch).map_err(|_| wrong()),
            Kind::Word(_) | Kind::Path => Err(wrong()),
            Kind::Instance { max } => match written {
                "auto" => Ok(Value::Number(0)),
                "per-request" => Ok(Value::Number(1)),
                _ => {
                    let inner = written.strip_prefix("reuse(").and_then(|rest| rest.strip_suffix(')'));
                    let requests = inner.and_then(number).ok_or_else(wrong)?;
                    in_range(written, requests, 1, max, |bound| format!("reuse({bound})"))
                }
            },
            Kind::Bytes { min, max } => in_range(written, bytes(written).ok_or_else(wrong)?, min, max, size),
            Kind::Seconds { min, max } | Kind::Count { min, max } => {
                let number = number(written).ok_or_else(wrong)?;
                in_range(written, number, min, max, |bound| bound.to_string())
            }
        }
    }

    /// That `value`, as it was written, is of another kind.
    pub(crate) fn wrong(self, value: String) -> ValueError {
        let wanted = match self {
            Kind::Word(words) => format!("one of {}", words.join(", ")),
            Kind::Text => "text in quotes".to_owned(),
            Kind::Path => "an absolute path in quotes".to_owned(),
            Kind::Bytes { .. } => "a number of bytes like 67108864 or \"64Mi\" (units: Ki, Mi, Gi)".to_owned(),
            Kind::Seconds { .. } => "a whole number of seconds".to_owned(),
            Kind::Count { .. } => "a whole number".to_owned(),
            Kind::Switch => "true or false".to_owned(),
            Kind::Instance { .. } => "auto, per-request or reuse(N)".to_owned(),
        };
        ValueError::Kind { value, wanted }
    }

    /// Its unit and range, for the documentation.
    pub(crate) fn shown(self) -> String {
        match self {
            Kind::Word(words) => words.join(" | "),
            Kind::Text => "text".to_owned(),
            Kind::Path => "absolute path".to_owned(),
            Kind::Bytes { min, max } => format!("bytes, {} to {}", size(min), size(max)),
            Kind::Seconds { min, max } => format!("seconds, {min} to {max}"),
            Kind::Count { min, max } => format!("number, {min} to {max}"),
            Kind::Switch => "true | false".to_owned(),
            Kind::Instance { max } => format!("auto | per-request | reuse(1) to reuse({max})"),
        }
    }
}

/// A whole number of any sign and size, so that one too small or too large is out of range and not nonsense.
fn number(written: &str) -> Option<i128> {
    written.parse().ok()
}

fn bytes(written: &str) -> Option<i128> {
    let (digits, unit) = match written.find(|c: char| c.is_ascii_alphabetic()) {
        Some(at) => written.split_at(at),
        None => (written, ""),
    };
    let factor: i128 = match unit {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    number(digits)?.checked_mul(factor)
}

fn in_range(
    written: &str,
    number: i128,
    min: u64,
    max: u64,
    shown: impl Fn(u64) -> String,
) -> Result<Value, ValueError> {
    match u64::try_from(number) {
        Ok(number) if (min..=max).contains(&number) => Ok(Value::Number(number)),
        _ => Err(ValueError::Range {
            value: written.to_owned(),
            min: shown(min),
            max: shown(max),
        }),
    }
}
