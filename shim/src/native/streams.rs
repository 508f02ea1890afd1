//! The standard streams of a native process, as runc hands them on: its own are the process's.

use std::io;
use std::process::Stdio as Stream;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use runc::Command;

use crate::stdio::Stdio;

/// Gives the streams to one call of runc; none of them stays here.
#[derive(Debug)]
pub struct HandOver(Mutex<Stdio>);

impl HandOver {
    pub fn new(stdio: Stdio) -> HandOver {
        HandOver(Mutex::new(stdio))
    }
}

#[async_trait]
impl runc::Io for HandOver {
    async fn set(&self, command: &mut Command) -> io::Result<()> {
        let stdio = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let stream = |end: Option<_>| end.map_or_else(Stream::null, Stream::from);
        command
            .stdin(stream(stdio.stdin))
            .stdout(stream(stdio.stdout))
            .stderr(stream(stdio.stderr));
        Ok(())
    }

    async fn close_after_start(&self) {}
}
