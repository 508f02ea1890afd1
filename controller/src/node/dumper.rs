//! What containerd makes of its files: `containerd config dump` of the node's own program.
//!
//! Candidates are tried as copies in `/run`, which are gone when this returns. The agent's pod has neither the host's
//! libraries nor its root, so there systemd runs the program.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::process::Command;

use super::config::{Dump, Files, LoadError, Mismatch};
use super::durable::{self, WriteError};
use super::systemd::{Systemd, SystemdError};

/// The timeout of a dump, which takes a tenth of a second.
const DUMP_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum number of cached dumps: those of a few candidates.
const REMEMBERED: usize = 32;
/// Where candidates are tried, on the host; a number follows.
const TRIAL: &str = "/run/kubewasi-trial-";

/// Why containerd did not say what it makes of its files.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    #[error("cannot run {binary}: {cause}", binary = binary.display())]
    Run { binary: PathBuf, cause: io::Error },
    #[error("`{binary} config dump` did not end within {secs} seconds", binary = binary.display(), secs = DUMP_TIMEOUT.as_secs())]
    TimedOut { binary: PathBuf },
    /// containerd rejects the files; its error message.
    #[error("containerd does not read its configuration: {0}")]
    Rejected(String),
    #[error(transparent)]
    Output(#[from] Mismatch),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Systemd(#[from] SystemdError),
}

/// How programs of the host are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// By this process, which is the host's.
    Directly,
    /// By systemd: this process is a pod's.
    BySystemd,
}

/// Dumps by a digest of the program's identity and the texts.
type Memory = HashMap<[u8; 32], Dump>;

/// Asks containerd for dumps, and caches them: the agent asks for the same ones every half minute.
#[derive(Clone, Debug)]
pub struct Dumper {
    way: Way,
    /// The host's root, in this process's view.
    root: PathBuf,
    answers: Arc<Mutex<Memory>>,
}

impl Dumper {
    /// For the host with this root: that of this process, or of another one.
    pub fn new(root: &Path) -> Dumper {
        let way = match root == Path::new("/") {
            true => Way::Directly,
            false => Way::BySystemd,
        };
        Dumper {
            way,
            root: root.to_owned(),
            answers: Arc::default(),
        }
    }

    /// What `binary` makes of the root file `config` where it is. `files` are what was read there.
    ///
    /// # Errors
    ///
    /// [`DumpError::Rejected`] where containerd does not read it; else when it could not be asked.
    pub async fn in_place(&self, binary: &Path, config: &Path, files: &Files) -> Result<Dump, DumpError> {
        let key = self.key(binary, "in place", files);
        if let Some(known) = self.known(&key) {
            return Ok(known);
        }
        let dump = self.run(binary, config).await?;
        self.remember(key, &dump);
        Ok(dump)
    }

    /// What `binary` makes of these files, wherever they are.
    ///
    /// # Errors
    ///
    /// As [`Dumper::in_place`].
    pub async fn trial(&self, binary: &Path, files: &Files) -> Result<Dump, DumpError> {
        let key = self.key(binary, "trial", files);
        if let Some(known) = self.known(&key) {
            return Ok(known);
        }
        let trial = Trial::create(&self.root, files)?;
        let dump = self.run(binary, &trial.config).await?;
        self.remember(key, &dump);
        Ok(dump)
    }

    fn key(&self, binary: &Path, way: &str, files: &Files) -> [u8; 32] {
        let mut key = Sha256::new();
        let program = fs::metadata(self.root.join(binary.strip_prefix("/").unwrap_or(binary)));
        let program = program.map(|found| (found.dev(), found.ino(), found.len(), found.mtime(), found.mtime_nsec()));
        key.update(format!("{} {program:?} {way}", binary.display()));
        for file in files.loaded() {
            key.update(format!("\0{}\0{}\0", file.path.display(), file.text.len()));
            key.update(&file.text);
        }
        key.finalize().into()
    }

    fn known(&self, key: &[u8; 32]) -> Option<Dump> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(key).cloned()
    }

    fn remember(&self, key: [u8; 32], dump: &Dump) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= REMEMBERED {
            answers.clear();
        }
        answers.insert(key, dump.clone());
    }

    async fn run(&self, binary: &Path, config: &Path) -> Result<Dump, DumpError> {
        let [binary_text, config] = [binary, config].map(|path| path.display().to_string());
        let argv = [
            binary_text,
            "--config".to_owned(),
            config,
            "config".to_owned(),
            "dump".to_owned(),
        ];
        let output = async {
            match self.way {
                Way::Directly => directly(&argv).await.map_err(|cause| DumpError::Run {
                    binary: binary.to_owned(),
                    cause,
                }),
                Way::BySystemd => Ok(Systemd::connect(&self.root).await?.output(&argv, DUMP_TIMEOUT).await?),
            }
        };
        let timed_out = |_| DumpError::TimedOut {
            binary: binary.to_owned(),
        };
        let output = tokio::time::timeout(DUMP_TIMEOUT, output).await.map_err(timed_out)??;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said
                .lines()
                .rev()
                .find(|line| !line.trim().is_empty())
                .unwrap_or_default();
            return Err(DumpError::Rejected(last.trim().to_owned()));
        }
        Ok(Dump::parse(&String::from_utf8_lossy(&output.stdout))?)
    }
}

async fn directly(argv: &[String]) -> io::Result<Output> {
    Command::new(&argv[0])
        .args(&argv[1..])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
}

/// Copies of a configuration's files, for root alone: there may be passwords of registries in them. Dropping the value removes them.
struct Trial {
    /// The root file, as the host names it.
    config: PathBuf,
    /// The directory, in this process's view.
    directory: PathBuf,
}

impl Trial {
    fn create(root: &Path, files: &Files) -> Result<Trial, DumpError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let host = PathBuf::from(format!("{TRIAL}{}-{number}", std::process::id()));
        let here = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
        let trial = Trial {
            config: host.join("0.toml"),
            directory: here(&host),
        };
        // Left by a killed process with the same id.
        durable::remove_folder(&trial.directory)?;
        let created = fs::DirBuilder::new().mode(0o700).create(&trial.directory);
        created.map_err(WriteError::of("create the directory", &trial.directory))?;
        for (path, text) in files.copies(&host)? {
            durable::write_new(&here(&path), text.as_bytes(), 0o600)?;
        }
        Ok(trial)
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if let Err(error) = durable::remove_folder(&self.directory) {
            tracing::warn!(%error, "a trial of containerd's configuration stays");
        }
    }
}
