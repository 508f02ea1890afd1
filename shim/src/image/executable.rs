//! What a process exec'd in a container runs: wasm as its entry point is found, or a native binary of its files.
//!
//! It is stricter than the search for an entry point: a single wasm layer answers to its own name and to the one that
//! the container gave it, so that `exec -- sh` does not run it under the name of sh.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::entry::Places;
use super::layers;
use super::origin::Origin;
use super::resolve::{Finding, shown};
use super::rootfs;
use super::{ImageError, Images, Request, Wasm};

/// What every ELF file begins with (elf(5)).
const ELF: &[u8] = b"\x7fELF";
/// What a script begins with (execve(2)).
const SCRIPT: &[u8] = b"#!";

/// How long a look into a container that runs may take: the volumes there may be a dead server's.
const LIVE: Duration = Duration::from_secs(10);

/// What an exec'd process runs.
#[derive(Debug)]
pub enum Executable {
    /// A module or component.
    Wasm(Wasm),
    /// A binary or script at this path of the container.
    Native(PathBuf),
}

impl Images {
    /// Finds what `request` asks to execute in a container that runs, whose first argument is `entry_point` and whose
    /// root is reached by `live`. The image's files come first, since their digests are known; volumes and what has
    /// been mounted since are seen in `live` alone.
    ///
    /// # Errors
    ///
    /// Says what can be executed when there is no such file or layer.
    pub async fn executable(
        &self,
        request: Request<'_>,
        live: &Path,
        entry_point: &str,
    ) -> Result<Executable, ImageError> {
        let entry = request.entry()?;
        let places = request.places()?;
        let view = rootfs::view(request.rootfs, request.root)?;
        let mut finding = self.find(places.clone(), view, request.volumes.clone(), None).await?;
        if matches!(finding, Finding::Missing | Finding::Unknown | Finding::Volume) {
            finding = self.find_live(places, live).await?;
        }
        match finding {
            Finding::Wasm { digest, source, export } => Ok(Executable::Wasm(Wasm {
                digest,
                source,
                name: entry.to_owned(),
                export,
                image: None,
            })),
            Finding::Other { name, head } => native(name, &head),
            Finding::Missing | Finding::Unknown | Finding::Volume => {
                self.named_layer(&request, entry, entry_point).await
            }
        }
    }

    /// Looks in the container's live root, volumes included. One that hangs must not take the server's threads, one a
    /// request, so few may look at once and none is waited for long.
    async fn find_live(&self, places: Arc<Places>, live: &Path) -> Result<Finding, ImageError> {
        let view = rootfs::view(&[], live)?;
        self.find(places, view, Arc::default(), Some(LIVE)).await
    }

    async fn named_layer(
        &self,
        request: &Request<'_>,
        entry: &str,
        entry_point: &str,
    ) -> Result<Executable, ImageError> {
        let origin = self.origin(request).await?;
        let wasm = match &origin {
            Origin::Image(image) => image.layers(),
            Origin::None | Origin::Gone { .. } => Vec::new(),
        };
        let file = super::entry::split_export(entry).map_or(entry, |(file, _)| file);
        let names_one = [entry, file].iter().any(|name| !layers::named(&wasm, name).is_empty());
        if !names_one && entry != entry_point {
            return Err(ImageError::NothingToExecute {
                entry: entry.to_owned(),
                offered: offered(entry_point, &wasm),
            });
        }
        let wasm = self.choose_layer(request.namespace, origin, entry)?;
        Ok(Executable::Wasm(wasm))
    }
}

/// A file that is not wasm, by its name and first bytes.
fn native(name: String, head: &[u8]) -> Result<Executable, ImageError> {
    if head.starts_with(ELF) || head.starts_with(SCRIPT) {
        return Ok(Executable::Native(name.into()));
    }
    if head.is_empty() {
        return Err(ImageError::Empty { name });
    }
    Err(ImageError::NotExecutable {
        name,
        head: shown(head),
    })
}

/// What there is to execute, in words.
fn offered(entry_point: &str, wasm: &[layers::WasmLayer]) -> String {
    match wasm {
        [] => format!("the container's own entry point {entry_point:?}"),
        _ => format!(
            "the container's own entry point {entry_point:?}, a wasm layer of its image ({})",
            layers::list(wasm)
        ),
    }
}

#[cfg(test)]
mod tests;
