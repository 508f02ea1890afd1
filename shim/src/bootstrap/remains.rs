//! What the container of a bundle holds, guest or native: removed by its server, or without one when that is gone.

use std::io;
use std::path::Path;

use crate::sandbox::hooks::Hooks;
use crate::{native, sandbox};

/// Ends and removes all that the container of `bundle` holds. Idempotent; a bundle without a record, or no bundle, has
/// nothing to clean. Returns the hooks that are to be run then. Blocks.
///
/// # Errors
///
/// The first step that failed; the steps after it ran all the same, and may be tried again.
pub fn clean(bundle: &Path) -> io::Result<Option<Hooks>> {
    let native = native::record::clean(bundle);
    let hooks = sandbox::record::clean(bundle)?;
    if let (Err(error), Some(_)) = (&native, &hooks) {
        // No container has both records; its hooks are run all the same.
        tracing::warn!(%error, "a native container left something behind");
        return Ok(hooks);
    }
    native.map(|()| hooks)
}
