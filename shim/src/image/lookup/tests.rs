//! Overlays made of real folders, with the marks that overlays without root use (mount option `userxattr`).

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;

use rustix::fs::XattrFlags;

use super::*;

/// Three layers, the topmost first and writable.
struct Layers {
    _folder: tempfile::TempDir,
    top: PathBuf,
    middle: PathBuf,
    bottom: PathBuf,
}

impl Layers {
    fn new() -> Layers {
        let folder = tempfile::tempdir().expect("temp folder");
        let [top, middle, bottom] = ["top", "middle", "bottom"].map(|name| {
            let layer = folder.path().join(name);
            fs::create_dir(&layer).expect("layer");
            layer
        });
        Layers {
            _folder: folder,
            top,
            middle,
            bottom,
        }
    }

    fn lookup(&self, path: &str) -> Result<Entry, LookupError> {
        let layer = |folder: &Path, committed| Layer {
            folder: folder.to_owned(),
            committed,
        };
        let layers = vec![
            layer(&self.top, false),
            layer(&self.middle, true),
            layer(&self.bottom, true),
        ];
        lookup(
            &View {
                layers,
                opaque: "user.overlay.opaque",
            },
            Path::new(path),
        )
    }

    /// What the path's file holds, or which other kind of entry it is.
    fn read(&self, path: &str) -> String {
        match self.lookup(path).expect("lookup") {
            Entry::File(mut found) => {
                let mut text = String::new();
                found.file.read_to_string(&mut text).expect("read");
                text
            }
            Entry::Directory => "<directory>".to_owned(),
            Entry::Special => "<special>".to_owned(),
            Entry::Missing => "<missing>".to_owned(),
        }
    }
}

fn write(folder: &Path, path: &str, text: &str) {
    let path = folder.join(path);
    fs::create_dir_all(path.parent().expect("parent")).expect("folders");
    fs::write(path, text).expect("file");
}

fn whiteout(folder: &Path, path: &str) {
    let path = folder.join(path);
    fs::create_dir_all(path.parent().expect("parent")).expect("folders");
    rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).expect("whiteout");
}

fn mark(folder: &Path, path: &str, xattr: &str, value: &[u8]) {
    let path = folder.join(path);
    fs::create_dir_all(&path).expect("folder");
    rustix::fs::setxattr(path, xattr, value, XattrFlags::empty()).expect("xattr");
}

#[test]
fn the_topmost_layer_that_has_a_file_wins() {
    let layers = Layers::new();
    write(&layers.bottom, "app.wasm", "bottom");
    write(&layers.bottom, "bin/tool", "tool");
    assert_eq!(layers.read("/app.wasm"), "bottom");
    write(&layers.middle, "app.wasm", "middle");
    write(&layers.middle, "bin/other", "other");
    assert_eq!(layers.read("/app.wasm"), "middle");
    write(&layers.top, "app.wasm", "top");
    assert_eq!(layers.read("/app.wasm"), "top");
    assert_eq!(
        (layers.read("bin/tool"), layers.read("bin/other")),
        ("tool".to_owned(), "other".to_owned())
    );
    assert_eq!(
        (layers.read("/bin"), layers.read("/bin/none")),
        ("<directory>".to_owned(), "<missing>".to_owned())
    );
}

#[test]
fn a_found_file_names_its_layer_and_its_backing_path() {
    let layers = Layers::new();
    write(&layers.middle, "srv/app.wasm", "x");
    write(&layers.top, "srv/new.wasm", "y");
    symlink("srv", layers.bottom.join("link")).expect("link");
    let found = |path| match layers.lookup(path).expect("lookup") {
        Entry::File(found) => (found.backing, found.committed),
        other => panic!("{path} is {other:?}"),
    };
    assert_eq!(found("/link/app.wasm"), (layers.middle.join("srv/app.wasm"), true));
    assert_eq!(
        found("/srv/../srv/./new.wasm"),
        (layers.top.join("srv/new.wasm"), false)
    );
}

#[test]
fn a_whiteout_hides_files_and_whole_folders_below() {
    let layers = Layers::new();
    write(&layers.bottom, "app.wasm", "bottom");
    write(&layers.bottom, "srv/app.wasm", "bottom");
    whiteout(&layers.middle, "app.wasm");
    whiteout(&layers.middle, "srv");
    assert_eq!(
        (layers.read("/app.wasm"), layers.read("/srv/app.wasm")),
        ("<missing>".into(), "<missing>".into())
    );
    write(&layers.top, "srv/new.wasm", "top");
    assert_eq!(
        (layers.read("/srv/app.wasm"), layers.read("/srv/new.wasm")),
        ("<missing>".into(), "top".into())
    );
}

