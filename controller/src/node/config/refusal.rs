//! Why the agent does not change containerd's configuration, with what an administrator can do about it.

use std::path::{Path, PathBuf};

use super::block::ForeignLine;
use super::release::Release;

/// Why nothing is changed. What is in backticks can be pasted into a root shell of the host.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("containerd {0} is not supported: 1.6, 1.7 and 2.x are")]
    Release(Release),
    #[error(
        "{file} does not parse as TOML: {cause}; if containerd reads it all the same, {advice} writes it in other words",
        file = file.display()
    )]
    Unparsable {
        file: PathBuf,
        cause: String,
        advice: String,
    },
    #[error("{file} is not UTF-8: {advice}", file = file.display(), advice = recode(file))]
    Encoding { file: PathBuf },
    #[error(
        "{importer} imports {path:?}, which is not there, and containerd would not start again: take it out of imports, or \
         create an empty file with `mkdir -p {directory} && touch {path}`",
        importer = importer.display(), path = path.display(), directory = parent(path).display()
    )]
    MissingImport { importer: PathBuf, path: PathBuf },
    #[error("imports in {file} is not a list of paths, and containerd would not start again", file = file.display())]
    Imports { file: PathBuf },
    #[error("{file} is imported with format version {version}, which containerd {release} does not read", file = file.display())]
    Version {
        file: PathBuf,
        version: i64,
        release: Release,
    },
    #[error("containerd would not start again with {config}: {said}", config = config.display())]
    Rejected { config: PathBuf, said: String },
    #[error(
        "the handler {handler:?} is in {} already, and is not ours: remove that table, or give the WasmRuntime another handler",
        place(.file.as_deref())
    )]
    Foreign { handler: String, file: Option<PathBuf> },
    #[error(
        "{} has the handler {handler:?} in a table that the agent did not write, and that would be left when the agent's text \
         and the shim are gone: remove that table",
        place(.file.as_deref())
    )]
    Left { handler: String, file: Option<PathBuf> },
    #[error(
        "the disabled plugin {plugin:?} in {file} leaves containerd without CRI: enable it with \
         `sed -i -E \"{first},{last}s/['\\\"]{pattern}['\\\"],?//\" {file}` and restart containerd",
        file = file.display(), pattern = pattern(plugin), first = lines.0, last = lines.1
    )]
    CriDisabled {
        plugin: String,
        file: PathBuf,
        /// The first and the last line of the list.
        lines: (usize, usize),
    },
    #[error(
        "the handler cannot be written into {file} so that containerd has it and all else stays: {why}; \
         {advice} has containerd write its settings as tables of one file",
        file = file.display(), advice = rewriting(binary, root)
    )]
    NoPlace {
        file: PathBuf,
        why: String,
        root: PathBuf,
        binary: PathBuf,
    },
    #[error(
        "use_local_image_pull is set in {file}, and an administrator's value stays: remove that line with \
         `sed -i /use_local_image_pull/d {file}`, or set spec.installation.imagePull of the WasmRuntime to Unchanged",
        file = file.display()
    )]
    ImagePull { file: PathBuf },
    #[error("{file} cannot be edited: {why}", file = file.display())]
    Form { file: PathBuf, why: String },
    #[error(
        "line {number} of {file} is in the agent's table and not from the agent: {text:?}; move it to a table of its own, or \
         remove it with `sed -i {number}d {file}`",
        number = line.number, text = line.text, file = file.display()
    )]
    Edited { file: PathBuf, line: ForeignLine },
    #[error("without the agent's text in {files}, containerd would not have what it has now: {why}")]
    NotRemovable { files: String, why: String },
    #[error(
        "{root} imports files in a way that cannot be followed: containerd makes something else of them when it reads them one by one"
    )]
    Unfollowed { root: String },
}

impl Refusal {
    /// The command by which containerd (`binary`) writes a root file as it understands it.
    pub fn rewriting(binary: &Path, root: &Path) -> String {
        rewriting(binary, root)
    }
}

fn rewriting(binary: &Path, root: &Path) -> String {
    let (binary, root) = (binary.display(), root.display());
    format!("`{binary} --config {root} config dump >{root}.new && cat {root}.new >{root} && rm {root}.new`")
}

/// What a disabled plugin is called in a file: containerd 2.x renames those of format 1.
fn pattern(plugin: &str) -> String {
    match plugin {
        "cri" | "io.containerd.grpc.v1.cri" => r"(io\.containerd\.grpc\.v1\.)?cri".to_owned(),
        other => other.replace('.', r"\."),
    }
}

fn place(file: Option<&Path>) -> String {
    file.map_or_else(
        || "a file that containerd imports".to_owned(),
        |file| file.display().to_string(),
    )
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn recode(file: &Path) -> String {
    let file = file.display();
    format!(
        "recode it with `iconv -f ISO-8859-1 -t UTF-8 {file} >{file}.new && cat {file}.new >{file} && rm {file}.new`"
    )
}
