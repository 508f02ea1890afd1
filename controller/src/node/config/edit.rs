//! Which file is changed, and into what, so that containerd has our handler, or no longer has it. Half of this file are its
//! tests: a shape of configuration each.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use toml_edit::{Array, DocumentMut, Item, Value, value};

use super::root::{Release, Root, RootError, runtimes};
use super::tables::{Handler, copy_of, is_marked, is_our_copy, our_table, runtimes_made, runtimes_mut, says};

/// What is known of a containerd and its files.
#[derive(Clone, Debug)]
pub struct Shape {
    pub release: Release,
    pub root: Root,
    /// The imported folder for files like ours, when the root imports one and it is there.
    pub drop_ins: Option<PathBuf>,
    /// The files that the root imports, in containerd's order, ours too.
    pub imported: Vec<(PathBuf, String)>,
    /// The name of the default runtime in the running CRI plugin, and its entry there: camel-case JSON.
    pub default_runtime: (String, Json),
}

/// A change of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    pub file: PathBuf,
    /// What it has now; nothing when it is to be made.
    pub old: Option<String>,
    /// What it will have; nothing when it is to be removed.
    pub new: Option<String>,
}

/// Why nothing is changed: what an administrator has to mend first.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Root(#[from] RootError),
    #[error("containerd {0} is not supported: 1.6, 1.7 and 2.x are")]
    Release(Release),
    #[error(
        "the handler {handler:?} is in {file} already, and is not ours: remove that table, or give the WasmRuntime another handler"
    )]
    Foreign { handler: String, file: PathBuf },
    #[error(
        "{file} is imported and has a table of the CRI plugin: containerd {release} lets it replace the one in {root}; move its CRI settings there"
    )]
    Replaced {
        file: PathBuf,
        root: PathBuf,
        release: Release,
    },
    #[error(
        "{file} is imported with format version {version}, {root} has {expected}: containerd {release} does not mix them"
    )]
    Mixed {
        file: PathBuf,
        version: i64,
        root: PathBuf,
        expected: i64,
        release: Release,
    },
    #[error(
        "the runtimes of the CRI plugin in {0} are an inline table or a dotted key, to which no table can be added: write them as [tables]"
    )]
    Inline(PathBuf),
    #[error(
        "{root} has no table for the default runtime {name:?}, and the running containerd does not tell its type: write that table"
    )]
    NoDefault { root: PathBuf, name: String },
}

/// The edit that gives containerd `handler`; nothing when its files have it already.
pub fn install(shape: &Shape, handler: &Handler) -> Result<Option<Edit>, Refusal> {
    refuse_odd_imports(shape)?;
    let drop_in = drop_in(shape, handler);
    // Wherever the handler is already, it is ours or we keep away.
    for (file, text) in &shape.imported {
        if Some(file) == drop_in.as_ref() {
            continue;
        }
        let other = parse_import(file, text)?;
        if runtimes(&other, shape.root.plugin()).is_some_and(|map| map.contains_key(&handler.name)) {
            return Err(foreign(handler, file.clone()));
        }
    }
    match drop_in {
        // A table that an earlier state of the files made us write into the root stays there until it is uninstalled.
        Some(file) if !is_ours_in_root(shape, handler)? => {
            let new = drop_in_text(&shape.root, handler);
            let old = shape.imported.iter().find(|(path, _)| *path == file);
            let old = old.map(|(_, text)| text.clone());
            Ok((old != new).then_some(Edit { file, old, new }))
        }
        _ => install_in_root(shape, handler),
    }
}

/// The edit that takes `handler` away; nothing when no file has it. What others wrote since stays.
pub fn uninstall(shape: &Shape, handler: &Handler) -> Result<Option<Edit>, Refusal> {
    let own = drop_in(shape, handler);
    if let Some((file, text)) = shape.imported.iter().find(|(path, _)| Some(path) == own.as_ref()) {
        return Ok(Some(Edit {
            file: file.clone(),
            old: Some(text.clone()),
            new: None,
        }));
    }
    if !is_ours_in_root(shape, handler).unwrap_or(false) {
        return Ok(None);
    }
    let root = &shape.root;
    let mut document = root.document.clone();
    let Some(map) = runtimes_mut(&mut document, root.plugin()) else {
        return Ok(None);
    };
    map.remove(&handler.name);
    // The copied default goes too, unless somebody relies on it by now: by having changed it, or by another runtime.
    let copied: Vec<String> = map
        .iter()
        .filter(|(_, item)| is_our_copy(item, handler))
        .map(|(name, _)| name.to_owned())
        .collect();
    if map.len() == copied.len() {
        for name in copied {
            map.remove(&name);
        }
    }
    Ok(Some(Edit {
        file: root.path.clone(),
        old: Some(root.text.clone()),
        new: Some(document.to_string()),
    }))
}

