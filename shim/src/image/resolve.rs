//! What a container runs: its entry point in the root filesystem, else a wasm layer of its image.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::entry::{self, Places};
use super::layers;
use super::lookup::{Entry, Found, lookup};
use super::remembered::{self, Identity, Remembered};
use super::rootfs::{self, View};
use super::{Digest, Image, ImageError, Images, MOST_WASM, Program, Reads, Request, Source, StoreError, Wasm};

/// What every wasm binary begins with, modules and components alike (core specification, binary format).
const MAGIC: [u8; 4] = *b"\0asm";

/// How long to look into a container that runs, whose volumes may hang.
pub(super) struct Live {
    /// A place is taken for as long as a thread reads.
    pub places: Arc<Semaphore>,
    pub patience: Duration,
}

/// What was found of the entry point in the root filesystem.
pub(super) enum Finding {
    Wasm {
        digest: Digest,
        source: Source,
        export: Option<String>,
    },
    Other {
        name: String,
        head: Vec<u8>,
    },
    Missing,
}

/// What is known before a file that others can write is copied.
enum Looked {
    Found(Finding),
    Writable {
        found: Found,
        name: String,
        export: Option<String>,
    },
}

impl Images {
    /// Decides what the container runs and finds its bytes' digest, reading them only when it was never seen.
    pub async fn resolve(&self, request: Request<'_>) -> Result<Program, ImageError> {
        let entry = request.entry()?.to_owned();
        let places = request.places()?;
        let view = rootfs::view(request.rootfs, request.root)?;
        let finding = self.find(places.clone(), view, None).await?;
        match finding {
            Finding::Wasm { digest, source, export } => Ok(Program::Wasm(Wasm {
                digest,
                source,
                name: entry,
                export,
                image: None,
            })),
            Finding::Other { name, head } => {
                let suffix = name.ends_with(".wasm");
                // A name that promises wasm needs no question; anything else is native unless its image is for wasm.
                let wasm_image =
                    || async { Ok::<_, ImageError>(self.image(&request).await?.is_some_and(|i| is_wasm(&i))) };
                if suffix && head.is_empty() {
                    Err(ImageError::Empty { name })
                } else if suffix || wasm_image().await? {
                    Err(ImageError::NotWasm {
                        name,
                        head: shown(&head),
                    })
                } else {
                    Ok(Program::Native)
                }
            }
            Finding::Missing => match self.choose_layer(request.namespace, self.image(&request).await?, &entry) {
                // Nobody but the container's own runtime sees what its volumes hold.
                Err(ImageError::Missing { .. })
                    if !entry.ends_with(".wasm") && entry::may_be_in(request.volumes, &places.whole) =>
                {
                    Ok(Program::Native)
                }
                chosen => Ok(Program::Wasm(chosen?)),
            },
        }
    }

    /// Looks for the entry point at its `places` in `view`, and copies it when others can write it.
    pub(super) async fn find(
        &self,
        places: Arc<Places>,
        view: View,
        live: Option<Live>,
    ) -> Result<Finding, ImageError> {
        let (remembered, reads, sought) = (self.remembered.clone(), self.reads.clone(), places.clone());
        let look = move || {
            let search = Search {
                view: &view,
                remembered: &remembered,
                reads: &reads,
            };
            search.find(&sought)
        };
        let (found, name, export) = match reading(&places, live.as_ref(), look).await? {
            Looked::Found(finding) => return Ok(finding),
            Looked::Writable { found, name, export } => (found, name, export),
        };
        let room = if live.is_some() { &self.live_room } else { &self.room };
        // By nobody who has room or a place already: those who have end by themselves.
        let taken = room.take(Identity::of(&found.stat).size, &name).await?;
        let reads = self.reads.clone();
        let copy = move || {
            // Others may write here while we read: what is hashed must be what is compiled, so it is copied.
            let (copy, digest, size) = taken.copy(&found.file).map_err(|source| ImageError::Read {
                path: found.backing.clone(),
                source,
            })?;
            reads.file(size);
            Ok(Finding::Wasm {
                digest,
                source: Source::Copy(Arc::new(copy)),
                export,
            })
        };
        reading(&places, live.as_ref(), copy).await
    }

    /// The container's image; `None` when it names none.
    pub(super) async fn image(&self, request: &Request<'_>) -> Result<Option<Image>, StoreError> {
        match request.image {
            Some(image) => Ok(Some(image.clone())),
            None => self.store.image_of(request.namespace, request.id).await,
        }
    }

    /// The wasm layer of the container's image that `entry` means.
    pub(super) fn choose_layer(&self, namespace: &str, image: Option<Image>, entry: &str) -> Result<Wasm, ImageError> {
        let missing = |image: String| ImageError::Missing {
            entry: entry.to_owned(),
            image,
        };
        let Some(image) = image else {
            return Err(missing(
                "the container's root filesystem (the container names no image)".to_owned(),
            ));
        };
        let in_image = format!("the image {}", image.name);
        let layers = match image.wasm() {
            [] => return Err(missing(in_image)),
            layers => layers,
        };
        let (layer, export) = match (layers::choose(layers, entry), entry::split_export(entry)) {
            (Ok(layer), None) => (layer, None),
            (_, Some((file, export))) => (layers::choose(layers, file)?, Some(export.to_owned())),
            (Err(error), None) => return Err(error.into()),
        };
        Ok(Wasm {
            digest: layer.digest,
            source: Source::Content {
                namespace: namespace.to_owned(),
            },
            name: layer.title.clone().unwrap_or_else(|| entry.to_owned()),
            export,
            image: Some(image),
        })
    }
}

