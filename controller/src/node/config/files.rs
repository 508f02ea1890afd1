//! The files that containerd reads: the root file and all that is imported, in containerd's order.
//!
//! As `LoadConfig` of containerd's `server/config` package: a queue of paths, where a path that was loaded is skipped.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};

use toml_edit::{Array, Document, DocumentMut, Item, Value, value};

use super::candidate::Edit;
use super::dump::{CRI, PLUGINS};
use super::path_pattern::{clean, expand};

/// Files as a process sees them whose paths these are.
pub trait Disk {
    /// The text of a file.
    fn read(&self, path: &Path) -> io::Result<String>;
    /// The names in a directory.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;
    /// What all paths of the same file or directory have in common: device and inode.
    fn identity(&self, path: &Path) -> io::Result<(u64, u64)>;
}

/// A file that containerd reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// The path by which containerd reads it.
    pub path: PathBuf,
    pub text: String,
}

/// All files that containerd reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The root file first.
    loaded: Vec<File>,
    /// `imports` of the root file as written.
    root_imports: Vec<String>,
}

/// Why the files cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read {path}: {cause}", path = path.display())]
    Read { path: PathBuf, cause: io::Error },
    #[error("{importer} imports {path}, which is not there", importer = importer.display(), path = path.display())]
    Missing { importer: PathBuf, path: PathBuf },
    #[error("{path} does not parse as TOML: {cause}", path = path.display())]
    Unparsable { path: PathBuf, cause: String },
    #[error("imports in {path} is not a list of paths", path = path.display())]
    Imports { path: PathBuf },
}

impl Files {
    /// Follows the imports from the root file `config` on.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or does not parse.
    pub fn load(config: &Path, disk: &impl Disk) -> Result<Files, LoadError> {
        let mut files = Files {
            loaded: Vec::new(),
            root_imports: Vec::new(),
        };
        let mut seen = HashSet::new();
        let mut pending = VecDeque::from([(config.to_owned(), None::<PathBuf>)]);
        while let Some((path, importer)) = pending.pop_front() {
            if !seen.insert(path.clone()) {
                continue;
            }
            let text = disk.read(&path).map_err(|cause| match importer {
                Some(importer) if cause.kind() == io::ErrorKind::NotFound && disk.identity(&path).is_err() => {
                    LoadError::Missing {
                        importer,
                        path: path.clone(),
                    }
                }
                _ => LoadError::Read {
                    path: path.clone(),
                    cause,
                },
            })?;
            let imports = imports_of(&path, &parse(&path, &text)?)?;
            if files.loaded.is_empty() {
                files.root_imports.clone_from(&imports);
            }
            for import in imports {
                let import = absolute(&path, &import);
                // Only a star makes a pattern of it.
                let found = match import.to_string_lossy().contains('*') {
                    true => expand(&import, disk).map_err(|cause| LoadError::Read {
                        path: import.clone(),
                        cause,
                    })?,
                    false => vec![import],
                };
                pending.extend(found.into_iter().map(|found| (found, Some(path.clone()))));
            }
            files.loaded.push(File { path, text });
        }
        Ok(files)
    }

    pub fn root(&self) -> &File {
        &self.loaded[0]
    }

    /// The files in containerd's order, the root file first.
    pub fn loaded(&self) -> &[File] {
        &self.loaded
    }

    /// The directory that the root file imports for files like ours: the first pattern `DIRECTORY/*.toml`.
    pub fn drop_in_directory(&self) -> Option<PathBuf> {
        let patterns = self
            .root_imports
            .iter()
            .filter_map(|import| import.strip_suffix("/*.toml"));
        let directory = patterns
            .into_iter()
            .find(|directory| !directory.contains(['*', '?', '[']))?;
        Some(absolute(&self.root().path, directory))
    }

    /// The file that has the key at `path`, whatever its value is.
    pub fn with_key(&self, path: &[&str]) -> Option<&Path> {
        let has = |file: &&File| {
            let document = file.document();
            let mut keys = path.iter();
            keys.try_fold(document.as_item(), |item, key| item.as_table_like()?.get(key))
                .is_some()
        };
        self.loaded.iter().find(has).map(|file| file.path.as_path())
    }

    /// The file whose table the handler is, when a file has it in a place where some containerd looks.
    pub fn with_handler(&self, handler: &str) -> Option<&Path> {
        let has = |file: &&File| {
            PLUGINS
                .iter()
                .any(|plugin| file.handlers(plugin).any(|name| name == handler))
        };
        self.loaded.iter().find(has).map(|file| file.path.as_path())
    }

