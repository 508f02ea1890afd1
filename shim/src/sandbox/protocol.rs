//! What travels between server, launcher and guest: small messages, fds beside them.

use serde::{Deserialize, Serialize};

/// From the server to the launcher, with the fds that it counts: plan, report, stdin, stdout, stderr; for a guest the
/// artifact, and for a service its counters; for a process beside another in a container that runs, the other one's pidfd. The launcher never reads the
/// plan: it is another tenant's memory in every later child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    Spawn {
        artifact: bool,
        counters: bool,
        beside: bool,
    },
}

/// From the launcher to the server, one for each command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The process exists and its pidfd is beside the message; the helper is reaped, so the server is its parent.
    Forked { pid: i32 },
    /// There is no process; the helper or the launcher says why.
    Failed { message: String },
}

/// From the helper or guest to the server, over the report socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// Confined and loaded; waits for its start.
    Ready,
    /// Could not confine itself or load the artifact; exits.
    Failed { message: String },
    /// How it ended, when the exit code alone does not tell: a trap's message and backtrace.
    Ended { message: String },
}

/// The most bytes of one message; longer texts are cut.
pub const MESSAGE: usize = 16 * 1024;

/// Tells a guest that the scope it waits for is there.
pub const MADE: &[u8] = b"m";

/// Tells a guest that its parent is the server from now on.
pub const ADOPTED: &[u8] = b"a";

/// The byte that starts a guest, from the server over the report socket; the socket's end means that the server died.
pub const START: &[u8] = b"s";

/// Encodes a message, its text cut to what one message holds.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    postcard::to_stdvec(message).unwrap_or_default()
}

/// Decodes a message; `None` for bytes that are none.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<T> {
    postcard::from_bytes(bytes).ok()
}

/// Cuts `text` at a character's border so that it fits one message.
pub fn cut(mut text: String) -> String {
    const ROOM: usize = MESSAGE - 64;
    if text.len() > ROOM {
        let mut end = ROOM;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_at_a_character_and_still_decodes() {
        let report = Report::Ended {
            message: cut("ü".repeat(MESSAGE)),
        };
        let bytes = encode(&report);
        assert!(bytes.len() <= MESSAGE);
        assert_eq!(decode::<Report>(&bytes), Some(report));
    }
}
