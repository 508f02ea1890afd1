//! The limit of open files: this process raises its own, and what it executes for containers gets the one from before.

use std::io;
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::credentials::{Limit, Name};

static BEFORE: OnceLock<Rlimit> = OnceLock::new();

/// Raises the soft limit to the hard one.
///
/// # Errors
///
/// What setrlimit(2) says.
pub fn raise() -> io::Result<()> {
    let before = *BEFORE.get_or_init(|| getrlimit(Resource::Nofile));
    let raised = Rlimit {
        current: before.maximum,
        ..before
    };
    Ok(setrlimit(Resource::Nofile, raised)?)
}

/// The limit that this process began with, which its children would have if it had not been raised; `None` when it was
/// not.
pub fn before() -> Option<Limit> {
    let before = BEFORE.get()?;
    Some(Limit {
        resource: Name::Nofile,
        soft: before.current.unwrap_or(u64::MAX),
        hard: before.maximum.unwrap_or(u64::MAX),
    })
}

#[cfg(test)]
mod tests {
    use tokio::process::Command;

    use super::*;
    use crate::sys::command;

    #[tokio::test]
    async fn a_program_gets_the_limit_from_before_it_was_raised() {
        let limit = getrlimit(Resource::Nofile);
        let low = Rlimit {
            current: Some(777),
            ..limit
        };
        setrlimit(Resource::Nofile, low).expect("lower it");
        raise().expect("raise it");
        assert_eq!(getrlimit(Resource::Nofile).current, limit.maximum);
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "ulimit -Sn"]);
        command::limit_open_files(&mut shell);
        let said = shell.output().await.expect("a shell").stdout;
        assert_eq!(String::from_utf8_lossy(&said), "777\n");
    }
}
