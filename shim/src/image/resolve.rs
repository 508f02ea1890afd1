//! What a container runs: its entry point in the root filesystem, else a wasm layer of its image.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::entry::Places;
use super::layers::Choice;
use super::lookup::{Entry, Found, Lookup};
use super::missing::{self, Missing};
use super::origin::{Origin, OriginError};
use super::remembered::{self, Identity, Remembered};
use super::rootfs::{self, View};
use super::{Digest, ImageError, Images, MOST_WASM, Program, Reads, Request, Source, Volume, Wasm};

/// What every wasm binary begins with, modules and components alike (core specification, binary format).
const MAGIC: [u8; 4] = *b"\0asm";

/// The maximum number of lookups in volumes at a time. Those in volumes that hang hold a thread of the server each.
pub(super) const VOLUME_PLACES: usize = 64;

/// How long a look into the volumes of a container that is created may take: less than the kubelet waits.
const CREATE_PATIENCE: Duration = Duration::from_secs(60);

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
    /// It may be in a mount whose files cannot be seen from here.
    Unknown,
    /// It may be in a volume, and volumes were not to be opened.
    Volume,
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
        // Without volumes first: few programs are in one, and a volume that hangs must not delay the others.
        let volumes = request.volumes;
        let finding = match self.find(places.clone(), view.clone(), volumes.clone(), None).await? {
            Finding::Volume => {
                let patience = Some(CREATE_PATIENCE);
                self.find(places.clone(), view.clone(), volumes.clone(), patience)
                    .await?
            }
            finding => finding,
        };
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
                if suffix && head.is_empty() {
                    Err(ImageError::Empty { name })
                } else if suffix || self.store.is_for_wasm(request.namespace, request.id).await? {
                    Err(ImageError::NotWasm {
                        name,
                        head: shown(&head),
                    })
                } else {
                    Ok(Program::Native)
                }
            }
            Finding::Missing | Finding::Unknown | Finding::Volume => {
                let origin = self.origin(&request).await?;
                match self.choose_layer(request.namespace, origin, &entry) {
                    // Nobody but the container's own runtime sees what such a mount holds.
                    Err(ImageError::Missing { .. })
                        if matches!(finding, Finding::Unknown) && !entry.ends_with(".wasm") =>
                    {
                        Ok(Program::Native)
                    }
                    Err(ImageError::Missing { entry, missing }) => {
                        let missing = self.without_shell(missing, &request, view).await;
                        Err(ImageError::Missing { entry, missing })
                    }
                    chosen => Ok(Program::Wasm(chosen?)),
                }
            }
        }
    }

    /// Adds the programs of the image to the error where the container's command needs a shell that the image lacks.
    async fn without_shell(&self, missing: Missing, request: &Request<'_>, view: View) -> Missing {
        let [shell, "-c", ..] = request.args.iter().map(String::as_str).collect::<Vec<_>>()[..] else {
            return missing;
        };
        let (true, Missing::NoLayers { image, .. }) = (missing::is_shell(shell), &missing) else {
            return missing;
        };
        let listing = move || Lookup::new(&view, &[], false)?.files(missing::SUFFIX, missing::MAX_LISTED);
        match tokio::task::spawn_blocking(listing).await {
            Ok(Ok(programs)) if !programs.is_empty() => Missing::NoShell {
                image: image.clone(),
                programs,
            },
            // The list is advice; that there is no shell is the error.
            _ => missing,
        }
    }

    /// Looks for the entry point at its `places` in `view` with its `volumes`, and copies it when others can write it.
    /// Volumes, which may hang, are opened only with a `patience`: the longest time that a lookup may take.
    pub(super) async fn find(
        &self,
        places: Arc<Places>,
        view: View,
        volumes: Arc<Vec<Volume>>,
        patience: Option<Duration>,
    ) -> Result<Finding, ImageError> {
        let live = patience.map(|patience| Live {
            places: self.volume_places.clone(),
            patience,
        });
        let opens_volumes = live.is_some();
        let (remembered, reads, sought) = (self.remembered.clone(), self.reads.clone(), places.clone());
        let look = move || {
            let search = Search {
                lookup: Lookup::new(&view, &volumes, opens_volumes)?,
                remembered: &remembered,
                reads: &reads,
            };
            search.find(&sought)
        };
        let (found, name, export) = match reading(&places, live.as_ref(), look).await? {
            Looked::Found(finding) => return Ok(finding),
            Looked::Writable { found, name, export } => (found, name, export),
        };
        let room = if live.is_some() { &self.volume_room } else { &self.room };
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

    /// From which image the container was created.
    pub(super) async fn origin(&self, request: &Request<'_>) -> Result<Origin, OriginError> {
        match request.image {
            Some(image) => Ok(Origin::Image(image.clone())),
            None => self.store.origin(request.namespace, request.id).await,
        }
    }

    /// The wasm layer of the container's image that `entry` means.
    pub(super) fn choose_layer(&self, namespace: &str, origin: Origin, entry: &str) -> Result<Wasm, ImageError> {
        let missing = |missing| ImageError::Missing {
            entry: entry.to_owned(),
            missing,
        };
        let image = match origin {
            Origin::None => return Err(missing(Missing::NoImage)),
            Origin::Gone { image } => return Err(missing(Missing::Gone { image })),
            Origin::Image(image) => image,
        };
        let Some(Choice { layer, export }) = image.choose(entry)? else {
            return Err(missing(Missing::NoLayers {
                image: image.name.clone(),
                unknown: image.unknown(),
            }));
        };
        Ok(Wasm {
            digest: layer.digest,
            source: Source::Content {
                namespace: namespace.to_owned(),
            },
            name: layer.title.unwrap_or_else(|| entry.to_owned()),
            export,
            image: Some(image),
        })
    }
}

