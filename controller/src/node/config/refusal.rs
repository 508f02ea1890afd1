//! Why the agent does not change containerd's configuration, with what an administrator can do about it.

use std::path::{Path, PathBuf};

use super::block::ForeignLine;
use super::files::DisabledPlugin;
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
    /// Plugins without which there is no CRI.
    #[error(
        "disabled_plugins leaves containerd without CRI: {}; enable it with `{}` and restart containerd",
        named(.0), enabling(.0)
    )]
    CriDisabled(Vec<DisabledPlugin>),
    #[error(
        "the handler cannot be written into {file} so that containerd has it and all else stays: {why}; \
         {advice} has containerd write its settings as tables of one file",
        file = file.display(), advice = rewriting(binary, root, plugins)
    )]
    NoPlace {
        file: PathBuf,
        why: String,
        root: PathBuf,
        binary: PathBuf,
        /// The plugins that the files disable or require.
        plugins: Vec<String>,
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
        "{root} imports files in a way that the agent cannot follow: containerd reads something else from the files one by one"
    )]
    Unfollowed { root: String },
}

impl Refusal {
    /// The command by which containerd (`binary`) writes a root file as it understands it.
    pub fn rewriting(binary: &Path, root: &Path) -> String {
        rewriting(binary, root, &[])
    }
}

/// Names of plugins in format 1, which containerd 1.x dumps as format 2 as they are and does not start with then. The full
/// names are those to which containerd 2.x migrates them, and NRI's of 1.7.
const FORMAT_1: [(&str, &str); 17] = [
    ("aufs", "io.containerd.snapshotter.v1.aufs"),
    ("bolt", "io.containerd.metadata.v1.bolt"),
    ("btrfs", "io.containerd.snapshotter.v1.btrfs"),
    ("cgroups", "io.containerd.monitor.v1.cgroups"),
    ("cri", "io.containerd.grpc.v1.cri"),
    ("devmapper", "io.containerd.snapshotter.v1.devmapper"),
    ("linux", "io.containerd.runtime.v1.linux"),
    ("native", "io.containerd.snapshotter.v1.native"),
    ("nri", "io.containerd.nri.v1.nri"),
    ("opt", "io.containerd.internal.v1.opt"),
    ("otlp", "io.containerd.tracing.processor.v1.otlp"),
    ("overlayfs", "io.containerd.snapshotter.v1.overlayfs"),
    ("restart", "io.containerd.internal.v1.restart"),
    ("scheduler", "io.containerd.gc.v1.scheduler"),
    ("task", "io.containerd.runtime.v2.task"),
    ("tracing", "io.containerd.internal.v1.tracing"),
    ("zfs", "io.containerd.snapshotter.v1.zfs"),
];

/// `plugins` are those that the files disable or require.
fn rewriting(binary: &Path, root: &Path, plugins: &[String]) -> String {
    let (binary, root) = (binary.display(), root.display());
    let renamed = FORMAT_1
        .iter()
        .filter(|(name, _)| plugins.iter().any(|plugin| plugin == name))
        .map(|(name, full)| format!("s/\\\"{name}\\\"/\\\"{full}\\\"/"));
    let renamed = renamed.collect::<Vec<_>>().join("; ");
    let renaming = match renamed.as_str() {
        "" => String::new(),
        _ => format!(" && sed -i -E \"/^(disabled|required)_plugins/ {{ {renamed} }}\" {root}.new"),
    };
    format!("`{binary} --config {root} config dump >{root}.new{renaming} && cat {root}.new >{root} && rm {root}.new`")
}

fn named(disabled: &[DisabledPlugin]) -> String {
    let named = disabled
        .iter()
        .map(|plugin| format!("{:?} in {}", plugin.name, plugin.file.display()));
    named.collect::<Vec<_>>().join(", ")
}

/// The commands that remove the entries; no line goes, so each command leaves the lines of the others where they are.
fn enabling(disabled: &[DisabledPlugin]) -> String {
    let commands = disabled.iter().map(|plugin| {
        let (first, last) = plugin.lines;
        let name = plugin.name.replace('.', r"\.");
        let file = plugin.file.display();
        format!("sed -i -E \"{first},{last}s/['\\\"]{name}['\\\"],?//\" {file}")
    });
    commands.collect::<Vec<_>>().join(" && ")
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