    /// Where the files disable plugins without which there is no CRI.
    pub fn disabled_cri(&self) -> Vec<DisabledPlugin> {
        let disabled = self.loaded.iter().flat_map(|file| {
            let names = file.disabled_plugins().into_iter();
            names
                .filter(|name| CRI.contains(&name.as_str()))
                .map(|name| DisabledPlugin {
                    name,
                    file: file.path.clone(),
                    lines: file.lines_of("disabled_plugins").unwrap_or((1, 1)),
                })
        });
        disabled.collect()
    }

    /// The plugins that the files disable or require.
    pub fn named_plugins(&self) -> Vec<String> {
        let lists = ["disabled_plugins", "required_plugins"];
        let named = self.loaded.iter().flat_map(|file| lists.map(|key| file.list(key)));
        named.flatten().collect()
    }

    /// Copies of the files in `directory` that containerd reads to the same end, by name; the root file is the first. No
    /// copy imports another one of its own accord, so it does not matter what the originals are called.
    pub fn copies(&self, directory: &Path) -> Result<Vec<(PathBuf, String)>, LoadError> {
        let name = |index: usize| directory.join(format!("{index}.toml"));
        let mut copies = Vec::new();
        for (index, file) in self.loaded.iter().enumerate() {
            let mut document = parse(&file.path, &file.text)?;
            document.remove("imports");
            if index == 0 && self.loaded.len() > 1 {
                let others = (1..self.loaded.len()).map(|index| name(index).display().to_string());
                document["imports"] = value(Value::Array(Array::from_iter(others)));
            }
            copies.push((name(index), document.to_string()));
        }
        Ok(copies)
    }
}

/// An entry of `disabled_plugins`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DisabledPlugin {
    /// The plugin, as the entry names it.
    pub name: String,
    pub file: PathBuf,
    /// The first and the last line of the list, from 1.
    pub lines: (usize, usize),
}

impl File {
    /// The parsed text; empty where it does not parse, which [`Files::load`] has ruled out.
    pub fn document(&self) -> DocumentMut {
        self.text.parse().unwrap_or_default()
    }

    /// The file's format version: absent means 1.
    pub fn version(&self) -> i64 {
        self.document().get("version").and_then(Item::as_integer).unwrap_or(1)
    }

    /// The plugins that the file disables.
    pub fn disabled_plugins(&self) -> Vec<String> {
        self.list("disabled_plugins")
    }

    /// The texts in a list that is in no table.
    fn list(&self, key: &str) -> Vec<String> {
        let document = self.document();
        let list = document.get(key).and_then(Item::as_array);
        let texts = list.into_iter().flatten().filter_map(Value::as_str);
        texts.map(str::to_owned).collect()
    }

    /// The first and the last line of the value of a key of no table, from 1.
    pub fn lines_of(&self, key: &str) -> Option<(usize, usize)> {
        let document = Document::parse(self.text.as_str()).ok()?;
        let span = document.get(key)?.span()?;
        let line = |offset: usize| self.text[..offset].matches('\n').count() + 1;
        Some((line(span.start), line(span.end)))
    }

    /// The names of the handlers that the file has for `plugin`.
    pub fn handlers(&self, plugin: &str) -> impl Iterator<Item = String> + use<> {
        let document = self.document();
        let mut item = Some(document.as_item());
        for key in ["plugins", plugin, "containerd", "runtimes"] {
            item = item.and_then(Item::as_table_like).and_then(|table| table.get(key));
        }
        let table = item.and_then(Item::as_table_like);
        let names: Vec<String> = table
            .into_iter()
            .flat_map(|table| table.iter())
            .map(|(name, _)| name.to_owned())
            .collect();
        names.into_iter()
    }
}

fn parse(path: &Path, text: &str) -> Result<DocumentMut, LoadError> {
    text.parse()
        .map_err(|cause: toml_edit::TomlError| LoadError::Unparsable {
            path: path.to_owned(),
            cause: cause.to_string().trim().to_owned(),
        })
}

fn imports_of(path: &Path, document: &DocumentMut) -> Result<Vec<String>, LoadError> {
    let Some(item) = document.get("imports") else {
        return Ok(Vec::new());
    };
    let strings = item.as_array().and_then(|array| {
        let strings = array.iter().map(|value| value.as_str().map(str::to_owned));
        strings.collect::<Option<Vec<_>>>()
    });
    strings.ok_or_else(|| LoadError::Imports { path: path.to_owned() })
}

/// A path in the file `importer`, cleaned.
fn absolute(importer: &Path, path: &str) -> PathBuf {
    clean(&importer.parent().unwrap_or(Path::new("/")).join(path))
}

