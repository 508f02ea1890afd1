//! Which change of containerd's files a host needs: the first candidate of which containerd makes what is wanted.
//!
//! The agent, `kubewasi-node check` and the helper ask the same questions here, so they come to the same verdict.

use std::path::{Path, PathBuf};

use super::config::{
    Change, DisabledPlugin, Disk, Dump, Edit, Entry, Files, Handler, LOCAL_PULL, LoadError, Mismatch, Ours, Overlay,
    Refusal, Release, copies, cuts, has_local_pull, is_marked, places, verify, written,
};
use super::disk::HostDisk;
use super::dumper::{DumpError, Dumper};

/// Why there is no change.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// containerd could not be asked; a retry may succeed.
    #[error(transparent)]
    Dump(DumpError),
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// A containerd's configuration as it is on disk now.
#[derive(Clone, Debug)]
pub struct Configuration {
    pub release: Release,
    /// containerd's program, as the host names it.
    pub binary: PathBuf,
    pub files: Files,
    pub disk: HostDisk,
    pub dumper: Dumper,
}

impl Configuration {
    /// The change that installs the handler; none where containerd has it and all of it is the agent's.
    ///
    /// # Errors
    ///
    /// A refusal that names what is in the way.
    pub async fn install(&self, handler: &Handler) -> Result<Option<Change>, ConfigurationError> {
        let release = self.release;
        if release < (Release { major: 1, minor: 6 }) || release.major > 2 {
            return Err(Refusal::Release(release).into());
        }
        let now = self.now().await?;
        if let Some(plugin) = now.disables_cri() {
            return Err(self.disabling(plugin).into());
        }
        let marked = self.marked(handler, &[]);
        let local_pull = handler.local_pull && release.pulls_by_transfer();
        let pulls_as_wanted = match local_pull {
            true => now.pulls_locally(),
            false => !self.writes_local_pull(&handler.runtime),
        };
        if !marked.is_empty() && now.has(handler) && pulls_as_wanted {
            return Ok(None);
        }
        let cuts = cuts(&marked, handler, false)?;
        let overlay = Overlay::new(&self.disk, &cuts);
        let files = Files::load(self.root(), &overlay)?;
        let base = self.trial(&files).await?;
        if !base.runtime(&handler.name).is_empty() {
            return Err(Refusal::Foreign {
                handler: handler.name.clone(),
                file: files.with_handler(&handler.name).map(Path::to_owned),
            }
            .into());
        }
        let key = match local_pull && !base.pulls_locally() {
            true => Some(local_pull_entry(&files)?),
            false => None,
        };
        let drop_ins = files
            .drop_in_directory()
            .filter(|directory| self.disk.list(directory).is_ok());
        let mut first = None;
        for place in places(&files, release, drop_ins.as_deref(), &handler.runtime) {
            let mut ours = Ours::new(handler);
            // A copy has to be exact here, so nothing else than the handler may differ.
            let why = loop {
                let edits = match written(&files, &cuts, &place, handler, &ours.copies, key.as_ref(), &base) {
                    Ok(edits) => edits,
                    Err(refusal) => break refusal.to_string(),
                };
                match self.tried(&edits).await {
                    Ok(new) if key.is_some() && !new.pulls_locally() => {
                        break "containerd does not see use_local_image_pull there".to_owned();
                    }
                    Ok(new) => match verify(&base, &new, &Ours::new(handler), true) {
                        Ok(()) => {
                            return Ok(Some(Change {
                                edits,
                                ours: self.with_present_copies(ours),
                                is_seen: true,
                            }));
                        }
                        Err(Mismatch::Lost(lost)) if ours.copies.is_empty() => ours.copies = lost,
                        Err(mismatch) => break mismatch.to_string(),
                    },
                    Err(ConfigurationError::Dump(DumpError::Rejected(said))) => break said,
                    Err(ConfigurationError::Load(error)) => break error.to_string(),
                    Err(error) => return Err(error),
                }
            };
            first.get_or_insert((place.file, why));
        }
        let (file, why) = first.unwrap_or_else(|| (self.root().to_owned(), "there is no table for it".to_owned()));
        Err(Refusal::NoPlace {
            file,
            why,
            root: self.root().to_owned(),
            binary: self.binary.clone(),
            plugins: self.files.named_plugins(),
        }
        .into())
    }

