use super::*;
use crate::compile::World;
use crate::compile::key::Compatibility;
use crate::image::memory;
use kubewasi_options::WorldChoice;

const WORLDS: Worlds = Worlds {
    world: World::Http02,
    other: Some(World::Command02),
};

struct Test {
    folder: tempfile::TempDir,
    cache: Cache,
}

fn key(wasm: &str) -> Key {
    static COMPATIBILITY: std::sync::OnceLock<Compatibility> = std::sync::OnceLock::new();
    COMPATIBILITY
        .get_or_init(|| Compatibility::own(&kubewasi_options::Engine::default()).expect("engines"))
        .key(&Digest::of(wasm.as_bytes()), WorldChoice::Auto)
}

impl Test {
    fn with_size(size: u64) -> Test {
        let folder = tempfile::tempdir().expect("temp folder");
        let cache = Cache::open(&folder.path().join("cache"), size).expect("cache");
        Test { folder, cache }
    }

    fn new() -> Test {
        Test::with_size(1 << 20)
    }

    fn put(&self, name: &str, content: &str) {
        let mut file = memory::file("artifact").expect("memfd");
        file.write_all(content.as_bytes()).expect("write");
        let digest = Digest::of(name.as_bytes());
        self.cache.put(key(name), &file, WORLDS, digest, true).expect("put");
    }

    fn get(&self, name: &str) -> Option<String> {
        get(&self.cache, name)
    }

    /// The same folder as a server sees it that is started anew.
    fn reopened(&self) -> Cache {
        Cache::open(&self.cache.folder, self.cache.size).expect("cache")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.cache.artifact(key(name))
    }
}

fn get(cache: &Cache, name: &str) -> Option<String> {
    cache.get(key(name)).map(|(file, worlds)| {
        assert_eq!(worlds, WORLDS);
        io::read_to_string(file).expect("read")
    })
}

#[test]
fn what_was_stored_is_found_also_by_the_next_server() {
    let test = Test::new();
    assert_eq!(test.get("a"), None);
    test.put("a", "artifact");
    assert_eq!(test.get("a").as_deref(), Some("artifact"));
    assert_eq!(get(&test.reopened(), "a").as_deref(), Some("artifact"));
    assert_eq!(fs::metadata(&test.cache.folder).expect("folder").mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(test.path("a")).expect("file").mode() & 0o777, 0o444);
    assert_eq!(test.cache.files().expect("files").len(), 2, "nothing temporary is left");
}

#[test]
fn every_file_of_the_cache_is_known_as_one() {
    let test = Test::new();
    test.put("a", "artifact");
    fs::write(test.cache.temporary(), "").expect("write");
    let names = fs::read_dir(&test.cache.folder)
        .expect("list")
        .map(|entry| entry.expect("entry").file_name());
    let names: Vec<String> = names.map(|name| name.into_string().expect("utf-8")).collect();
    assert_eq!(names.len(), 3);
    assert!(
        names.iter().all(|name| kubewasi_options::is_cache_file(name)),
        "{names:?}"
    );
}

#[test]
fn a_found_artifact_cannot_be_written_through() {
    let test = Test::new();
    test.put("a", "artifact");
    let (mut file, _) = test.cache.get(key("a")).expect("found");
    assert!(file.write_all(b"x").is_err());
}

/// Writes into the very file, which is read-only, and leaves it so.
fn overwrite(path: &Path, text: &str) {
    fs::set_permissions(path, PermissionsExt::from_mode(0o644)).expect("chmod");
    fs::write(path, text).expect("write");
    fs::set_permissions(path, PermissionsExt::from_mode(MODE)).expect("chmod");
}

