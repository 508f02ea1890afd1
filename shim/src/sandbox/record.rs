//! What is left to clean when the server is gone: written into the bundle before the process exists, versioned.

use std::io;
use std::path::Path;

/// Ends and removes all that the container of `bundle` holds: its processes, cgroups and mounts. Idempotent; a bundle
/// without a record has nothing to clean. Used by the server's Delete and by `delete` when no server lives.
pub fn clean(_bundle: &Path) -> io::Result<()> {
    todo!()
}
