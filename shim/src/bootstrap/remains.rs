//! What the container of a bundle holds, guest or native: removed by its server, or without one when that is gone.

use std::io;
use std::path::Path;

use crate::{native, sandbox};

/// Ends and removes all that the container of `bundle` holds. Idempotent; a bundle without a record, or no bundle, has
/// nothing to clean. Blocks.
///
/// # Errors
///
/// The first step that failed; the steps after it ran all the same, and may be tried again.
pub fn clean(bundle: &Path) -> io::Result<()> {
    native::record::clean(bundle).and(sandbox::record::clean(bundle))
}