/// A root file for a trial of a change to an imported one: it imports the same files by name, with `candidate` for the one
/// that changes, or without it. A change of the root itself is tried as it is.
pub fn trial(shape: &Shape, edit: &Edit, candidate: &Path) -> Option<String> {
    if edit.file == shape.root.path {
        return None;
    }
    let others = shape.imported.iter().map(|(path, _)| path.as_path());
    let mut imports: Vec<&Path> = others.filter(|path| *path != edit.file).collect();
    if edit.new.is_some() {
        imports.push(candidate);
    }
    let mut document = shape.root.document.clone();
    let imports = imports.into_iter().map(|path| path.display().to_string());
    document["imports"] = value(Value::Array(Array::from_iter(imports)));
    Some(document.to_string())
}

/// Refuses releases, versions and imports with which a handler in the root file, or in one of ours, would be no use.
fn refuse_odd_imports(shape: &Shape) -> Result<(), Refusal> {
    let (release, root) = (shape.release, &shape.root);
    if release < (Release { major: 1, minor: 6 }) || release.major > 2 {
        return Err(Refusal::Release(release));
    }
    for (file, text) in &shape.imported {
        let import = parse_import(file, text)?;
        let version = import.get("version").and_then(Item::as_integer);
        if let Some(version) = version.filter(|version| *version > root.version) {
            return Err(Refusal::Mixed {
                file: file.clone(),
                version,
                root: root.path.clone(),
                expected: root.version,
                release,
            });
        }
        let has_plugin = import
            .get("plugins")
            .and_then(Item::as_table_like)
            .is_some_and(|plugins| plugins.contains_key(root.plugin()));
        if !release.merges_imports() && has_plugin {
            return Err(Refusal::Replaced {
                file: file.clone(),
                root: root.path.clone(),
                release,
            });
        }
    }
    Ok(())
}

fn parse_import(file: &Path, text: &str) -> Result<DocumentMut, Refusal> {
    text.parse().map_err(|cause: toml_edit::TomlError| {
        Refusal::Root(RootError::Unparsable {
            path: file.to_owned(),
            cause: cause.to_string().trim().to_owned(),
        })
    })
}

/// The file of ours beside others, where containerd merges such files.
fn drop_in(shape: &Shape, handler: &Handler) -> Option<PathBuf> {
    let folder = shape.drop_ins.as_ref().filter(|_| shape.release.merges_imports())?;
    Some(folder.join(format!("90-kubewasi-{}.toml", handler.runtime)))
}

fn drop_in_text(root: &Root, handler: &Handler) -> Option<String> {
    let mut document = DocumentMut::new();
    // Equal to the root's: a higher one stops containerd, or the migration of the root.
    document["version"] = value(root.version);
    runtimes_made(&mut document, root.plugin())?.insert(&handler.name, Item::Table(our_table(handler)));
    Some(document.to_string())
}

/// Whether the root file has our handler, and it is ours.
fn is_ours_in_root(shape: &Shape, handler: &Handler) -> Result<bool, Refusal> {
    match shape.root.handler(&handler.name) {
        None => Ok(false),
        Some(item) if is_marked(item, handler) || says(item, handler) => Ok(true),
        Some(_) => Err(foreign(handler, shape.root.path.clone())),
    }
}

fn install_in_root(shape: &Shape, handler: &Handler) -> Result<Option<Edit>, Refusal> {
    let root = &shape.root;
    is_ours_in_root(shape, handler)?;
    if root.handler(&handler.name).is_some_and(|item| says(item, handler)) {
        return Ok(None);
    }
    let mut document = root.document.clone();
    let inline = || Refusal::Inline(root.path.clone());
    let map = runtimes_made(&mut document, root.plugin()).ok_or_else(inline)?;
    let (default, entry) = &shape.default_runtime;
    if !shape.release.merges_imports() && !map.contains_key(default) {
        let copy = copy_of(entry, handler).ok_or_else(|| Refusal::NoDefault {
            root: root.path.clone(),
            name: default.clone(),
        })?;
        map.insert(default, Item::Table(copy));
    }
    map.insert(&handler.name, Item::Table(our_table(handler)));
    Ok(Some(Edit {
        file: root.path.clone(),
        old: Some(root.text.clone()),
        new: Some(document.to_string()),
    }))
}

