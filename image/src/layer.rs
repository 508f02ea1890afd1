//! A layer: a source as a tar archive. The same files give the same bytes, whoever owns them and whenever they were made.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use crate::error::Error;
use crate::source::Source;

/// The first bytes of every module and component (WebAssembly core specification, section 5.5.16).
const WASM_MAGIC: &[u8] = b"\0asm";

/// The mode of directories that no source has: those above a destination.
const DIRECTORY_MODE: u32 = 0o755;

/// The layer of `source`, uncompressed. Files belong to root.
pub fn of(source: &Source) -> Result<Vec<u8>, Error> {
    let mut layer = Layer {
        archive: Builder::new(Vec::new()),
        links: HashMap::new(),
    };
    let path = &source.path;
    let metadata = fs::metadata(path).map_err(Error::read(path))?;
    let destination = source.destination.as_deref().unwrap_or_default();
    if metadata.is_dir() {
        let root = PathBuf::from(destination.trim_matches('/'));
        layer.directories(root.ancestors())?;
        layer.contents(path, &root)?;
    } else {
        check_program(path)?;
        let target = source.target();
        let target = target.strip_prefix("/").unwrap_or(&target);
        layer.directories(target.ancestors().skip(1))?;
        layer.file(path, target, &metadata)?;
    }
    layer.archive.into_inner().map_err(Error::layer(path))
}

/// Refuses a file whose name ends in `.wasm` and that is something else: it would be refused when its container is created.
/// Files of a directory are data as well, so they are not looked at.
fn check_program(path: &Path) -> Result<(), Error> {
    if path.extension().is_none_or(|extension| extension != "wasm") {
        return Ok(());
    }
    let mut start = Vec::new();
    let file = fs::File::open(path).map_err(Error::read(path))?;
    let read = file.take(WASM_MAGIC.len() as u64).read_to_end(&mut start);
    read.map_err(Error::read(path))?;
    match start == WASM_MAGIC {
        true => Ok(()),
        false => Err(Error::NotWasm {
            path: path.to_owned(),
            start,
        }),
    }
}

struct Layer {
    archive: Builder<Vec<u8>>,
    /// Where the files with more than one name are in the layer, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Layer {
    /// Adds directories that have no source, from the outermost on.
    fn directories<'a>(&mut self, paths: impl Iterator<Item = &'a Path>) -> Result<(), Error> {
        let mut paths: Vec<&Path> = paths.filter(|path| !path.as_os_str().is_empty()).collect();
        paths.reverse();
        for path in paths {
            self.entry(path, EntryType::Directory, DIRECTORY_MODE, &[])?;
        }
        Ok(())
    }

    /// Adds what is in `directory`, by name.
    fn contents(&mut self, directory: &Path, target: &Path) -> Result<(), Error> {
        let entries = fs::read_dir(directory).map_err(Error::read(directory))?;
        let mut names = entries
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(Error::read(directory))?;
        names.sort();
        for name in names {
            let (path, target) = (directory.join(&name), target.join(&name));
            let metadata = fs::symlink_metadata(&path).map_err(Error::read(&path))?;
            let kind = metadata.file_type();
            if kind.is_dir() {
                self.entry(&target, EntryType::Directory, mode(&metadata), &[])?;
                self.contents(&path, &target)?;
            } else if kind.is_symlink() {
                let leads_to = fs::read_link(&path).map_err(Error::read(&path))?;
                let mut header = header(EntryType::Symlink, 0o777, 0);
                let added = self.archive.append_link(&mut header, &target, leads_to);
                added.map_err(Error::layer(&path))?;
            } else if kind.is_file() {
                self.file(&path, &target, &metadata)?;
            } else {
                return Err(Error::SpecialFile { path });
            }
        }
        Ok(())
    }

    /// Adds a file, or a link to it where it is in the layer under another name.
    fn file(&mut self, path: &Path, target: &Path, metadata: &Metadata) -> Result<(), Error> {
        if metadata.nlink() > 1 {
            let inode = (metadata.dev(), metadata.ino());
            if let Some(first) = self.links.get(&inode) {
                let mut header = header(EntryType::Link, mode(metadata), 0);
                return self
                    .archive
                    .append_link(&mut header, target, first)
                    .map_err(Error::layer(path));
            }
            self.links.insert(inode, target.to_owned());
        }
        let bytes = fs::read(path).map_err(Error::read(path))?;
        self.entry(target, EntryType::Regular, mode(metadata), &bytes)
    }

    fn entry(&mut self, target: &Path, kind: EntryType, mode: u32, bytes: &[u8]) -> Result<(), Error> {
        let mut header = header(kind, mode, bytes.len() as u64);
        self.archive
            .append_data(&mut header, target, bytes)
            .map_err(Error::layer(target))
    }
}

fn mode(metadata: &Metadata) -> u32 {
    metadata.permissions().mode() & 0o7777
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    // Owner and times are zero in a new header, of which the times have to be said.
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Path, kind, mode, and what it holds or leads to.
    fn entries(source: &str) -> Vec<(String, EntryType, u32, String)> {
        let bytes = of(&source.parse().unwrap()).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = entry
                .link_name()
                .unwrap()
                .map(|path| path.display().to_string())
                .unwrap_or_default();
            entry.read_to_string(&mut text).unwrap();
            let header = entry.header();
            assert_eq!(
                (header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()),
                (0, 0, 0)
            );
            let path = entry.path().unwrap().display().to_string();
            found.push((path, entry.header().entry_type(), entry.header().mode().unwrap(), text));
        }
        found
    }

    #[test]
    fn a_directory_keeps_modes_symbolic_links_and_hard_links() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir(root.join("tmp")).unwrap();
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::write(root.join("busybox"), "program").unwrap();
        fs::set_permissions(root.join("busybox"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::hard_link(root.join("busybox"), root.join("ls")).unwrap();
        symlink("../run", root.join("tmp/run")).unwrap();
        let expected = [
            ("busybox", EntryType::Regular, 0o4755, "program"),
            ("ls", EntryType::Link, 0o4755, "busybox"),
            ("tmp", EntryType::Directory, 0o1777, ""),
            ("tmp/run", EntryType::Symlink, 0o777, "../run"),
        ];
        let expected = expected.map(|(path, kind, mode, text)| (path.to_owned(), kind, mode, text.to_owned()));
        assert_eq!(entries(&root.display().to_string()), expected);
    }

    #[test]
    fn a_file_goes_where_it_is_told_to_and_the_directories_above_are_made() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hello.wasm");
        fs::write(&file, "\0asm").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let paths = |source: String| entries(&source).into_iter().map(|entry| entry.0).collect::<Vec<_>>();
        assert_eq!(paths(format!("{}", file.display())), ["hello.wasm"]);
        assert_eq!(paths(format!("{}:/a/b/app", file.display())), ["a", "a/b", "a/b/app"]);
        assert_eq!(paths(format!("{}:/a/", file.display())), ["a", "a/hello.wasm"]);
        assert_eq!(
            paths(format!("{}:/srv", folder.path().display())),
            ["srv", "srv/hello.wasm"]
        );
    }

    #[test]
    fn text_in_a_wasm_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hello.wasm");
        fs::write(&file, "(module)").unwrap();
        let refused = of(&file.display().to_string().parse().unwrap())
            .unwrap_err()
            .to_string();
        assert!(refused.contains("hello.wasm is not a WebAssembly binary"), "{refused}");
        // In a directory it is data.
        assert_eq!(entries(&folder.path().display().to_string())[0].3, "(module)");
    }
}
