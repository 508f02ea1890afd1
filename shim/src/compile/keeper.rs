//! Keeps artifacts in step with the node's images: compiles what arrives before a first pod needs it, and removes what
//! no image holds any more.

use std::sync::Arc;
use std::time::Duration;

use kubewasi_options::WorldChoice;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::Artifacts;
use crate::image::{Change, Images};

/// containerd collects the content of a removed image some time after the event.
const AFTER_REMOVAL: Duration = Duration::from_secs(60);

/// As many changes wait; containerd drops subscribers that are slow for long.
const WAITING: usize = 256;

/// So long it may take to look through one image, and through all of them: the next ones wait for it.
const ONE_IMAGE: Duration = Duration::from_secs(60);
const ALL_IMAGES: Duration = Duration::from_secs(600);

/// Follows containerd's image events for as long as the server lives. Only wasm layers are compiled ahead: a file in a
/// tar layer cannot be told to be an entry point before a container names it. `choice` is what containers run that do not
/// choose.
pub async fn keep(images: Arc<Images>, artifacts: Arc<Artifacts>, choice: WorldChoice) {
    let (sender, mut changes) = mpsc::channel(WAITING);
    let watching = images.watch(sender);
    let acting = async {
        let mut sweep_at: Option<Instant> = None;
        loop {
            tokio::select! {
                change = changes.recv() => match change {
                    Some(Change::Arrived { namespace, name }) => arrived(&images, &artifacts, choice, &namespace, &name).await,
                    // Several removals are one sweep, after the last.
                    Some(Change::Removed { .. }) => sweep_at = Some(Instant::now() + AFTER_REMOVAL),
                    None => return,
                },
                () = async { sleep_until(sweep_at.unwrap_or_else(Instant::now)).await }, if sweep_at.is_some() => {
                    sweep_at = None;
                    sweep(&images, &artifacts).await;
                }
            }
        }
    };
    tokio::join!(watching, acting);
}

async fn arrived(images: &Arc<Images>, artifacts: &Arc<Artifacts>, choice: WorldChoice, namespace: &str, image: &str) {
    let layers = match timeout(ONE_IMAGE, images.wasm_of(namespace, image)).await {
        Err(_) => return tracing::debug!(namespace, image, "an image that arrived could not be read in time"),
        Ok(Ok(layers)) => layers,
        Ok(Err(error)) => return tracing::debug!(namespace, image, %error, "an image that arrived could not be read"),
    };
    for wasm in layers {
        match artifacts.get(images, &wasm, choice, None).await {
            Ok(artifact) => {
                tracing::info!(
                    namespace,
                    image,
                    wasm = wasm.name,
                    cached = artifact.cached,
                    "artifact ready before its first container"
                );
            }
            // The container that needs it gets the error.
            Err(error) => tracing::debug!(namespace, image, %error, "a wasm layer could not be compiled ahead"),
        }
    }
}

async fn sweep(images: &Images, artifacts: &Artifacts) {
    match timeout(ALL_IMAGES, images.live()).await {
        Err(_) => tracing::debug!("artifacts are not swept: the images could not be listed in time"),
        Ok(Ok(live)) => match artifacts.sweep(live).await {
            Ok(removed) => tracing::info!(removed, "artifacts of removed images swept"),
            Err(error) => tracing::warn!(%error, "the artifacts of removed images could not be swept"),
        },
        // What could not be asked is not gone.
        Ok(Err(error)) => tracing::debug!(%error, "artifacts are not swept: the images could not be listed"),
    }
}
