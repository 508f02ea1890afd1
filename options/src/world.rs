//! What a component runs as that exports a command and a service.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which of its two worlds is to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorldChoice {
    /// The service; the command where there is no service.
    #[default]
    Auto,
    /// The command, and nothing else.
    Command,
    /// The service, and nothing else.
    Service,
}

impl WorldChoice {
    /// The word in options and annotations.
    pub fn as_str(self) -> &'static str {
        match self {
            WorldChoice::Auto => "auto",
            WorldChoice::Command => "command",
            WorldChoice::Service => "service",
        }
    }
}

impl fmt::Display for WorldChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is none of the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be auto, command or service")]
pub struct NoChoice;

impl FromStr for WorldChoice {
    type Err = NoChoice;

    fn from_str(word: &str) -> Result<WorldChoice, NoChoice> {
        let all = [WorldChoice::Auto, WorldChoice::Command, WorldChoice::Service];
        all.into_iter().find(|choice| choice.as_str() == word).ok_or(NoChoice)
    }
}