#[test]
fn altered_truncated_or_foreign_artifacts_are_removed_and_never_given() {
    type Damage = (&'static str, fn(&Path));
    let damages: [Damage; 6] = [
        ("altered in place", |path| overwrite(path, "ARTIFACT")),
        ("truncated", |path| overwrite(path, "art")),
        ("writable", |path| {
            fs::set_permissions(path, PermissionsExt::from_mode(0o644)).expect("chmod")
        }),
        ("a link", |path| {
            let moved = path.with_extension("moved");
            fs::rename(path, &moved).expect("rename");
            std::os::unix::fs::symlink(moved, path).expect("link");
        }),
        ("without its index", |path| {
            fs::remove_file(path.with_extension("json")).expect("remove")
        }),
        ("with a broken index", |path| {
            overwrite(&path.with_extension("json"), "{")
        }),
    ];
    for (what, damage) in damages {
        // Both for a server that has checked it before and for one that has not.
        let test = Test::new();
        test.put("a", "artifact");
        std::thread::sleep(Duration::from_millis(10));
        damage(&test.path("a"));
        assert_eq!(get(&test.reopened(), "a"), None, "{what}");
        assert!(
            fs::symlink_metadata(test.path("a")).is_err(),
            "{what}: it is still there"
        );
        assert_eq!(test.get("a"), None, "{what}");
        test.put("a", "artifact");
        std::thread::sleep(Duration::from_millis(10));
        if !what.contains("index") {
            damage(&test.path("a"));
            assert_eq!(test.get("a"), None, "{what}, after it was checked");
        }
        test.put("a", "artifact");
        assert_eq!(test.get("a").as_deref(), Some("artifact"), "{what}");
    }
}

#[test]
fn the_least_recently_used_go_first_when_the_cache_is_full() {
    let test = Test::with_size(20);
    test.put("a", "12345678");
    std::thread::sleep(Duration::from_millis(20));
    test.put("b", "12345678");
    std::thread::sleep(Duration::from_millis(20));
    // Another server uses the older one.
    assert!(get(&test.reopened(), "a").is_some());
    std::thread::sleep(Duration::from_millis(20));
    test.put("c", "12345678");
    assert_eq!(
        (
            test.get("a").is_some(),
            test.get("b").is_some(),
            test.get("c").is_some()
        ),
        (true, false, true)
    );
}

#[test]
fn an_artifact_larger_than_the_cache_is_given_and_not_kept() {
    let test = Test::with_size(4);
    let mut file = memory::file("artifact").expect("memfd");
    file.write_all(b"artifact").expect("write");
    let stored = test
        .cache
        .put(key("a"), &file, WORLDS, Digest::of(b"a"), true)
        .expect("put");
    assert_eq!(io::read_to_string(stored).expect("read"), "artifact");
    assert_eq!(test.get("a"), None);
}

#[test]
fn a_sweep_takes_artifacts_whose_image_is_gone() {
    let test = Test::new();
    test.put("a", "artifact");
    test.put("b", "artifact");
    let mut file = memory::file("artifact").expect("memfd");
    file.write_all(b"artifact").expect("write");
    test.cache
        .put(key("own"), &file, WORLDS, Digest::of(b"own"), false)
        .expect("put");
    assert_eq!(test.cache.sweep(&HashSet::from([Digest::of(b"a")])).expect("sweep"), 1);
    assert_eq!(
        (
            test.get("a").is_some(),
            test.get("b").is_some(),
            test.get("own").is_some()
        ),
        (true, false, true)
    );
}

#[test]
fn what_crashes_left_is_removed_when_it_is_old() {
    let test = Test::new();
    test.put("a", "artifact");
    let old = SystemTime::now() - ABANDONED - Duration::from_secs(1);
    for (name, time) in [(".tmp-1-0", old), ("alone.cwasm", old), (".tmp-2-0", SystemTime::now())] {
        let file = create(&test.cache.folder.join(name)).expect("file");
        file.set_modified(time).expect("time");
    }
    let reopened = test.reopened();
    let names: Vec<_> = reopened.files().expect("files");
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(test.cache.folder.join(".tmp-2-0").exists() && get(&reopened, "a").is_some());
}

#[test]
fn a_folder_that_others_can_write_is_refused() {
    let test = Test::new();
    let refused = |path: &Path| Cache::open(path, 1).map(|_| ()).expect_err("refused").to_string();
    let folder = test.folder.path().join("cache");
    fs::set_permissions(&folder, PermissionsExt::from_mode(0o770)).expect("chmod");
    assert!(refused(&folder).contains("mode 770"), "{}", refused(&folder));
    let file = test.folder.path().join("file");
    fs::write(&file, "").expect("file");
    assert!(refused(&file).contains("cache folder"), "{}", refused(&file));
}

#[test]
fn what_belongs_to_another_user_is_never_our_own() {
    assert!(is_own_folder(0, 0o700, 0) && is_own_folder(0, 0o755, 0));
    assert!(!is_own_folder(1000, 0o700, 0) && !is_own_folder(0, 0o720, 0) && !is_own_folder(0, 0o1777, 0));
    assert!(is_own_file(0, 0o100_444, 0));
    assert!(!is_own_file(1000, 0o100_444, 0) && !is_own_file(0, 0o100_644, 0) && !is_own_file(0, 0o104_444, 0));
}
