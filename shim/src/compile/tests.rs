//! The cache around a compile worker. The worker is a script that counts its runs, so what is tested is who compiles
//! when; that workers compile is tested where they are.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;
use crate::image::memory;

struct Node {
    folder: tempfile::TempDir,
    images: Arc<Images>,
    artifacts: Arc<Artifacts>,
}

const COMPILED: &str = r#"printf artifact; printf '{"compiled":{"worlds":{"world":"Module"},"length":8}}' >&2"#;
/// A worker that waits until it is released: the directory of its program has the file then.
const HELD: &str = r#"while [ ! -e "${0%/*}/released" ]; do sleep 0.02; done"#;
const REJECTED: &str = r#"printf '{"rejected":{"message":"type mismatch"}}' >&2; exit 1"#;

impl Node {
    fn new(script: &str) -> Node {
        let folder = tempfile::tempdir().expect("temp folder");
        let program = folder.path().join("worker");
        let runs = folder.path().join("runs");
        let script = format!("#!/bin/sh\necho run >> {}\nsleep 0.1\n{script}\n", runs.display());
        fs::write(&program, script).expect("script");
        fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("chmod");
        let artifacts = Node::open(folder.path());
        Node {
            images: Arc::new(Images::new(folder.path().join("no-containerd.sock"))),
            folder,
            artifacts,
        }
    }

    fn open(folder: &Path) -> Arc<Artifacts> {
        let settings = Settings {
            folder: folder.join("cache"),
            size: 1 << 20,
            timeout: Duration::from_secs(20),
            memory: 1 << 30,
            engine: kubewasi_options::Engine::default(),
        };
        Arc::new(Artifacts::open_with(settings, folder.join("worker")).expect("artifacts"))
    }

    async fn get(&self, wasm: &Wasm) -> Result<(String, bool), CompileError> {
        self.get_by(wasm, None).await
    }

    async fn get_by(&self, wasm: &Wasm, deadline: Option<Instant>) -> Result<(String, bool), CompileError> {
        let choice = WorldChoice::Auto;
        let artifact = self.artifacts.get(&self.images, wasm, choice, deadline).await?;
        Ok((content(&artifact), artifact.cached))
    }

    /// Lets the workers of a script with [`HELD`] go on.
    fn release(&self) {
        fs::write(self.folder.path().join("released"), "").expect("write");
    }

