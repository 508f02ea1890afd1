//! What a root configuration file says about itself: its version, its imports, where the CRI plugin's runtimes are.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml_edit::{DocumentMut, Item, TableLike};

/// A release of containerd, as far as its configuration depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    pub major: u32,
    pub minor: u32,
}

impl Release {
    /// Whether a start of it removes a container whose shim names no process of it. 1.6 keeps all; from 2.0 on sandboxes
    /// are known by more than that.
    pub fn removes_what_names_no_process(self, is_sandbox: bool) -> bool {
        match (self.major, self.minor) {
            (..=0, _) | (1, ..=6) => false,
            (1, _) => true,
            _ => !is_sandbox,
        }
    }

    /// Whether an imported file is merged into the plugins' tables; before 2.0 it replaces them.
    pub fn merges_imports(self) -> bool {
        self.major >= 2
    }
}

impl FromStr for Release {
    type Err = ();

    /// Reads what CRI's `Version` answers: `v2.4.2`, or `1.6.20~ds1` as Debian writes it.
    fn from_str(text: &str) -> Result<Release, ()> {
        let mut parts = text.trim_start_matches('v').split('.');
        let mut number = || parts.next()?.parse().ok();
        match (number(), number()) {
            (Some(major), Some(minor)) => Ok(Release { major, minor }),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.major, self.minor)
    }
}

/// Why a root file cannot be worked with.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    #[error("{path} does not parse as TOML, so containerd will not start again: {cause}")]
    Unparsable { path: PathBuf, cause: String },
    #[error(
        "{path} is of format version {version}, which is not supported: `containerd config migrate` writes a newer one"
    )]
    Version { path: PathBuf, version: i64 },
    #[error("imports in {path} is not a list of paths")]
    Imports { path: PathBuf },
}

/// A root configuration file.
#[derive(Clone, Debug)]
pub struct Root {
    pub path: PathBuf,
    pub text: String,
    pub document: DocumentMut,
    /// `version` as the file has it: 2, 3 or 4. What `containerd config dump` shows is the migrated one.
    pub version: i64,
    /// `imports` as written, which may be globs.
    pub imports: Vec<String>,
}

impl Root {
    /// Reads the `text` of the file at `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Root, RootError> {
        let document: DocumentMut = text
            .parse()
            .map_err(|cause: toml_edit::TomlError| RootError::Unparsable {
                path: path.to_owned(),
                cause: cause.to_string().trim().to_owned(),
            })?;
        // A file without a version is of version 1.
        let version = document.get("version").map_or(Some(1), Item::as_integer).unwrap_or(0);
        if !(2..=4).contains(&version) {
            return Err(RootError::Version {
                path: path.to_owned(),
                version,
            });
        }
        let imports = match document.get("imports") {
            None => Vec::new(),
            Some(item) => strings(item).ok_or_else(|| RootError::Imports { path: path.to_owned() })?,
        };
        Ok(Root {
            path: path.to_owned(),
            text: text.to_owned(),
            document,
            version,
            imports,
        })
    }

    /// The plugin whose `containerd.runtimes` are CRI's handlers, by the name that this version has for it.
    pub fn plugin(&self) -> &'static str {
        plugin(self.version)
    }

    /// The imported folder that takes a file of ours, when there is one: the first glob `FOLDER/*.toml`.
    pub fn drop_in_folder(&self) -> Option<PathBuf> {
        let own = self.path.parent().unwrap_or(Path::new("/"));
        self.imports
            .iter()
            .filter_map(|import| import.strip_suffix("/*.toml"))
            .find(|folder| !folder.contains(['*', '?', '[']))
            .map(|folder| own.join(folder))
    }

    /// The table of `handler`, if the file has one.
    pub fn handler(&self, handler: &str) -> Option<&Item> {
        runtimes(&self.document, self.plugin())?.get(handler)
    }
}

/// The plugin that has CRI's handlers in a file of `version`.
pub fn plugin(version: i64) -> &'static str {
    if version == 2 {
        "io.containerd.grpc.v1.cri"
    } else {
        "io.containerd.cri.v1.runtime"
    }
}

/// The way to the map of handlers; the gap is the plugin's name.
pub const PATH: [Option<&str>; 4] = [Some("plugins"), None, Some("containerd"), Some("runtimes")];

/// The map of handlers in a configuration, however its tables are written.
pub fn runtimes<'a>(document: &'a DocumentMut, plugin: &str) -> Option<&'a dyn TableLike> {
    let mut item = document.as_item();
    for key in PATH.map(|key| key.unwrap_or(plugin)) {
        item = item.as_table_like()?.get(key)?;
    }
    item.as_table_like()
}

fn strings(item: &Item) -> Option<Vec<String>> {
    let array = item.as_array()?;
    array.iter().map(|value| value.as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(text: &str) -> Result<Root, RootError> {
        Root::parse(Path::new("/etc/containerd/config.toml"), text)
    }

    #[test]
    fn releases_are_read_as_distributions_write_them() {
        let read = |text: &str| text.parse::<Release>().map(|release| release.to_string());
        assert_eq!(read("v2.4.2"), Ok("2.4".to_owned()));
        assert_eq!(read("1.6.20~ds1"), Ok("1.6".to_owned()));
        assert_eq!(read("1.7.24-0ubuntu1"), Ok("1.7".to_owned()));
        assert_eq!(read("dev"), Err(()));
    }

    #[test]
    fn a_file_without_a_version_is_refused_as_version_1() {
        let error = root("disabled_plugins = ['cri']").unwrap_err();
        assert!(error.to_string().contains("version 1"), "{error}");
        assert!(matches!(
            root("version = 5"),
            Err(RootError::Version { version: 5, .. })
        ));
        assert!(matches!(
            root("version = '2'"),
            Err(RootError::Version { version: 0, .. })
        ));
    }

    #[test]
    fn a_file_that_does_not_parse_is_refused_with_the_place() {
        let error = root("version = 2\n[plugins\n").unwrap_err().to_string();
        assert!(error.contains("/etc/containerd/config.toml"), "{error}");
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn the_first_imported_folder_takes_a_file_of_ours() {
        let folder = |imports: &str| {
            root(&format!("version = 3\nimports = {imports}"))
                .unwrap()
                .drop_in_folder()
        };
        assert_eq!(folder("[]"), None);
        assert_eq!(folder("['/etc/extra.toml']"), None);
        assert_eq!(
            folder("['/etc/extra.toml', '/etc/containerd/conf.d/*.toml']"),
            Some("/etc/containerd/conf.d".into())
        );
        assert_eq!(folder("['conf.d/*.toml']"), Some("/etc/containerd/conf.d".into()));
        assert_eq!(folder("['/etc/*/more/*.toml']"), None);
        assert!(matches!(
            root("version = 2\nimports = 'one'"),
            Err(RootError::Imports { .. })
        ));
    }

    #[test]
    fn handlers_are_found_in_tables_inline_tables_and_dotted_keys() {
        for text in [
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = 'r'",
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nruntimes = { runc = { runtime_type = 'r' } }",
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nruntimes.runc.runtime_type = 'r'",
            "version = 3\n[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc]\nruntime_type = 'r'",
        ] {
            assert!(root(text).unwrap().handler("runc").is_some(), "{text}");
            assert!(root(text).unwrap().handler("wasi").is_none(), "{text}");
        }
    }
}
