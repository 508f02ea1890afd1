//! Images pulled from a registry by CRI, on nodes with `containerd config default`: which forms run on which containerd.
//!
//! docs/images.md has this table in words. Where a cell differs from what is expected, containerd changed.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use kubewasi_testbed::index::EVERY_NODE;
use kubewasi_testbed::script::hack;

use crate::command::{eventually, run};
use crate::containerd::{Node, Version};
use crate::cri::{Registry, crictl, exit_code};
use crate::guests::wat;
use crate::image_builder::{Image, WASM};
use crate::languages::{MOMENTS, set};
use crate::manifest::Manifest;
use crate::mixed::port_to_listen_at;
use crate::pod::{PID_OF_CONTAINER, Pod};
use crate::stock::{self, LOCAL_PULL};

/// What becomes of an image on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Runs,
    /// It is pulled, but not unpacked, and no container can be created of it.
    NoSnapshot,
    /// No manifest of its index is for the node.
    NoMatch,
    /// It cannot be unpacked: its layers are not those of its config.
    Mismatched,
    /// It cannot be unpacked: a layer is not a tar archive.
    NoProcessor,
}
use Outcome::{Mismatched, NoMatch, NoProcessor, NoSnapshot, Runs};

impl Outcome {
    /// What the refused request says; the request for the pull but for [`NoSnapshot`].
    fn words(self) -> &'static str {
        match self {
            Runs => "",
            NoSnapshot => "parent snapshot",
            NoMatch => "no match for platform in manifest",
            Mismatched => "mismatched image rootfs and manifest layers",
            NoProcessor => "no processor for media-type",
        }
    }
}

/// A node's containerd and how it pulls: a column of the table.
#[derive(Clone, Copy)]
enum Column {
    V1_6,
    V1_7,
    Stock,
    LocalPull,
}

struct Row {
    image: Image,
    outcomes: [Outcome; 4],
}

/// A core module that exits with `code`.
fn exits(code: usize) -> Vec<u8> {
    wat(&format!(
        r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 1)
            (func (export "_start") (call $exit (i32.const {code}))))"#
    ))
}

/// The exit code of the program of row `number`: every row has a layer of its own, since one row's snapshot serves all images
/// with that layer.
fn code(number: usize) -> usize {
    number + 10
}

const LINUX: (&str, &str) = ("linux", "amd64");
const WASI: (&str, &str) = ("wasi", "wasm");

/// Every form, and what becomes of it on containerd 1.6, on 1.7, on a stock 2.4, and on 2.4 with CRI's local pull.
fn rows() -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut row = |outcomes, form: &dyn Fn(&str, &[u8]) -> Image| {
        let number = rows.len();
        let image = form(&format!("row-{number}"), &exits(code(number)));
        rows.push(Row { image, outcomes });
    };
    let a = |name: &str, wasm: &[u8]| Image::with_files(name, &[("/app.wasm", wasm)]);
    let b = |name: &str, wasm: &[u8]| {
        Image::without_diff_ids(name)
            .layer(WASM, Some("app.wasm"), wasm)
            .entrypoint(&["app.wasm"])
    };
    // What docs/images.md tells people to publish.
    row([Runs; 4], &|name, wasm| a(name, wasm).indexed(&EVERY_NODE));
    row([Runs; 4], &|name, wasm| a(name, wasm).indexed(&EVERY_NODE).attested());
    // Form A, a manifest.
    for (os, architecture) in [WASI, ("wasip1", "wasm"), ("wasi", "wasm32")] {
        row([Runs, Runs, NoSnapshot, Runs], &|name, wasm| {
            a(name, wasm).platform(os, architecture)
        });
    }
    for (os, architecture) in [("linux", "wasm"), LINUX] {
        row([Runs; 4], &|name, wasm| a(name, wasm).platform(os, architecture));
    }
    // Form A, an index.
    row([NoMatch; 4], &|name, wasm| a(name, wasm).indexed(&[WASI]));
    row([NoMatch; 4], &|name, wasm| a(name, wasm).indexed(&[WASI]).attested());
    row([Runs; 4], &|name, wasm| a(name, wasm).indexed(&[LINUX]).attested());
    row([Runs; 4], &|name, wasm| {
        a(name, wasm).indexed(&[LINUX, ("linux", "arm64")])
    });
    row([Runs; 4], &|name, wasm| a(name, wasm).indexed_under(&[LINUX, WASI]));
    row([Runs, Runs, NoSnapshot, Runs], &|name, wasm| {
        a(name, wasm).platform("wasi", "wasm").indexed_under(&[LINUX])
    });
    // Forms B and D.
    row([Mismatched, Runs, Runs, Runs], &b);
    row([Mismatched, Runs, Runs, Runs], &|name, wasm| {
        Image::artifact(name, wasm)
    });
    row([NoMatch; 4], &|name, wasm| b(name, wasm).indexed(&[WASI]));
    row([NoMatch; 4], &|name, wasm| Image::artifact(name, wasm).indexed(&[WASI]));
    row([Mismatched, Runs, Runs, Runs], &|name, wasm| {
        b(name, wasm).indexed(&[LINUX]).attested()
    });
    // Forms C and E.
    row([NoProcessor, Mismatched, NoSnapshot, Mismatched], &|name, wasm| {
        Image::with_listed_wasm_layers(name, &[("app.wasm", wasm)])
    });
    row([Mismatched, Runs, Runs, Runs], &|name, wasm| {
        let older = "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm";
        Image::without_diff_ids(name)
            .layer(older, Some("app.wasm"), wasm)
            .entrypoint(&["app.wasm"])
    });
    rows
}

