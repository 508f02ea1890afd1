//! Removes what a killed server has left: its folder, its sockets, its workers' cgroups.

use std::fs;
use std::io;
use std::path::Path;

use super::control::{self, ControlError, Request};
use super::folder::{self, Lock};
use crate::compile::confine;

/// Buries the server of `folder`, unless a new one lives there by now, or is about to.
///
/// # Errors
///
/// What could not be removed.
pub fn bury(folder: &Path) -> io::Result<()> {
    let Some(lock) = Lock::try_take(folder)? else {
        return Ok(());
    };
    if !matches!(
        control::ask(&folder::control(folder), &Request::Status),
        Err(ControlError::Refused(_))
    ) {
        return Ok(());
    }
    // Without settings it never listened.
    if let Ok(settings) = folder::settings(folder) {
        for socket in folder::sockets_of(&settings.socket) {
            match fs::remove_file(socket) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    confine::sweep();
    lock.remove()
}

/// Buries all dead servers but that of `mine`: one that had no container, when it was killed, has no `delete` to do it.
pub fn sweep(mine: &Path) {
    for folder in fs::read_dir(folder::ROOT).into_iter().flatten().flatten() {
        let folder = folder.path();
        if folder == mine {
            continue;
        }
        if let Err(error) = bury(&folder) {
            tracing::warn!(folder = %folder.display(), %error, "cannot remove what a dead server left");
        }
    }
}
