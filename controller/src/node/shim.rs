//! The shim's binary: whether the staged one can be installed, where versions are, which of them may go.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::process::Command;

use super::durable::{self, WriteError};
use super::layout::{Layout, SHIM};

/// The longest that a shim may take to say its version: on a busy node it is read from the disk first.
const ANSWER: Duration = Duration::from_secs(10);

/// Why the staged shim cannot be installed.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    #[error("the shim image has no /{SHIM}: is spec.shim.image the right one?")]
    Missing,
    #[error("/{SHIM} of the shim image is no ELF program")]
    NoProgram,
    #[error("/{SHIM} of the shim image is for {found}, this node is {node}: use an image for both architectures")]
    Architecture { found: String, node: &'static str },
    #[error("cannot read {path}: {cause}", path = path.display())]
    Read { path: PathBuf, cause: io::Error },
    #[error("{path} does not say its version: {said}", path = path.display())]
    Version { path: PathBuf, said: String },
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// A shim that the init container has put where the agent finds it.
#[derive(Clone, Debug)]
pub struct Staged {
    pub path: PathBuf,
    /// The SHA-256 in hex.
    pub digest: String,
}

impl Staged {
    /// Looks at the shim in the staging folder.
    pub fn look(folder: &Path) -> Result<Staged, ShimError> {
        let path = folder.join(SHIM);
        let looked = File::open(&path).and_then(|file| {
            let mut header = Vec::new();
            file.take(HEADER).read_to_end(&mut header)?;
            Ok((header, known_digest(&path)?))
        });
        match looked {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ShimError::Missing),
            Err(cause) => Err(ShimError::Read { path, cause }),
            Ok((header, digest)) => match machine(&header) {
                None => Err(ShimError::NoProgram),
                Some(found) if found != OURS.0 => Err(ShimError::Architecture {
                    found: name(found),
                    node: OURS.1,
                }),
                Some(_) => Ok(Staged { path, digest }),
            },
        }
    }

    /// Copies it to the host under its digest, unless it is there.
    pub fn install(&self, layout: &Layout) -> Result<(), ShimError> {
        let folder = layout.version(&self.digest);
        durable::make_folder(&folder)?;
        let path = folder.join(SHIM);
        if digest_of(&path).as_ref() == Some(&self.digest) {
            return Ok(());
        }
        let bytes = fs::read(&self.path).map_err(|cause| ShimError::Read {
            path: self.path.clone(),
            cause,
        })?;
        Ok(durable::write(&path, &bytes, 0o755)?)
    }
}

/// ELF's number for the architecture that this agent is built for, and Go's name for it.
#[cfg(target_arch = "x86_64")]
const OURS: (u16, &str) = (62, "amd64");
#[cfg(target_arch = "aarch64")]
const OURS: (u16, &str) = (183, "arm64");

fn name(machine: u16) -> String {
    match machine {
        62 => "amd64".to_owned(),
        183 => "arm64".to_owned(),
        other => format!("the architecture with ELF's number {other}"),
    }
}

/// How much of an ELF file says what it is for.
const HEADER: u64 = 20;

/// The architecture of a 64-bit little-endian ELF file: `e_machine` of elf(5).
fn machine(bytes: &[u8]) -> Option<u16> {
    let header = bytes.get(..20)?;
    (header.starts_with(b"\x7fELF\x02\x01")).then(|| u16::from_le_bytes([header[18], header[19]]))
}

/// The SHA-256 of some bytes, in hex.
pub fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The SHA-256 of a file, if it can be read.
pub fn digest_of(path: &Path) -> Option<String> {
    known_digest(path).ok()
}

/// As [`digest_of`]. A file is read once while its inode says that it is the same: shims are looked at every half minute.
fn known_digest(path: &Path) -> io::Result<String> {
    type Same = (u64, u64, u64, i64, i64);
    static KNOWN: Mutex<BTreeMap<Same, String>> = Mutex::new(BTreeMap::new());
    let mut file = File::open(path)?;
    let inode = file.metadata()?;
    let same = (
        inode.dev(),
        inode.ino(),
        inode.size(),
        inode.ctime(),
        inode.ctime_nsec(),
    );
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner).get(&same).cloned();
    if let Some(digest) = known {
        return Ok(digest);
    }
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    let digest = hex(&hash.finalize());
    KNOWN
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(same, digest.clone());
    Ok(digest)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The digest of the shim that the stable path leads to.
pub fn current(layout: &Layout) -> Option<String> {
    let target = fs::read_link(layout.stable()).ok()?;
    let digest = target.parent()?.file_name()?.to_str()?.to_owned();
    (digest_of(&layout.stable()).as_ref() == Some(&digest)).then_some(digest)
}

/// The options beside the version with `digest`.
pub fn options(layout: &Layout, digest: &str) -> Option<String> {
    fs::read_to_string(layout.options(digest)).ok()
}

/// Has the stable path lead to the version with `digest`, which is complete.
pub fn switch(layout: &Layout, digest: &str) -> Result<(), ShimError> {
    if current(layout).as_deref() == Some(digest) {
        return Ok(());
    }
    let target = Path::new("versions").join(digest).join(SHIM);
    Ok(durable::link(&target, &layout.stable())?)
}