    /// Waits until so many workers have begun.
    async fn until_runs(&self, runs: usize) {
        while self.runs() < runs {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn runs(&self) -> usize {
        fs::read_to_string(self.folder.path().join("runs")).map_or(0, |runs| runs.lines().count())
    }
}

fn content(artifact: &Artifact) -> String {
    let mut bytes = [0; 8];
    let file = File::from(artifact.file.try_clone().expect("clone"));
    file.read_exact_at(&mut bytes, 0).expect("read");
    String::from_utf8_lossy(&bytes).into_owned()
}

fn wasm(bytes: &[u8]) -> Wasm {
    let mut file = memory::file("wasm").expect("memfd");
    file.write_all(bytes).expect("write");
    Wasm {
        digest: Digest::of(bytes),
        source: Source::File(Arc::new(file.into())),
        name: "/app.wasm".to_owned(),
        export: None,
        image: None,
    }
}

fn kept() -> (String, bool) {
    ("artifact".to_owned(), true)
}

fn fresh() -> (String, bool) {
    ("artifact".to_owned(), false)
}

#[tokio::test]
async fn the_second_start_compiles_nothing_also_after_a_restart() {
    let mut node = Node::new(COMPILED);
    let wasm = wasm(b"\0asm one");
    assert_eq!(node.get(&wasm).await.expect("compiled"), fresh());
    assert_eq!(node.get(&wasm).await.expect("found"), kept());
    assert_eq!(
        node.artifacts.counters(),
        Counters {
            hits: 1,
            compiled: 1,
            failed: 0,
            unkept: 0
        }
    );
    node.artifacts = Node::open(node.folder.path());
    assert_eq!(node.get(&wasm).await.expect("found"), kept());
    assert_eq!((node.runs(), node.artifacts.counters().compiled), (1, 0));
}

#[tokio::test]
async fn callers_of_one_key_compile_once_and_share_even_the_error() {
    for (script, failed) in [(COMPILED, false), (REJECTED, true)] {
        let node = Arc::new(Node::new(script));
        let one = wasm(b"\0asm one");
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let (node, one) = (node.clone(), one.clone());
            callers.spawn(async move { node.get(&one).await });
        }
        let results = callers.join_all().await;
        assert_eq!(node.runs(), 1);
        let fresh = results.iter().filter(|result| matches!(result, Ok((_, false)))).count();
        let errors = results.iter().filter(|result| result.is_err()).count();
        assert_eq!((fresh, errors), if failed { (0, 20) } else { (1, 0) });
    }
}

#[tokio::test]
async fn binaries_have_artifacts_of_their_own() {
    let node = Node::new(COMPILED);
    let (one, two) = (wasm(b"\0asm one"), wasm(b"\0asm two"));
    node.get(&one).await.expect("compiled");
    assert_eq!(node.get(&two).await.expect("compiled"), fresh());
    assert_eq!(node.runs(), 2);
}

#[tokio::test]
async fn a_module_that_does_not_compile_is_told_by_name_and_tried_again() {
    let node = Node::new(REJECTED);
    let one = wasm(b"\0asm one");
    for _ in 0..2 {
        assert_eq!(
            node.get(&one).await.expect_err("rejected").to_string(),
            "/app.wasm: type mismatch"
        );
    }
    assert_eq!((node.runs(), node.artifacts.counters().failed), (2, 2));
}

#[tokio::test]
async fn what_is_no_wasm_reaches_no_compiler() {
    let node = Node::new(COMPILED);
    let empty = node.get(&wasm(b"")).await.expect_err("empty").to_string();
    assert_eq!(empty, "/app.wasm: the file is empty, not a wasm module or component");
    for bytes in [&b"as"[..], b"hello, world"] {
        let message = node.get(&wasm(bytes)).await.expect_err("no wasm").to_string();
        assert_eq!(
            message,
            "/app.wasm: not a wasm module or component: it does not begin with \\0asm"
        );
    }
    assert_eq!(node.runs(), 0);
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_the_compilation_to_the_next() {
    let node = Node::new(&format!("{HELD}; {COMPILED}"));
    let one = wasm(b"\0asm one");
    for _ in 0..3 {
        let hurried = tokio::time::timeout(Duration::from_millis(50), node.get(&one)).await;
        assert!(hurried.is_err(), "the worker is held");
    }
    node.until_runs(1).await;
    let waiting = node.get(&one);
    node.release();
    assert_eq!(waiting.await.expect("compiled"), kept());
    assert_eq!(node.runs(), 1);
}

#[tokio::test]
async fn a_caller_whose_deadline_passes_learns_the_progress_and_the_next_one_gets_the_artifact() {
    let node = Node::new(&format!("{HELD}; {COMPILED}"));
    let (one, two, three) = (wasm(b"\0asm one"), wasm(b"\0asm two"), wasm(b"\0asm three"));
    let now = || Some(Instant::now());
    // As many as may be compiled at the same time.
    for wasm in [&one, &two] {
        node.get_by(wasm, now()).await.expect_err("begun");
    }
    node.until_runs(2).await;
    let unfinished = node.get_by(&one, now()).await.expect_err("held").to_string();
    assert_eq!(
        unfinished,
        "/app.wasm is still being compiled: 0 s of processor time so far, of at most 20 s (option compile_timeout); compiling continues, try again"
    );
    let queued = node.get_by(&three, now()).await.expect_err("queued").to_string();
    assert!(queued.starts_with("/app.wasm waits to be compiled"), "{queued}");
    node.release();
    for wasm in [&one, &two, &three] {
        assert_eq!(node.get(wasm).await.expect("compiled"), kept());
    }
    node.artifacts.idle().await;
    assert_eq!((node.runs(), node.artifacts.counters().compiled), (3, 3));
}

#[tokio::test]
async fn a_failure_after_the_deadline_of_its_caller_is_reported_to_the_next_before_another_try() {
    let node = Node::new(&format!("{HELD}; {REJECTED}"));
    let one = wasm(b"\0asm one");
    let deadline = Some(Instant::now());
    node.get_by(&one, deadline).await.expect_err("begun");
    node.release();
    node.artifacts.idle().await;
    for runs in [1, 2] {
        let error = node.get(&one).await.expect_err("rejected").to_string();
        assert_eq!((error.as_str(), node.runs()), ("/app.wasm: type mismatch", runs));
    }
}

#[tokio::test]
async fn a_compilation_without_a_caller_keeps_the_server_from_being_idle() {
    let node = Node::new(&format!("{HELD}; {COMPILED}"));
    node.artifacts.idle().await;
    let deadline = Some(Instant::now());
    node.get_by(&wasm(b"\0asm one"), deadline).await.expect_err("begun");
    let idle = tokio::time::timeout(Duration::from_millis(50), node.artifacts.idle()).await;
    assert!(idle.is_err(), "the worker is held");
    node.release();
    node.artifacts.idle().await;
    assert_eq!(node.artifacts.counters().compiled, 1);
}

#[tokio::test]
async fn a_worker_that_is_killed_is_named_and_the_next_try_compiles() {
    let node = Node::new(&format!("[ -e \"${{0%/*}}/released\" ] || kill -KILL $$; {COMPILED}"));
    let one = wasm(b"\0asm one");
    let error = node.get(&one).await.expect_err("killed").to_string();
    assert!(
        error.starts_with("/app.wasm: the compile worker was killed by signal 9"),
        "{error}"
    );
    node.release();
    assert_eq!(node.get(&one).await.expect("compiled"), fresh());
}

#[tokio::test]
async fn a_cache_that_cannot_be_written_costs_the_cache_and_not_the_start() {
    let node = Node::new(COMPILED);
    // Gone after it was opened: each write fails, whoever the user is.
    fs::remove_dir_all(node.folder.path().join("cache")).expect("remove");
    let one = wasm(b"\0asm one");
    assert_eq!(node.get(&one).await.expect("compiled"), fresh());
    assert_eq!(node.get(&one).await.expect("compiled again"), fresh());
    assert_eq!((node.runs(), node.artifacts.counters().unkept), (2, 2));
}

#[tokio::test]
async fn a_cache_folder_that_was_mended_is_used_again() {
    let node = Node::new(COMPILED);
    let cache = node.folder.path().join("cache");
    fs::set_permissions(&cache, PermissionsExt::from_mode(0o777)).expect("chmod");
    *node.artifacts.cache.lock().expect("lock") = None;
    let one = wasm(b"\0asm one");
    assert_eq!(node.get(&one).await.expect("compiled"), fresh());
    fs::set_permissions(&cache, PermissionsExt::from_mode(0o700)).expect("chmod");
    assert_eq!(node.get(&one).await.expect("compiled"), fresh());
    assert_eq!(node.get(&one).await.expect("found"), kept());
}
