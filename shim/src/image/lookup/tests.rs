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
        self.lookup_in(path, &[], true)
    }

    fn view(&self) -> View {
        let layer = |folder: &Path, committed| Layer {
            folder: folder.to_owned(),
            committed,
        };
        let layers = vec![
            layer(&self.top, false),
            layer(&self.middle, true),
            layer(&self.bottom, true),
        ];
        View {
            layers,
            opaque: "user.overlay.opaque",
        }
    }

    fn lookup_in(&self, path: &str, volumes: &[Volume], opens_volumes: bool) -> Result<Entry, LookupError> {
        Lookup::new(&self.view(), volumes, opens_volumes)?.find(Path::new(path))
    }

    /// What the path's file holds, or which other kind of entry it is.
    fn read(&self, path: &str) -> String {
        self.read_in(path, &[])
    }

    /// As [`Layers::read`], with volumes.
    fn read_in(&self, path: &str, volumes: &[Volume]) -> String {
        match self.lookup_in(path, volumes, true).expect("lookup") {
            Entry::File(mut found) => {
                let mut text = String::new();
                found.file.read_to_string(&mut text).expect("read");
                text
            }
            Entry::Directory => "<directory>".to_owned(),
            Entry::Special => "<special>".to_owned(),
            Entry::Missing => "<missing>".to_owned(),
            Entry::Unknown => "<unknown>".to_owned(),
            Entry::Volume => "<volume>".to_owned(),
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
    let find = |view: View| Lookup::new(&view, &[], true)?.find(Path::new(&path));
    assert!(matches!(find(view(2)), Ok(Entry::Directory)));
    let refused = find(view(MAX_OPEN / 200 + 1));
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

/// A recursive bind mount of `source`.
fn bind(source: &Path, destination: &str) -> Volume {
    Volume {
        destination: destination.into(),
        content: Content::Bind {
            source: source.to_owned(),
            recursive: true,
        },
    }
}

fn tmpfs(destination: &str) -> Volume {
    Volume {
        destination: destination.into(),
        content: Content::Empty,
    }
}

/// An image with `/v/app`, `/opt/v/app` and a link from `/link` to `/opt`, and a directory of the node with `app`.
fn image_and_volume() -> (Layers, tempfile::TempDir) {
    let layers = Layers::new();
    write(&layers.bottom, "v/app", "image");
    write(&layers.bottom, "opt/v/app", "image");
    write(&layers.bottom, "opt/tool", "image");
    symlink("opt", layers.middle.join("link")).expect("link");
    let volume = tempfile::tempdir().expect("temp folder");
    write(volume.path(), "app", "volume");
    write(volume.path(), "sub/app", "volume's sub");
    (layers, volume)
}

#[test]
fn a_volume_hides_what_the_image_has_there_and_nothing_else() {
    let (layers, volume) = image_and_volume();
    let volumes = [bind(volume.path(), "/v")];
    assert_eq!(layers.read_in("/v/app", &volumes), "volume");
    assert_eq!(layers.read_in("/v/sub/app", &volumes), "volume's sub");
    assert_eq!(layers.read_in("/v/none", &volumes), "<missing>");
    assert_eq!(layers.read_in("/opt/v/app", &volumes), "image");
    assert_eq!(layers.read_in("/v/../opt/tool", &volumes), "image");
    assert_eq!(layers.read_in("/v/app", &[tmpfs("/v")]), "<missing>");
}

#[test]
fn a_mount_point_is_found_through_the_images_links() {
    let (layers, volume) = image_and_volume();
    for (destination, path) in [
        ("/link/v", "/opt/v/app"),
        ("/link/v", "/link/v/app"),
        ("/opt/v", "/link/v/app"),
        ("/v/../link/./v", "/opt/v/app"),
    ] {
        let volumes = [bind(volume.path(), destination)];
        assert_eq!(layers.read_in(path, &volumes), "volume", "{path} with {destination}");
        assert_eq!(layers.read_in("/v/app", &volumes), "image", "{destination}");
    }
}

#[test]
fn a_later_mount_hides_earlier_ones_at_and_below_its_mount_point() {
    let (layers, volume) = image_and_volume();
    let sub = volume.path().join("sub");
    let path = volume.path();
    let at = |volumes: &[Volume]| layers.read_in("/v/sub/app", volumes);
    assert_eq!(at(&[bind(path, "/v"), tmpfs("/v/sub")]), "<missing>");
    assert_eq!(at(&[tmpfs("/v/sub"), bind(path, "/v")]), "volume's sub");
    assert_eq!(
        at(&[tmpfs("/v"), bind(&sub, "/v/sub")]),
        "volume's sub",
        "made in the tmpfs"
    );
    assert_eq!(at(&[bind(path, "/v"), tmpfs("/v")]), "<missing>");
    assert_eq!(at(&[tmpfs("/v"), bind(path, "/v")]), "volume's sub");
}

#[test]
fn a_mount_point_that_is_made_is_seen_and_its_neighbours_are_not() {
    let (layers, volume) = image_and_volume();
    let volumes = [
        bind(volume.path(), "/made/for/it"),
        bind(&volume.path().join("app"), "/made/file"),
    ];
    assert_eq!(layers.read_in("/made/for/it/app", &volumes), "volume");
    assert_eq!(layers.read_in("/made/for/../for/it/app", &volumes), "volume");
    assert_eq!(layers.read_in("/made/file", &volumes), "volume");
    assert_eq!(layers.read_in("/made/for/app", &volumes), "<missing>");
    assert_eq!(layers.read_in("/made", &volumes), "<directory>");
    assert_eq!(layers.read("/made"), "<missing>");
}

#[test]
fn a_file_is_mounted_over_a_file() {
    let (layers, volume) = image_and_volume();
    let volumes = [bind(&volume.path().join("app"), "/link/tool")];
    assert_eq!(layers.read_in("/opt/tool", &volumes), "volume");
    assert_eq!(layers.read_in("/opt/tool/below", &volumes), "<missing>");
}

#[test]
fn links_of_a_volume_lead_through_the_containers_root() {
    let (layers, volume) = image_and_volume();
    symlink("/opt/tool", volume.path().join("absolute")).expect("link");
    symlink("../../../../opt/tool", volume.path().join("above")).expect("link");
    symlink("/etc/hostname", volume.path().join("host")).expect("link");
    let volumes = [bind(volume.path(), "/v")];
    for path in ["/v/absolute", "/v/above"] {
        assert_eq!(layers.read_in(path, &volumes), "image", "{path}");
    }
    assert_eq!(layers.read_in("/v/host", &volumes), "<missing>");
}

#[test]
fn the_marks_of_overlays_mean_nothing_in_a_volume() {
    let (layers, volume) = image_and_volume();
    mark(volume.path(), "sub", "user.overlay.redirect", b"elsewhere");
    whiteout(volume.path(), "device");
    let volumes = [bind(volume.path(), "/v")];
    assert_eq!(layers.read_in("/v/sub/app", &volumes), "volume's sub");
    assert_eq!(layers.read_in("/v/device", &volumes), "<special>");
}

#[test]
fn volumes_are_opened_only_where_they_may_be() {
    let (layers, _) = image_and_volume();
    let closed = |path: &str, volumes: &[Volume]| layers.lookup_in(path, volumes, false).expect("lookup");
    let volumes = [bind(Path::new("/nowhere"), "/v"), bind(Path::new("/nowhere"), "/v")];
    assert!(matches!(closed("/opt/tool", &volumes), Entry::File(_)));
    assert!(matches!(closed("/v/app", &volumes), Entry::Volume));
    // A link of the first one may lead the second one's mount point anywhere.
    let volumes = [bind(Path::new("/nowhere"), "/v"), bind(Path::new("/nowhere"), "/v/sub")];
    assert!(matches!(closed("/opt/tool", &volumes), Entry::Volume));
    let error = layers
        .lookup_in("/v/app", &volumes, true)
        .map(drop)
        .expect_err("no source");
    assert!(
        error.to_string().contains("\"/nowhere\", which is mounted at \"/v\""),
        "{error}"
    );
}

#[test]
fn what_a_kernel_file_system_has_is_unknown() {
    let (layers, _) = image_and_volume();
    let proc = [Volume {
        destination: "/v".into(),
        content: Content::Unknown,
    }];
    assert_eq!(layers.read_in("/v/app", &proc), "<unknown>");
    assert_eq!(layers.read_in("/opt/tool", &proc), "image");
}

#[test]
fn files_are_listed_as_the_overlay_shows_them() {
    let layers = Layers::new();
    write(&layers.bottom, "app.wasm", "a");
    write(&layers.bottom, "srv/b.wasm", "b");
    write(&layers.bottom, "srv/hidden.wasm", "h");
    write(&layers.top, "srv/readme", "r");
    whiteout(&layers.top, "srv/hidden.wasm");
    symlink("/", layers.top.join("around")).expect("link");
    let view = layers.view();
    let lookup = Lookup::new(&view, &[], false).expect("layers");
    assert_eq!(lookup.files(".wasm", 9).expect("list"), ["/app.wasm", "/srv/b.wasm"]);
    assert_eq!(lookup.files(".wasm", 1).expect("list"), ["/app.wasm"]);
}