#[test]
fn an_opaque_folder_hides_what_is_below_it() {
    let layers = Layers::new();
    write(&layers.bottom, "srv/app.wasm", "bottom");
    mark(&layers.middle, "srv", "user.overlay.opaque", b"x");
    assert_eq!(layers.read("/srv/app.wasm"), "bottom");
    mark(&layers.middle, "srv", "user.overlay.opaque", b"y");
    assert_eq!(layers.read("/srv/app.wasm"), "<missing>");
}

#[test]
fn a_file_over_a_folder_and_a_folder_over_a_file_hide_each_other() {
    let layers = Layers::new();
    write(&layers.bottom, "a/app.wasm", "bottom");
    write(&layers.middle, "a", "file");
    assert_eq!(
        (layers.read("/a"), layers.read("/a/app.wasm")),
        ("file".into(), "<missing>".into())
    );
    write(&layers.top, "a/new.wasm", "top");
    assert_eq!(
        (layers.read("/a/new.wasm"), layers.read("/a/app.wasm")),
        ("top".into(), "<missing>".into())
    );
}

#[test]
fn links_are_followed_inside_the_root_only() {
    let layers = Layers::new();
    write(&layers.bottom, "opt/v1/app.wasm", "inside");
    symlink("/opt/v1", layers.middle.join("current")).expect("link");
    symlink("../../../../opt/v1/app.wasm", layers.middle.join("escape")).expect("link");
    symlink("current/app.wasm", layers.top.join("app")).expect("link");
    symlink("/etc/hostname", layers.top.join("host")).expect("link");
    for path in ["/current/app.wasm", "/escape", "/app", "/../../opt/v1/app.wasm"] {
        assert_eq!(layers.read(path), "inside", "{path}");
    }
    assert_eq!(layers.read("/host"), "<missing>");
}

#[test]
fn links_in_a_circle_end_in_an_error() {
    let layers = Layers::new();
    symlink("b", layers.top.join("a")).expect("link");
    symlink("a", layers.bottom.join("b")).expect("link");
    assert!(matches!(layers.lookup("/a"), Err(LookupError::Loop { .. })));
}

#[test]
fn paths_that_lead_too_deep_are_refused_also_through_links() {
    let layers = Layers::new();
    let deep = |levels: usize| vec!["d"; levels].join("/");
    write(&layers.bottom, &format!("{}/app.wasm", deep(MAX_DEPTH + 1)), "deep");
    symlink(deep(MAX_DEPTH), layers.top.join("link")).expect("link");
    let (whole, up) = (format!("{}/app.wasm", deep(MAX_DEPTH + 1)), "d/../".repeat(1000));
    for path in [whole.as_str(), "link/d/app.wasm"] {
        let error = layers.lookup(path).expect_err("too deep");
        assert!(matches!(error, LookupError::Deep { .. }), "{error}");
    }
    assert_eq!(layers.read("link"), "<directory>");
    assert_eq!(
        layers.read(&format!("{up}d")),
        "<directory>",
        "what was left is not counted"
    );
}

#[test]
fn a_path_is_refused_that_holds_too_many_folders_of_all_layers() {
    let layers = Layers::new();
    let path = vec!["d"; 200].join("/");
    write(&layers.bottom, &format!("{path}/app.wasm"), "deep");
    let view = |count: usize| View {
        layers: vec![
            Layer {
                folder: layers.bottom.clone(),
                committed: true,
            };
            count
        ],
        opaque: "user.overlay.opaque",
    };
    assert!(matches!(lookup(&view(2), Path::new(&path)), Ok(Entry::Directory)));
    let refused = lookup(&view(MAX_OPEN / 200 + 1), Path::new(&path));
    assert!(matches!(refused, Err(LookupError::Deep { .. })), "{refused:?}");
}

#[test]
fn fifos_and_devices_are_special_and_not_opened() {
    let layers = Layers::new();
    rustix::fs::mknodat(CWD, layers.bottom.join("fifo"), FileType::Fifo, Mode::RWXU, 0).expect("fifo");
    assert_eq!(layers.read("/fifo"), "<special>");
}

#[test]
fn what_the_overlay_keeps_elsewhere_is_an_error() {
    let layers = Layers::new();
    mark(&layers.top, "moved", "user.overlay.redirect", b"old");
    assert!(matches!(
        layers.lookup("/moved/app.wasm"),
        Err(LookupError::Redirected { .. })
    ));
}

#[test]
fn a_layer_that_is_gone_is_an_error_that_names_it() {
    let layers = Layers::new();
    fs::remove_dir(&layers.middle).expect("remove");
    let message = layers.lookup("/app.wasm").expect_err("a layer is gone").to_string();
    assert!(message.contains(layers.middle.to_str().expect("utf-8")), "{message}");
}