/// How to look into volumes.
struct Live {
    /// A place is taken for as long as a thread reads.
    places: Arc<Semaphore>,
    patience: Duration,
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

/// One entry point looked for in one container.
struct Search<'a> {
    lookup: Lookup<'a>,
    remembered: &'a Remembered,
    reads: &'a Reads,
}

/// What is at the first of some places where something is.
enum Sought {
    File(Found, String),
    Missing,
    /// As [`Finding::Unknown`] and [`Finding::Volume`].
    Unknown,
    Volume,
}

impl Search<'_> {
    /// Looks for the whole argument, then for what it is without `#export`.
    fn find(&self, places: &Places) -> Result<Looked, ImageError> {
        let (sought, export) = match (self.find_file(&places.whole)?, &places.file) {
            (Sought::Missing, Some((file, export))) => (self.find_file(file)?, Some(export.clone())),
            (sought, _) => (sought, None),
        };
        match sought {
            Sought::File(found, name) => self.classify(found, name, export),
            Sought::Missing => Ok(Looked::Found(Finding::Missing)),
            Sought::Unknown => Ok(Looked::Found(Finding::Unknown)),
            Sought::Volume => Ok(Looked::Found(Finding::Volume)),
        }
    }

    /// The first file at one of `places`; a folder in `PATH` is passed over, one that is named is not.
    fn find_file(&self, places: &[PathBuf]) -> Result<Sought, ImageError> {
        let mut wrong = None;
        let mut otherwise = Sought::Missing;
        for place in places {
            let name = || place.display().to_string();
            match self.lookup.find(place)? {
                Entry::File(found) => return Ok(Sought::File(found, name())),
                Entry::Directory => wrong = wrong.or(Some(ImageError::Directory { name: name() })),
                Entry::Special => wrong = wrong.or(Some(ImageError::Special { name: name() })),
                Entry::Missing => {}
                Entry::Unknown => otherwise = Sought::Unknown,
                Entry::Volume => return Ok(Sought::Volume),
            }
        }
        wrong.map_or(Ok(otherwise), Err)
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