/// What the shim says its version is.
pub async fn version(layout: &Layout) -> Result<String, ShimError> {
    let path = layout.stable();
    let said = Command::new(&path).arg("-v").kill_on_drop(true).output();
    let output = match tokio::time::timeout(ANSWER, said).await {
        Ok(output) => output.map_err(|cause| ShimError::Read {
            path: path.clone(),
            cause,
        })?,
        Err(_) => {
            let said = format!("it says nothing within {} seconds", ANSWER.as_secs());
            return Err(ShimError::Version { path, said });
        }
    };
    let text = String::from_utf8_lossy(&output.stdout);
    // containerd's form: `NAME:` and indented lines, one of them `Version: X`.
    let version = text.lines().find_map(|line| line.trim().strip_prefix("Version:"));
    match version.map(str::trim).filter(|version| !version.is_empty()) {
        Some(version) => Ok(version.to_owned()),
        None => Err(ShimError::Version {
            path,
            said: text.trim().to_owned(),
        }),
    }
}

/// Removes versions that are neither current nor run by a process: their servers serve the pods of before an upgrade.
pub fn prune(layout: &Layout, processes: &Path) -> Result<(), ShimError> {
    let Ok(entries) = fs::read_dir(layout.versions()) else {
        return Ok(());
    };
    let current = current(layout);
    for folder in entries.flatten().map(|entry| entry.path()) {
        let is_current = folder.file_name().and_then(|name| name.to_str()) == current.as_deref();
        if current.is_some() && !is_current && users(processes, &folder).is_empty() {
            durable::remove_folder(&folder)?;
        }
    }
    Ok(())
}

/// The processes that run a program below `folder`, by their ids; `processes` is a procfs of the host's pids.
pub fn users(processes: &Path, folder: &Path) -> Vec<u32> {
    let entries = fs::read_dir(processes).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let exe = fs::read_link(processes.join(pid.to_string()).join("exe"));
            exe.is_ok_and(|exe| exe.starts_with(folder))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn program(machine: u16) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(64, 0);
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes
    }

    #[test]
    fn a_shim_is_refused_when_it_is_missing_no_program_or_for_another_machine() {
        let folder = tempfile::tempdir().unwrap();
        let refused = || Staged::look(folder.path()).unwrap_err().to_string();
        assert!(refused().contains("has no /containerd-shim-wasi-v1"));
        let path = folder.path().join(SHIM);
        fs::write(&path, "#!/bin/sh").unwrap();
        assert!(refused().contains("no ELF program"));
        fs::write(&path, program(245 - OURS.0)).unwrap();
        assert!(refused().contains(&format!("this node is {}", OURS.1)));
        fs::write(&path, program(OURS.0)).unwrap();
        assert_eq!(Staged::look(folder.path()).unwrap().digest, digest(&program(OURS.0)));
    }

    #[test]
    fn versions_stand_side_by_side_and_the_stable_path_is_switched() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path(), "default");
        let mut digests = Vec::new();
        for text in ["one", "two"] {
            let staging = tempfile::tempdir().unwrap();
            let mut bytes = program(OURS.0);
            bytes.extend_from_slice(text.as_bytes());
            fs::write(staging.path().join(SHIM), bytes).unwrap();
            let staged = Staged::look(staging.path()).unwrap();
            assert_ne!(current(&layout).as_ref(), Some(&staged.digest));
            staged.install(&layout).unwrap();
            staged.install(&layout).unwrap();
            switch(&layout, &staged.digest).unwrap();
            assert_eq!(current(&layout).as_ref(), Some(&staged.digest));
            digests.push(staged.digest);
        }
        assert!(layout.version(&digests[0]).exists());
        // A server of before the upgrade keeps its version; its end lets it go.
        let processes = tempfile::tempdir().unwrap();
        let process = processes.path().join("7");
        fs::create_dir(&process).unwrap();
        symlink(layout.version(&digests[0]).join(SHIM), process.join("exe")).unwrap();
        prune(&layout, processes.path()).unwrap();
        assert!(layout.version(&digests[0]).exists());
        fs::remove_dir_all(&process).unwrap();
        prune(&layout, processes.path()).unwrap();
        assert!(!layout.version(&digests[0]).exists() && layout.version(&digests[1]).exists());
    }

    #[test]
    fn a_version_that_was_cut_short_is_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let staging = tempfile::tempdir().unwrap();
        fs::write(staging.path().join(SHIM), program(OURS.0)).unwrap();
        let layout = Layout::new(folder.path(), "default");
        let staged = Staged::look(staging.path()).unwrap();
        fs::create_dir_all(layout.version(&staged.digest)).unwrap();
        fs::write(layout.version(&staged.digest).join(SHIM), "cut").unwrap();
        staged.install(&layout).unwrap();
        assert_eq!(
            digest_of(&layout.version(&staged.digest).join(SHIM)),
            Some(staged.digest)
        );
    }
}