/// Pulls every row's image and starts it in a pod, and compares with the column.
#[track_caller]
fn expect_column(node: &Node, column: Column) {
    let registry = Registry::start(node);
    let pod = Pod::start(node, PID_OF_CONTAINER);
    let mut wrong = Vec::new();
    for (number, row) in rows().iter().enumerate() {
        let expected = row.outcomes[column as usize];
        let found = outcome(node, &registry, &pod, &row.image, number);
        if found != Ok(expected) {
            wrong.push(format!("row {number}: {found:?} instead of {expected:?}"));
        }
    }
    pod.end();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What becomes of an image; what was said when it is none of the outcomes.
fn outcome(node: &Node, registry: &Registry, pod: &Pod<'_>, image: &Image, number: usize) -> Result<Outcome, String> {
    let name = format!("row-{number}");
    let pulled = registry.push(node, image, &name);
    let pull = crictl(node, &["pull", &pulled]);
    let known = |outcomes: &[Outcome], said: &str| {
        let outcome = outcomes.iter().find(|outcome| said.contains(outcome.words()));
        outcome.copied().ok_or_else(|| said.to_owned())
    };
    if pull.code != Some(0) {
        return known(&[NoMatch, Mismatched, NoProcessor], &pull.stderr);
    }
    // Form D has no entry point, and CRI creates no container without one.
    let made = pod.create(&name, &pulled, &["/app.wasm"], |_| ());
    if made.code != Some(0) {
        return known(&[NoSnapshot], &made.stderr);
    }
    let id = made.stdout.trim();
    let started = crictl(node, &["start", id]);
    if started.code != Some(0) {
        return Err(started.stderr);
    }
    let exited = exit_code(node, id);
    if exited != code(number) as i64 {
        return Err(format!("exited with {exited}"));
    }
    Ok(Runs)
}

#[test]
fn each_form_of_image_has_its_outcome_on_a_stock_1_6() {
    Node::with(Version::V1_6, |node| {
        stock::configure(node, &[]);
        expect_column(node, Column::V1_6);
    });
}

#[test]
fn each_form_of_image_has_its_outcome_on_a_stock_1_7() {
    Node::with(Version::V1_7, |node| {
        stock::configure(node, &[]);
        expect_column(node, Column::V1_7);
    });
}

#[test]
fn each_form_of_image_has_its_outcome_on_a_stock_2_4() {
    Node::with(Version::V2_4, |node| {
        stock::configure(node, &[]);
        expect_column(node, Column::Stock);
    });
}

#[test]
fn each_form_of_image_has_its_outcome_on_2_4_with_local_pull() {
    Node::with(Version::V2_4, |node| {
        stock::configure(node, &[LOCAL_PULL]);
        expect_column(node, Column::LocalPull);
    });
}

/// What an example's container does when all is well.
#[derive(Clone, Copy)]
enum Life {
    /// It exits with 0.
    Ends,
    /// It listens on its port.
    Listens,
    /// It waits for work.
    Idles,
}

/// Each example that is built for wasm, the container of its manifest, and what that does.
const EXAMPLES: [(&str, &str, Life); 15] = [
    ("c-http", "service", Life::Listens),
    ("c-render", "render", Life::Ends),
    ("cpp-wordcount", "wordcount", Life::Ends),
    ("go-http", "service", Life::Listens),
    ("go-report", "report", Life::Ends),
    ("hello", "hello", Life::Ends),
    ("js-http", "service", Life::Listens),
    ("js-merge", "merge", Life::Ends),
    ("python-api", "api", Life::Listens),
    ("python-http-p3", "service", Life::Listens),
    ("python-worker", "worker", Life::Idles),
    ("rust-http", "service", Life::Listens),
    ("rust-http-p3", "service", Life::Listens),
    ("rust-visits", "visits", Life::Listens),
    ("wat-hello", "hello", Life::Ends),
];

/// Pulls the image that the recipe of an example builds, and runs it as its manifest says.
#[track_caller]
fn expect_example(node: &Node, registry: &Registry, example: &str, container: &str, life: Life) {
    let pulled = registry.push_archive(&hack("example", &[example]).join("image.tar"), example);
    crictl(node, &["pull", &pulled]).ok();
    let pod = Pod::start(node, PID_OF_CONTAINER);
    let manifest = Manifest::of(node, example);
    if example == "go-report" {
        let orders = manifest.volume("orders").join("orders");
        fs::create_dir_all(&orders).unwrap();
        fs::write(orders.join("monday.csv"), "ada,150\n").unwrap();
    }
    let port = port_to_listen_at();
    let id = manifest.run(&pod, container, |config| {
        config["image"]["image"] = pulled.into();
        if let Life::Listens = life {
            set(config, "PORT", &port.to_string());
        }
    });
    match life {
        Life::Ends => assert_eq!(exit_code(node, &id), 0, "{example}: {}", pod.log(container)),
        Life::Listens => drop(eventually(&format!("{example} listens"), MOMENTS, || {
            TcpStream::connect(("127.0.0.1", port)).ok()
        })),
        Life::Idles => eventually(&format!("{example} makes its directories"), MOMENTS, || {
            manifest.volume("queue").join("new").exists().then_some(())
        }),
    }
    crictl(node, &["rm", "--force", &id]).ok();
    pod.end();
}

#[track_caller]
fn expect_every_example(version: Version) {
    let crate_folder = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests");
    let built = fs::read_dir(Path::new(&crate_folder).join("../examples")).unwrap();
    let built = built.filter(|example| example.as_ref().unwrap().path().join("Containerfile").exists());
    assert_eq!(built.count(), EXAMPLES.len(), "an example is missing from the list");
    Node::with(version, |node| {
        node.configure("idle_timeout = 0\ncompile_timeout = 120");
        stock::configure(node, &[]);
        let registry = Registry::start(node);
        for (example, container, life) in EXAMPLES {
            expect_example(node, &registry, example, container, life);
        }
    });
}

#[test]
#[ignore = "takes minutes: make test-pulls"]
fn every_example_is_pulled_from_a_registry_and_runs_on_a_stock_2_4() {
    expect_every_example(Version::V2_4);
}

#[test]
#[ignore = "builds a containerd of its own: make test-pulls"]
fn every_example_is_pulled_from_a_registry_and_runs_on_a_stock_2_3() {
    expect_every_example(Version::V2_3);
}

#[test]
#[ignore = "builds a containerd of its own: make test-pulls"]
fn each_form_of_image_has_its_outcome_on_a_stock_2_3() {
    Node::with(Version::V2_3, |node| {
        stock::configure(node, &[]);
        expect_column(node, Column::Stock);
    });
}

on_every_containerd! {
    fn the_image_that_the_recipe_of_an_example_builds_is_pulled_and_runs_on_a_stock_node(node) {
        stock::configure(node, &[]);
        expect_example(node, &Registry::start(node), "wat-hello", "hello", Life::Ends);
    }

    fn an_image_that_kubewasi_image_packs_is_pulled_and_runs_on_a_stock_node(node) {
        stock::configure(node, &[]);
        let registry = Registry::start(node);
        let (program, archive) = (node.folder.join("app.wasm"), node.folder.join("app.tar"));
        fs::write(&program, exits(7)).unwrap();
        let assets = node.folder.join("assets");
        fs::create_dir(&assets).unwrap();
        fs::write(assets.join("greeting"), "hello").unwrap();
        run(Command::new(hack("build", &["debug", "kubewasi-image"]).join("kubewasi-image"))
            .args(["--name", "localhost/packed", "--output"])
            .arg(&archive)
            .arg(&program)
            .arg(format!("{}:/srv", assets.display()))).ok();
        let pulled = registry.push_archive(&archive, "packed");
        crictl(node, &["pull", &pulled]).ok();
        let pod = Pod::start(node, PID_OF_CONTAINER);
        let id = pod.run("packed", &pulled, &[], |_| ());
        assert_eq!(exit_code(node, &id), 7);
        pod.end();
        // The archive is imported as well as pulled.
        node.ctr(&["image", "import", "--all-platforms", "--no-unpack", archive.to_str().unwrap()]).ok();
        assert!(node.ctr(&["image", "ls", "--quiet"]).ok().stdout.contains("localhost/packed:latest"));
    }
}

on_newest_containerd! {
    /// docs/images.md gives both commands.
    fn an_image_that_was_pulled_and_not_unpacked_runs_after_the_command_that_repairs_it(node) {
        stock::configure(node, &[]);
        let registry = Registry::start(node);
        let broken = |name: &str, code: usize| {
            let image = Image::with_files(name, &[("/app.wasm", &exits(code))]).platform("wasi", "wasm");
            let pulled = registry.push(node, &image, name);
            crictl(node, &["pull", &pulled]).ok();
            pulled
        };
        let (here, later) = (broken("here", 8), broken("later", 9));
        let refused = |pulled: &str| {
            let pod = Pod::start(node, PID_OF_CONTAINER);
            pod.create("refused", pulled, &[], |_| ()).expect_refusal(&[NoSnapshot.words(), "does not exist"]);
            pod.end();
        };
        let exits_with = |pulled: &str, code: i64| {
            let pod = Pod::start(node, PID_OF_CONTAINER);
            let id = pod.run("repaired", pulled, &[], |_| ());
            assert_eq!(exit_code(node, &id), code);
            pod.end();
        };
        refused(&here);
        // On a node that stays as it is.
        node.ctr(&["--namespace", "k8s.io", "image", "pull", "--local", "--plain-http", "--platform", "wasi/wasm", &here]).ok();
        exits_with(&here, 8);
        refused(&later);
    }

    fn an_image_that_was_pulled_before_local_pull_was_turned_on_runs_once_it_is_pulled_again(node) {
        stock::configure(node, &[]);
        let registry = Registry::start(node);
        let image = Image::with_files("before", &[("/app.wasm", &exits(9))]).platform("wasi", "wasm");
        let pulled = registry.push(node, &image, "before");
        crictl(node, &["pull", &pulled]).ok();
        stock::configure(node, &[LOCAL_PULL]);
        let pod = Pod::start(node, PID_OF_CONTAINER);
        pod.create("refused", &pulled, &[], |_| ()).expect_refusal(&[NoSnapshot.words(), "does not exist"]);
        crictl(node, &["pull", &pulled]).ok();
        let id = pod.run("repaired", &pulled, &[], |_| ());
        assert_eq!(exit_code(node, &id), 9);
        pod.end();
    }
}
