//! Waiting for what a cluster does in its own time.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::{Instant, sleep};

/// How long anything may take on a slow machine whose images are all there. A cluster that works needs a fraction.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How often is asked.
const INTERVAL: Duration = Duration::from_millis(200);

/// Looks again and again until `enough` says so, and returns what was seen; after [`PATIENCE`] fails with what was
/// `wanted` and what was last seen.
pub async fn until<T: Debug>(
    wanted: &str,
    look: impl AsyncFnMut() -> Result<T>,
    enough: impl Fn(&T) -> bool,
) -> Result<T> {
    until_within(PATIENCE, wanted, look, enough).await
}

/// As [`until`], for what takes longer by its nature.
pub async fn until_within<T: Debug>(
    patience: Duration,
    wanted: &str,
    mut look: impl AsyncFnMut() -> Result<T>,
    enough: impl Fn(&T) -> bool,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let seen = look().await.with_context(|| format!("waiting for {wanted}"))?;
        if enough(&seen) {
            return Ok(seen);
        }
        if start.elapsed() > patience {
            bail!("waited {} s for {wanted}; last seen: {seen:#?}", patience.as_secs());
        }
        sleep(INTERVAL).await;
    }
}