/// A disk on which some files have other texts.
pub struct Overlay<'a, D> {
    disk: &'a D,
    edits: Vec<Placed<'a>>,
}

/// An edit with where it is, so that it is found by every path of its file.
struct Placed<'a> {
    edit: &'a Edit,
    file: Option<(u64, u64)>,
    directory: Option<(u64, u64)>,
}

impl<'a, D: Disk> Overlay<'a, D> {
    pub fn new(disk: &'a D, edits: &'a [Edit]) -> Overlay<'a, D> {
        let placed = edits.iter().map(|edit| Placed {
            edit,
            file: disk.identity(&edit.file).ok(),
            directory: edit.file.parent().and_then(|directory| disk.identity(directory).ok()),
        });
        Overlay {
            edits: placed.collect(),
            disk,
        }
    }

    fn edit_of(&self, path: &Path) -> Option<&Edit> {
        let (file, directory) = (
            self.disk.identity(path).ok(),
            path.parent().and_then(|path| self.disk.identity(path).ok()),
        );
        let found = self.edits.iter().find(|placed| match file {
            Some(_) => placed.file == file,
            None => placed.directory == directory && placed.edit.file.file_name() == path.file_name(),
        });
        found.map(|placed| placed.edit)
    }
}

impl<D: Disk> Disk for Overlay<'_, D> {
    fn read(&self, path: &Path) -> io::Result<String> {
        match self.edit_of(path) {
            Some(edit) => edit.new.clone().ok_or_else(|| io::ErrorKind::NotFound.into()),
            None => self.disk.read(path),
        }
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let identity = self.disk.identity(directory).ok();
        let mut names = self.disk.list(directory)?;
        for placed in self.edits.iter().filter(|placed| placed.directory == identity) {
            let name = placed
                .edit
                .file
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            names.retain(|other| *other != name);
            if placed.edit.new.is_some() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn identity(&self, path: &Path) -> io::Result<(u64, u64)> {
        match self.edit_of(path) {
            Some(Edit { new: None, .. }) => Err(io::ErrorKind::NotFound.into()),
            _ => self.disk.identity(path),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A disk in memory, with links of directories.
    #[derive(Default)]
    pub struct Memory {
        pub files: BTreeMap<PathBuf, String>,
        pub links: BTreeMap<PathBuf, PathBuf>,
    }

    impl Memory {
        pub fn with(files: &[(&str, &str)]) -> Memory {
            Memory {
                files: files
                    .iter()
                    .map(|(path, text)| (path.into(), (*text).to_owned()))
                    .collect(),
                links: BTreeMap::new(),
            }
        }

        fn followed(&self, path: &Path) -> PathBuf {
            let link = self
                .links
                .iter()
                .find_map(|(link, target)| Some(target.join(path.strip_prefix(link).ok()?)));
            link.unwrap_or_else(|| path.to_owned())
        }
    }

    impl Disk for Memory {
        fn read(&self, path: &Path) -> io::Result<String> {
            let text = self.files.get(&self.followed(path)).cloned();
            text.ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
            let directory = self.followed(directory);
            let paths = self.files.keys().filter(|path| path.parent() == Some(&directory));
            Ok(paths
                .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
                .collect())
        }

        fn identity(&self, path: &Path) -> io::Result<(u64, u64)> {
            use std::hash::{DefaultHasher, Hash, Hasher};
            let path = self.followed(path);
            let mut hasher = DefaultHasher::new();
            path.hash(&mut hasher);
            let is_there = self.files.keys().any(|file| file.starts_with(&path));
            is_there
                .then(|| (0, hasher.finish()))
                .ok_or_else(|| io::ErrorKind::NotFound.into())
        }
    }

    fn loaded(disk: &impl Disk) -> Vec<String> {
        let files = Files::load(Path::new("/etc/c/config.toml"), disk).unwrap();
        files
            .loaded()
            .iter()
            .map(|file| file.path.display().to_string())
            .collect()
    }

    #[test]
    fn files_are_read_in_containerds_order_and_once() {
        let mut disk = Memory::with(&[
            (
                "/etc/c/config.toml",
                "imports = ['/etc/c/./config.toml', 'conf.d/*.toml', '/etc/link/config.toml', 'a.toml']",
            ),
            ("/etc/c/conf.d/b.toml", ""),
            ("/etc/c/conf.d/a.toml", "imports = ['../config.toml', 'more.conf']"),
            ("/etc/c/conf.d/c.conf", ""),
            ("/etc/c/conf.d/more.conf", ""),
            ("/etc/c/a.toml", ""),
        ]);
        disk.links.insert("/etc/link".into(), "/etc/c".into());
        let expected = [
            "config.toml",
            "conf.d/a.toml",
            "conf.d/b.toml",
            "../link/config.toml",
            "a.toml",
            "conf.d/more.conf",
        ];
        let expected = expected.map(|name| absolute(Path::new("/etc/c/config.toml"), name).display().to_string());
        let mut found = loaded(&disk);
        assert_eq!(found[..6], expected);
        // By the link all have other paths, and containerd loads them once more.
        found.truncate(8);
        assert_eq!(found[6..], ["/etc/link/conf.d/a.toml", "/etc/link/conf.d/b.toml"]);
    }

    #[test]
    fn an_edit_is_seen_by_every_path_of_its_file() {
        let mut disk = Memory::with(&[
            (
                "/etc/c/config.toml",
                "imports = ['/etc/link/config.toml', 'conf.d/*.toml']",
            ),
            ("/etc/c/conf.d/a.toml", ""),
        ]);
        disk.links.insert("/etc/link".into(), "/etc/c".into());
        let edit = |file: &str, new: Option<&str>| Edit {
            file: file.into(),
            old: None,
            new: new.map(str::to_owned),
        };
        let edits = [
            edit(
                "/etc/c/config.toml",
                Some("imports = ['/etc/link/config.toml', 'conf.d/*.toml'] # new"),
            ),
            edit("/etc/c/conf.d/b.toml", Some("")),
            edit("/etc/c/conf.d/a.toml", None),
        ];
        let overlay = Overlay::new(&disk, &edits);
        let files = Files::load(Path::new("/etc/c/config.toml"), &overlay).unwrap();
        let paths: Vec<_> = files.loaded().iter().map(|file| file.path.to_str().unwrap()).collect();
        assert_eq!(
            paths,
            [
                "/etc/c/config.toml",
                "/etc/link/config.toml",
                "/etc/c/conf.d/b.toml",
                "/etc/link/conf.d/b.toml"
            ]
        );
        assert!(files.loaded()[1].text.ends_with("# new"));
    }

    #[test]
    fn the_lines_of_a_list_are_known() {
        let file = |text: &str| File {
            path: "/c.toml".into(),
            text: text.to_owned(),
        };
        let list = file("version = 2\r\ndisabled_plugins = [\r\n  'cri', # no\r\n]\r\n[a]\r\n");
        assert_eq!(list.lines_of("disabled_plugins"), Some((2, 4)));
        assert_eq!(list.disabled_plugins(), ["cri"]);
        assert_eq!(file("a = []\n").lines_of("a"), Some((1, 1)));
        assert_eq!(file("[t]\na = []\n").lines_of("a"), None);
    }

    #[test]
    fn what_cannot_be_followed_is_named() {
        let error = |files: &[(&str, &str)]| {
            Files::load(Path::new("/c.toml"), &Memory::with(files))
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            error(&[("/c.toml", "imports = ['x.toml']")]),
            "/c.toml imports /x.toml, which is not there"
        );
        assert!(error(&[("/c.toml", "version = 2\n[plugins\n")]).contains("line 2"));
        assert!(error(&[("/c.toml", "imports = 'one'")]).contains("not a list of paths"));
    }

    #[test]
    fn the_first_imported_directory_takes_a_file_of_ours() {
        let directory = |imports: &str| {
            let disk = Memory::with(&[("/etc/c/config.toml", imports), ("/etc/extra.toml", "")]);
            Files::load(Path::new("/etc/c/config.toml"), &disk)
                .unwrap()
                .drop_in_directory()
        };
        assert_eq!(directory("imports = []"), None);
        assert_eq!(directory("imports = ['/etc/extra.toml']"), None);
        assert_eq!(
            directory("imports = ['/etc/extra.toml', '/etc/c/conf.d/*.toml']"),
            Some("/etc/c/conf.d".into())
        );
        assert_eq!(directory("imports = ['conf.d/*.toml']"), Some("/etc/c/conf.d".into()));
        assert_eq!(directory("imports = ['/etc/*/more/*.toml']"), None);
    }

    #[test]
    fn handlers_are_found_in_tables_inline_tables_and_dotted_keys() {
        for text in [
            "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = 'r'",
            "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nruntimes = { runc = { runtime_type = 'r' } }",
            "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nruntimes.runc.runtime_type = 'r'",
            "[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc]\nruntime_type = 'r'",
        ] {
            let files = Files::load(Path::new("/c.toml"), &Memory::with(&[("/c.toml", text)])).unwrap();
            assert_eq!(files.with_handler("runc"), Some(Path::new("/c.toml")), "{text}");
            assert_eq!(files.with_handler("wasi"), None, "{text}");
        }
    }
}