/// Does what reads files in a thread that may wait for them, not for ever when they are a `live` container's.
async fn reading<T: Send + 'static>(
    places: &Places,
    live: Option<&Live>,
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    let internal = |error: &dyn std::fmt::Display| ImageError::Internal {
        what: "looking for the entry point",
        error: error.to_string(),
    };
    let read = async |place: Option<OwnedSemaphorePermit>| {
        let work = move || {
            let _place = place;
            work()
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| internal(&error))?
    };
    let Some(live) = live else { return read(None).await };
    let placed = async {
        let place = live.places.clone().acquire_owned().await;
        read(Some(place.map_err(|error| internal(&error))?)).await
    };
    timeout(live.patience, placed).await.map_err(|_| ImageError::Hangs {
        entry: places.name.clone(),
        seconds: live.patience.as_secs(),
    })?
}

/// Whether everything the node has of the image is for wasm: with a native manifest beside it, the program may be that.
fn is_wasm(image: &Image) -> bool {
    !image.manifests.is_empty()
        && image
            .manifests
            .iter()
            .all(|manifest| manifest.for_wasm || !manifest.wasm.is_empty())
}

/// The first bytes of a file, for a message: as text when they are, else in hex.
pub(super) fn shown(head: &[u8]) -> String {
    match std::str::from_utf8(head) {
        Ok(text) if !text.contains(|c: char| c.is_control() && !c.is_whitespace()) => format!("{text:?}"),
        _ => head
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<Vec<_>>()
            .join(" "),
    }
}

/// One entry point looked for in one root filesystem.
struct Search<'a> {
    view: &'a View,
    remembered: &'a Remembered,
    reads: &'a Reads,
}

impl Search<'_> {
    /// Looks for the whole argument, then for what it is without `#export`.
    fn find(&self, places: &Places) -> Result<Looked, ImageError> {
        match (self.find_file(&places.whole)?, &places.file) {
            (Some((found, name)), _) => self.classify(found, name, None),
            (None, Some((file, export))) => match self.find_file(file)? {
                Some((found, name)) => self.classify(found, name, Some(export.clone())),
                None => Ok(Looked::Found(Finding::Missing)),
            },
            (None, None) => Ok(Looked::Found(Finding::Missing)),
        }
    }

    /// The first file at one of `places`; a folder in `PATH` is passed over, one that is named is not.
    fn find_file(&self, places: &[PathBuf]) -> Result<Option<(Found, String)>, ImageError> {
        let mut wrong = None;
        for place in places {
            let name = || place.display().to_string();
            match lookup(self.view, place)? {
                Entry::File(found) => return Ok(Some((found, name()))),
                Entry::Directory => wrong = wrong.or(Some(ImageError::Directory { name: name() })),
                Entry::Special => wrong = wrong.or(Some(ImageError::Special { name: name() })),
                Entry::Missing => {}
            }
        }
        wrong.map_or(Ok(None), Err)
    }

    fn classify(&self, found: Found, name: String, export: Option<String>) -> Result<Looked, ImageError> {
        let read_error = |source| ImageError::Read {
            path: found.backing.clone(),
            source,
        };
        let head = head(&found.file).map_err(read_error)?;
        if !head.starts_with(&MAGIC) {
            return Ok(Looked::Found(Finding::Other { name, head }));
        }
        let identity = Identity::of(&found.stat);
        if identity.size > MOST_WASM {
            return Err(ImageError::TooLarge {
                name,
                size: identity.size,
            });
        }
        if !found.committed {
            return Ok(Looked::Writable { found, name, export });
        }
        let digest = match self.remembered.get(&identity) {
            Some(digest) if remembered::vouched(&found.file).map_err(read_error)? => digest,
            _ => self.hash(&found, identity).map_err(read_error)?,
        };
        Ok(Looked::Found(Finding::Wasm {
            digest,
            source: Source::File(Arc::new(found.file.into())),
            export,
        }))
    }

    fn hash(&self, found: &Found, identity: Identity) -> io::Result<Digest> {
        let (digest, size) = Digest::of_file(&found.file, |_| Ok(()))?;
        self.reads.file(size);
        // One that is read each time is known all the same: that its image is still there.
        if self.remembered.get(&identity) == Some(digest) {
            return Ok(digest);
        }
        let saved = self.remembered.insert(identity, digest, PathBuf::from(&found.backing));
        if let Err(error) = saved {
            tracing::warn!(path = %found.backing.display(), %error, "the digest of a wasm file could not be saved: it will be read again after a restart");
        }
        Ok(digest)
    }
}

/// The first bytes of a file, enough to tell what it is.
fn head(file: &File) -> io::Result<Vec<u8>> {
    let mut head = [0; 16];
    let mut length = 0;
    while length < head.len() {
        match file.read_at(&mut head[length..], length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(head[..length].to_vec())
}

#[cfg(test)]
mod tests;
