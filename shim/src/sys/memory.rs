//! The memory of a cgroup: its limit and what it uses, by files that are opened while there is a path to them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::str;

use super::cgroup::{Cgroup, Version};

/// What the files are called: limit, usage, figures, and the figures' keys of pages that the kernel takes back when the
/// limit is reached (cgroup-v1/memory and cgroup-v2 in the kernel's documentation).
struct Names {
    limit: &'static str,
    usage: &'static str,
    figures: &'static str,
    reclaimable: [&'static str; 2],
}

const fn names(version: Version) -> Names {
    match version {
        Version::V1 => Names {
            limit: "memory.limit_in_bytes",
            usage: "memory.usage_in_bytes",
            figures: "memory.stat",
            reclaimable: ["total_inactive_file", "total_active_file"],
        },
        Version::V2 => Names {
            limit: "memory.max",
            usage: "memory.current",
            figures: "memory.stat",
            reclaimable: ["inactive_file", "active_file"],
        },
    }
}

/// v1 says "no limit" by the largest number of whole pages, whatever the page's size.
const UNLIMITED: u64 = i64::MAX as u64 >> 16 << 16;

/// Where the memory files of a cgroup are.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MemoryFolder {
    version: Version,
    path: PathBuf,
}

impl MemoryFolder {
    /// The folder of `cgroup`, which need not exist yet, in the hierarchy of memory; `None` when there is none.
    pub fn of(cgroup: &Cgroup) -> Option<MemoryFolder> {
        Some(MemoryFolder {
            version: cgroup.version,
            path: cgroup.folder("memory")?.to_path_buf(),
        })
    }
}

/// The open memory files of a cgroup, to be read at any time.
#[derive(Debug)]
pub struct Memory {
    version: Version,
    limit: File,
    usage: File,
    figures: File,
}

impl Memory {
    /// Opens the files; `None` when the cgroup has none, since nobody limits its memory.
    ///
    /// # Errors
    ///
    /// What open(2) says.
    pub fn open(folder: &MemoryFolder) -> io::Result<Option<Memory>> {
        let names = names(folder.version);
        let open = |name: &str| File::open(folder.path.join(name));
        let limit = match open(names.limit) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            limit => limit?,
        };
        Ok(Some(Memory {
            version: folder.version,
            limit,
            usage: open(names.usage)?,
            figures: open(names.figures)?,
        }))
    }

    /// The limit in bytes; `None` when there is none.
    ///
    /// # Errors
    ///
    /// What pread(2) says, `InvalidData` for what is no number.
    pub fn limit(&self) -> io::Result<Option<u64>> {
        let mut buffer = [0; 32];
        match read(&self.limit, &mut buffer)?.trim() {
            "max" => Ok(None),
            number => Ok(Some(parse(number)?).filter(|limit| *limit < UNLIMITED)),
        }
    }

    /// What all processes of the cgroup use, in bytes, the page cache included.
    ///
    /// # Errors
    ///
    /// As [`Memory::limit`].
    pub fn usage(&self) -> io::Result<u64> {
        let mut buffer = [0; 32];
        parse(read(&self.usage, &mut buffer)?.trim())
    }

    /// How much of the usage is page cache of files, in bytes: the kernel takes it back before it kills.
    ///
    /// # Errors
    ///
    /// As [`Memory::limit`].
    pub fn reclaimable(&self) -> io::Result<u64> {
        // On the stack: who asks has no memory to spare.
        let mut buffer = [0; 8192];
        let text = read(&self.figures, &mut buffer)?;
        let keys = names(self.version).reclaimable;
        text.lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(key, _)| keys.contains(key))
            .map(|(_, number)| parse(number))
            .sum()
    }
}

fn read<'a>(file: &File, buffer: &'a mut [u8]) -> io::Result<&'a str> {
    let length = file.read_at(buffer, 0)?;
    str::from_utf8(&buffer[..length]).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn parse(number: &str) -> io::Result<u64> {
    let error = || io::Error::new(io::ErrorKind::InvalidData, format!("{number:?} is no number of bytes"));
    number.parse().map_err(|_| error())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::sys::cgroup::tests::hierarchy;
    use std::fs;
    use std::path::Path;

    /// Memory files of v2 in a folder of the test's own, which it removes.
    pub fn memory(name: &str, limit: &str, usage: u64, cache: u64) -> (PathBuf, Memory) {
        let (root, hierarchies) = hierarchy(name, Version::V2);
        let cgroup = hierarchies.cgroup(Path::new("/a"));
        let folder = root.join("a");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("memory.max"), format!("{limit}\n")).unwrap();
        fs::write(folder.join("memory.current"), format!("{usage}\n")).unwrap();
        let figures = format!("anon 7\ninactive_file {cache}\nactive_file 0\nshmem 9\n");
        fs::write(folder.join("memory.stat"), figures).unwrap();
        let memory = Memory::open(&MemoryFolder::of(&cgroup).unwrap()).unwrap().unwrap();
        (root, memory)
    }

    #[test]
    fn figures_are_read_anew_each_time() {
        let (root, memory) = memory("figures", "4096", 100, 60);
        assert_eq!(memory.limit().unwrap(), Some(4096));
        assert_eq!(memory.usage().unwrap(), 100);
        assert_eq!(memory.reclaimable().unwrap(), 60);
        fs::write(root.join("a/memory.max"), "max\n").unwrap();
        assert_eq!(memory.limit().unwrap(), None);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn the_largest_number_of_v1_is_no_limit() {
        let (root, memory) = memory("v1", "9223372036854771712", 0, 0);
        assert_eq!(memory.limit().unwrap(), None);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_cgroup_without_memory_files_limits_none() {
        let (root, hierarchies) = hierarchy("none", Version::V2);
        let folder = MemoryFolder::of(&hierarchies.cgroup(Path::new("/a"))).unwrap();
        assert!(Memory::open(&folder).unwrap().is_none());
        fs::remove_dir_all(root).unwrap();
    }
}
