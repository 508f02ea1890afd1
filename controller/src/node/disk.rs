//! The files of a host, read as a process of it does: absolute symlinks lead where they lead that process.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, Mode, OFlags, ResolveFlags};

use super::config::Disk;

/// The files of a process whose root directory is `root`, in this process's view.
#[derive(Clone, Debug)]
pub struct HostDisk {
    pub root: PathBuf,
}

impl HostDisk {
    fn open(&self, path: &Path, flags: OFlags) -> io::Result<File> {
        let root = File::open(&self.root)?;
        let flags = flags | OFlags::CLOEXEC;
        let file = rustix::fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
        Ok(file.into())
    }
}

impl Disk for HostDisk {
    fn read(&self, path: &Path) -> io::Result<String> {
        io::read_to_string(self.open(path, OFlags::RDONLY)?)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let directory = self.open(directory, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let names = Dir::read_from(directory)?.flatten();
        let names = names.filter_map(|entry| entry.file_name().to_str().map(str::to_owned).ok());
        Ok(names.filter(|name| name != "." && name != "..").collect())
    }

    fn identity(&self, path: &Path) -> io::Result<(u64, u64)> {
        let found = self.open(path, OFlags::PATH)?.metadata()?;
        Ok((found.dev(), found.ino()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::super::config::{Files, LoadError};
    use super::*;

    #[test]
    fn symlinks_lead_where_they_lead_a_containerd_with_another_root() {
        let folder = tempfile::tempdir().unwrap();
        let (etc, disk) = (
            folder.path().join("etc/containerd"),
            HostDisk {
                root: folder.path().to_owned(),
            },
        );
        fs::create_dir_all(etc.join("conf.d")).unwrap();
        fs::create_dir(folder.path().join("usr")).unwrap();
        fs::write(folder.path().join("usr/gpu.toml"), "[plugins]").unwrap();
        symlink("/usr/gpu.toml", etc.join("conf.d/a.toml")).unwrap();
        fs::write(etc.join("conf.d/b.conf"), "").unwrap();
        fs::write(
            etc.join("config.toml"),
            "imports = ['conf.d/*.toml', 'conf.d/b.conf', '/gone/*.toml']",
        )
        .unwrap();
        let load = || Files::load(Path::new("/etc/containerd/config.toml"), &disk);
        let files = load().unwrap();
        let paths: Vec<_> = files
            .loaded()
            .iter()
            .map(|file| file.path.display().to_string())
            .collect();
        let expected = ["config.toml", "conf.d/a.toml", "conf.d/b.conf"];
        assert_eq!(paths, expected.map(|name| format!("/etc/containerd/{name}")));
        assert_eq!(files.loaded()[1].text, "[plugins]");
        assert_eq!(
            disk.identity(Path::new("/etc/containerd/conf.d/a.toml")).unwrap(),
            disk.identity(Path::new("/usr/gpu.toml")).unwrap()
        );
        symlink("/gone", etc.join("conf.d/c.toml")).unwrap();
        assert!(matches!(load(), Err(LoadError::Missing { .. })));
    }
}