    /// The change that removes the handler from every file that the agent wrote, `recorded` ones too; none where no file
    /// has it. What others wrote stays.
    ///
    /// # Errors
    ///
    /// A refusal that names what is in the way.
    pub async fn uninstall(
        &self,
        handler: &Handler,
        recorded: &[PathBuf],
    ) -> Result<Option<Change>, ConfigurationError> {
        let marked = self.marked(handler, recorded);
        let now = self.now().await?;
        let mut refused = None;
        for keep_copies in [false, true] {
            let edits = cuts(&marked, handler, keep_copies)?;
            let new = match self.tried(&edits).await {
                Ok(new) => new,
                Err(ConfigurationError::Dump(DumpError::Rejected(said))) => {
                    refused.get_or_insert(said);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let ours = self.with_present_copies(Ours::new(handler));
            match verify(&now, &new, &ours, false) {
                Ok(()) if edits.is_empty() => return Ok(None),
                Ok(()) => {
                    return Ok(Some(Change {
                        edits,
                        is_seen: now != new,
                        ours,
                    }));
                }
                // Another's handler stays, unless it needs the shim that is removed.
                Err(Mismatch::StillSeen(name)) => {
                    let left = new.runtime(&name);
                    let path = handler.values().remove(&vec!["runtime_path".to_owned()]);
                    let needs_shim = left.get(&vec!["runtime_path".to_owned()]) == path.as_ref();
                    if edits.is_empty() && !needs_shim {
                        return Ok(None);
                    }
                    let files = Files::load(self.root(), &Overlay::new(&self.disk, &edits))?;
                    return Err(Refusal::Left {
                        file: files.with_handler(&name).map(Path::to_owned),
                        handler: name,
                    }
                    .into());
                }
                Err(mismatch) => {
                    refused.get_or_insert(mismatch.to_string());
                }
            }
        }
        let files: Vec<String> = marked.iter().map(|(file, _)| file.display().to_string()).collect();
        Err(Refusal::NotRemovable {
            files: files.join(", "),
            why: refused.unwrap_or_default(),
        }
        .into())
    }

    /// Whether containerd makes of these edits what `ours` says, and `listed`.
    ///
    /// # Errors
    ///
    /// How it does not.
    pub async fn verify(&self, change: &Change, listed: bool) -> Result<(), ConfigurationError> {
        let (now, new) = (self.now().await?, self.tried(&change.edits).await?);
        verify(&now, &new, &change.ours, listed)
            .map_err(|mismatch| ConfigurationError::Dump(DumpError::Output(mismatch)))
    }

    /// The root file's path.
    pub fn root(&self) -> &Path {
        &self.files.root().path
    }

    /// What containerd makes of its files now.
    async fn now(&self) -> Result<Dump, ConfigurationError> {
        let in_place = self.dumper.in_place(&self.binary, self.root(), &self.files).await;
        let in_place = in_place.map_err(|error| self.rejected(error))?;
        // A trial is meaningful only if this reads the same files as containerd.
        if self.trial(&self.files).await? != in_place {
            return Err(Refusal::Unfollowed {
                root: self.root().display().to_string(),
            }
            .into());
        }
        Ok(in_place)
    }

    /// What containerd would make of its files after these edits.
    async fn tried(&self, edits: &[Edit]) -> Result<Dump, ConfigurationError> {
        let files = Files::load(self.root(), &Overlay::new(&self.disk, edits))?;
        self.trial(&files).await
    }

    async fn trial(&self, files: &Files) -> Result<Dump, ConfigurationError> {
        let dump = self.dumper.trial(&self.binary, files).await;
        dump.map_err(ConfigurationError::Dump)
    }

    /// Why containerd does not read its files.
    fn rejected(&self, error: DumpError) -> ConfigurationError {
        let DumpError::Rejected(said) = error else {
            return ConfigurationError::Dump(error);
        };
        let highest = self.release.highest_version();
        let too_high = self.files.loaded().iter().skip(1).find(|file| file.version() > highest);
        ConfigurationError::Refused(match too_high {
            Some(file) => Refusal::Version {
                file: file.path.clone(),
                version: file.version(),
                release: self.release,
            },
            None => Refusal::Rejected {
                config: self.root().to_owned(),
                said,
            },
        })
    }

    /// The files that have the agent's text, loaded ones and recorded ones, with their texts.
    fn marked(&self, handler: &Handler, recorded: &[PathBuf]) -> Vec<(PathBuf, String)> {
        let loaded = self.files.loaded().iter().map(|file| file.path.clone());
        let mut found: Vec<(PathBuf, String)> = Vec::new();
        let mut seen = Vec::new();
        for path in loaded.chain(recorded.iter().cloned()) {
            let (Ok(identity), Ok(text)) = (self.disk.identity(&path), self.disk.read(&path)) else {
                continue;
            };
            if is_marked(&text, &handler.runtime) && !seen.contains(&identity) {
                seen.push(identity);
                found.push((path, text));
            }
        }
        found
    }

    /// Whether CRI leaves images for wasi/wasm alone packed, which no container can be created of (docs/images.md).
    ///
    /// # Errors
    ///
    /// When containerd does not read its files, or cannot be asked.
    pub async fn leaves_wasi_packed(&self) -> Result<bool, ConfigurationError> {
        Ok(self.release.pulls_by_transfer() && !self.now().await?.pulls_locally())
    }

    /// Whether the agent of `runtime` has CRI pull images itself.
    pub fn writes_local_pull(&self, runtime: &str) -> bool {
        let mut files = self.files.loaded().iter();
        files.any(|file| has_local_pull(&file.text, runtime))
    }

    /// The refusal of files that disable a plugin without which there is no CRI.
    fn disabling(&self, plugin: &str) -> Refusal {
        let mut disabled = self.files.disabled_cri();
        // containerd names the plugin in another way than every file.
        if disabled.is_empty() {
            let file = self.files.root();
            disabled.push(DisabledPlugin {
                name: plugin.to_owned(),
                file: file.path.clone(),
                lines: file.lines_of("disabled_plugins").unwrap_or((1, 1)),
            });
        }
        Refusal::CriDisabled(disabled)
    }

    /// Names also the runtimes of which the present files have a copy of the agent's.
    fn with_present_copies(&self, mut ours: Ours) -> Ours {
        let present = self
            .files
            .loaded()
            .iter()
            .flat_map(|file| copies(&file.text, &ours.handler));
        let present: Vec<String> = present.filter(|name| !ours.copies.contains(name)).collect();
        ours.copies.extend(present);
        ours
    }
}

/// The key that has CRI pull images itself, for files of which none has it.
///
/// # Errors
///
/// When an administrator has set it.
fn local_pull_entry(files: &Files) -> Result<Entry, Refusal> {
    match files.with_key(&LOCAL_PULL) {
        Some(file) => Err(Refusal::ImagePull { file: file.to_owned() }),
        None => Ok(Entry::new(&LOCAL_PULL, true)),
    }
}