fn foreign(handler: &Handler, file: PathBuf) -> Refusal {
    Refusal::Foreign {
        handler: handler.name.clone(),
        file,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const V2: &str = "io.containerd.grpc.v1.cri";
    const V3: &str = "io.containerd.cri.v1.runtime";

    fn handler() -> Handler {
        Handler {
            runtime: "default".into(),
            name: "wasi".into(),
            shim: "/opt/kubewasi/default/containerd-shim-wasi-v1".into(),
        }
    }

    fn shape(release: &str, text: &str, imported: &[(&str, &str)]) -> Shape {
        Shape {
            release: release.parse().unwrap(),
            drop_ins: Root::parse(Path::new("/etc/containerd/config.toml"), text)
                .unwrap()
                .drop_in_folder(),
            root: Root::parse(Path::new("/etc/containerd/config.toml"), text).unwrap(),
            imported: imported
                .iter()
                .map(|(path, text)| (path.into(), (*text).to_owned()))
                .collect(),
            default_runtime: (
                "runc".into(),
                json!({"runtimeType": "io.containerd.runc.v2",
                       "options": {"BinaryName": "", "IoGid": 0, "SystemdCgroup": true}}),
            ),
        }
    }

    fn with_runc(version: i64, plugin: &str) -> String {
        format!(
            "# The node's own.\nversion = {version}\n\n[plugins.\"{plugin}\".containerd]\n  # what runs pods\n  \
             default_runtime_name = 'runc'\n[plugins.\"{plugin}\".containerd.runtimes.runc] # not ours\n  \
             runtime_type = 'io.containerd.runc.v2'\n  [plugins.\"{plugin}\".containerd.runtimes.runc.options]\n    \
             SystemdCgroup = true\n\n# The debug socket.\n[debug]\n  level = 'info'\n# The end.\n"
        )
    }

    fn handlers(text: &str, version: i64) -> Vec<String> {
        let document: DocumentMut = text.parse().unwrap();
        let map = runtimes(&document, super::super::root::plugin(version)).unwrap();
        map.iter().map(|(name, _)| name.to_owned()).collect()
    }

    /// Installs, checks that a second time there is nothing to do, and that uninstalling gives the bytes back.
    #[track_caller]
    fn installed_and_back(release: &str, text: &str) -> String {
        let edit = install(&shape(release, text, &[]), &handler()).unwrap().unwrap();
        assert_eq!(edit.old.as_deref(), Some(text));
        let new = edit.new.unwrap();
        assert_eq!(install(&shape(release, &new, &[]), &handler()), Ok(None));
        let back = uninstall(&shape(release, &new, &[]), &handler()).unwrap().unwrap();
        assert_eq!(back.new.as_deref(), Some(text));
        new
    }

    #[test]
    fn our_table_is_added_comments_and_order_stay_and_uninstalling_gives_the_bytes_back() {
        for (release, version, plugin) in [
            ("1.6.20~ds1", 2, V2),
            ("v1.7.35", 2, V2),
            ("v2.0.1", 2, V2),
            ("v2.2.0", 3, V3),
            ("v2.4.2", 4, V3),
        ] {
            let text = with_runc(version, plugin);
            let new = installed_and_back(release, &text);
            assert_eq!(handlers(&new, version), ["runc", "wasi"]);
            let without: Vec<&str> = text
                .lines()
                .filter(|line| !new.lines().any(|other| other == *line))
                .collect();
            assert_eq!(without, [""; 0], "{new}");
            assert!(new.contains("pod_annotations = [\"kubewasi.dev/*\"]"), "{new}");
        }
    }

    #[test]
    fn containerd_1_keeps_its_default_runtime_which_it_would_drop_beside_ours() {
        for text in [
            "version = 2\n".to_owned(),
            format!("version = 2\n[plugins.\"{V2}\"]\n  sandbox_image = 'pause'\n"),
            format!(
                "version = 2\n[plugins.\"{V2}\".containerd.runtimes.kata]\nruntime_type = 'io.containerd.kata.v2'\n"
            ),
        ] {
            let edit = install(&shape("1.7.35", &text, &[]), &handler()).unwrap().unwrap();
            let new = edit.new.unwrap();
            assert!(handlers(&new, 2).contains(&"runc".to_owned()), "{new}");
            let root = Root::parse(Path::new("/c"), &new).unwrap();
            let runc = root.handler("runc").unwrap();
            assert_eq!(runc["options"]["SystemdCgroup"].as_bool(), Some(true), "{new}");
            assert_eq!(runc["options"]["IoGid"].as_integer(), Some(0), "{new}");
        }
        installed_and_back(
            "1.7.35",
            &format!("version = 2\n[plugins.\"{V2}\"]\n  sandbox_image = 'pause'\n"),
        );
        let two = with_runc(3, V3).replace("runtimes.runc", "runtimes.kata");
        let new = install(&shape("2.4.2", &two, &[]), &handler())
            .unwrap()
            .unwrap()
            .new
            .unwrap();
        assert_eq!(
            handlers(&new, 3),
            ["kata", "wasi"],
            "containerd 2 merges with its default"
        );
    }

    #[test]
    fn a_copied_default_that_was_edited_or_is_needed_stays_when_ours_goes() {
        let edit = install(&shape("1.7.35", "version = 2\n", &[]), &handler())
            .unwrap()
            .unwrap();
        let installed = edit.new.unwrap();
        let edited = installed.replace("SystemdCgroup = true", "SystemdCgroup = false");
        let kata = format!("{installed}[plugins.\"{V2}\".containerd.runtimes.kata]\nruntime_type = 'k'\n");
        for (text, left) in [(edited, &["runc"][..]), (kata, &["runc", "kata"])] {
            let back = uninstall(&shape("1.7.35", &text, &[]), &handler()).unwrap().unwrap();
            assert_eq!(handlers(&back.new.unwrap(), 2), left);
        }
    }

    #[test]
    fn what_others_wrote_after_us_stays_when_ours_goes() {
        let installed = installed_and_back("2.4.2", &with_runc(3, V3));
        let later = format!("{installed}[plugins.\"{V3}\".containerd.runtimes.kata]\n# theirs\nruntime_type = 'k'\n");
        let back = uninstall(&shape("2.4.2", &later, &[]), &handler())
            .unwrap()
            .unwrap()
            .new
            .unwrap();
        assert_eq!(handlers(&back, 3), ["runc", "kata"]);
        assert!(back.contains("# theirs") && back.contains("# The end."), "{back}");
        assert!(!back.contains("kubewasi"), "{back}");
    }

    #[test]
    fn a_table_of_somebody_else_is_never_touched() {
        let theirs = format!(
            "{}[plugins.\"{V2}\".containerd.runtimes.wasi]\nruntime_type = 'io.containerd.spin.v2'\n",
            with_runc(2, V2)
        );
        let error = install(&shape("1.7.35", &theirs, &[]), &handler()).unwrap_err();
        assert!(matches!(error, Refusal::Foreign { .. }), "{error}");
        assert_eq!(uninstall(&shape("1.7.35", &theirs, &[]), &handler()), Ok(None));
        let elsewhere = format!("[plugins.\"{V3}\".containerd.runtimes.wasi]\nruntime_type = 'other'\n");
        let imports = "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n";
        let error = install(
            &shape("2.4.2", imports, &[("/etc/containerd/conf.d/10-x.toml", &elsewhere)]),
            &handler(),
        );
        assert!(matches!(error, Err(Refusal::Foreign { .. })), "{error:?}");
    }

    #[test]
    fn a_table_of_another_runtime_of_ours_is_somebody_elses() {
        let text = install(&shape("1.7.35", &with_runc(2, V2), &[]), &handler())
            .unwrap()
            .unwrap()
            .new
            .unwrap();
        let other = Handler {
            runtime: "second".into(),
            shim: "/opt/kubewasi/second/containerd-shim-wasi-v1".into(),
            ..handler()
        };
        assert!(matches!(
            install(&shape("1.7.35", &text, &[]), &other),
            Err(Refusal::Foreign { .. })
        ));
    }

    #[test]
    fn our_own_table_with_other_values_is_put_right() {
        let text = install(&shape("1.7.35", &with_runc(2, V2), &[]), &handler())
            .unwrap()
            .unwrap()
            .new
            .unwrap();
        let edited = text.replace("/opt/kubewasi/default/", "/tmp/");
        let edit = install(&shape("1.7.35", &edited, &[]), &handler()).unwrap().unwrap();
        assert_eq!(edit.new, Some(text));
    }

    #[test]
    fn containerd_2_takes_a_file_of_ours_where_the_root_imports_a_folder() {
        for (version, plugin) in [(2, V2), (3, V3)] {
            let text = format!("version = {version}\nimports = ['/etc/containerd/conf.d/*.toml']\n");
            let file = "/etc/containerd/conf.d/90-kubewasi-default.toml";
            let edit = install(&shape("2.4.2", &text, &[]), &handler()).unwrap().unwrap();
            assert_eq!((edit.file.to_str(), &edit.old), (Some(file), &None));
            let ours = edit.new.unwrap();
            assert!(ours.starts_with(&format!("version = {version}\n")), "{ours}");
            assert!(
                ours.contains(&format!("[plugins.\"{plugin}\".containerd.runtimes.wasi]")),
                "{ours}"
            );
            let now = shape("2.4.2", &text, &[(file, &ours)]);
            assert_eq!(install(&now, &handler()), Ok(None));
            let back = uninstall(&now, &handler()).unwrap().unwrap();
            assert_eq!((back.old, back.new), (Some(ours), None));
            // 1.x would let it replace the root's table.
            if version == 2 {
                let edit = install(&shape("1.7.35", &text, &[]), &handler()).unwrap().unwrap();
                assert_eq!(edit.file.to_str(), Some("/etc/containerd/config.toml"));
            }
        }
    }

    #[test]
    fn a_file_of_ours_is_tried_by_a_root_that_imports_the_candidate_instead() {
        let file = "/etc/containerd/conf.d/90-kubewasi-default.toml";
        let text = "version = 3\nimports = ['/etc/containerd/conf.d/*.toml'] # all\n[debug]\n";
        let shape = shape(
            "2.4.2",
            text,
            &[("/etc/containerd/conf.d/10-a.toml", ""), (file, "version = 3\n")],
        );
        let mut edit = install(&shape, &handler()).unwrap().unwrap();
        let new = trial(&shape, &edit, Path::new("/c")).unwrap();
        assert!(new.contains("[\"/etc/containerd/conf.d/10-a.toml\", \"/c\"]"), "{new}");
        edit.new = None;
        let without = trial(&shape, &edit, Path::new("/c")).unwrap();
        assert!(without.contains("[\"/etc/containerd/conf.d/10-a.toml\"]"), "{without}");
        edit.file = shape.root.path.clone();
        assert_eq!(trial(&shape, &edit, Path::new("/c")), None);
    }

    #[test]
    fn odd_imports_are_refused_by_name() {
        let text = format!("{}\nimports = ['/etc/extra.toml']\n", "version = 2");
        let cri = format!("[plugins.\"{V2}\"]\nsandbox_image = 'pause'\n");
        let refused = |release: &str, imported: &str| {
            install(&shape(release, &text, &[("/etc/extra.toml", imported)]), &handler())
                .unwrap_err()
                .to_string()
        };
        assert!(refused("1.7.35", &cri).contains("/etc/extra.toml is imported and has a table of the CRI plugin"));
        assert!(refused("2.4.2", "version = 3").contains("does not mix them"));
        assert!(refused("1.7.35", "[").contains("/etc/extra.toml does not parse"));
        assert!(install(&shape("2.4.2", &text, &[("/etc/extra.toml", &cri)]), &handler()).is_ok());
    }

    #[test]
    fn releases_and_forms_that_cannot_be_edited_are_refused() {
        let refused = |release: &str, text: &str| install(&shape(release, text, &[]), &handler()).unwrap_err();
        assert!(matches!(refused("1.5.9", "version = 2"), Refusal::Release(_)));
        let inline =
            format!("version = 2\n[plugins.\"{V2}\".containerd]\nruntimes = {{ runc = {{ runtime_type = 'r' }} }}\n");
        assert!(matches!(refused("1.7.35", &inline), Refusal::Inline(_)));
        let dotted = format!("version = 2\n[plugins.\"{V2}\".containerd]\nruntimes.runc.runtime_type = 'r'\n");
        assert!(matches!(refused("1.7.35", &dotted), Refusal::Inline(_)));
        let mut unknown = shape("1.7.35", "version = 2", &[]);
        unknown.default_runtime.1 = json!(null);
        assert!(matches!(install(&unknown, &handler()), Err(Refusal::NoDefault { .. })));
    }
}
