//! Images whose configs are the same bytes and whose programs differ: each container runs its own program, or is
//! refused by name. In the CRI both are one image, whose id is the config's digest.

use serde_json::{Value, json};

use crate::command::Finished;
use crate::containerd::{Node, Version};
use crate::cri::{Registry, crictl, exit_code, prepare};
use crate::exec::exec;
use crate::guests::Probe;
use crate::image_builder::{Image, WASM};
use crate::images::exits;
use crate::pod::{PID_OF_CONTAINER, Pod};

/// What the programs exit with: the image that is asked for, one of another owner, and a later one of its own name.
const OWN: i32 = 3;
const OTHER: i32 = 4;
const LATER: i32 = 5;

/// How an image of these tests carries its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// B: a wasm layer under an image config.
    Layer,
    /// D: the CNCF artifact, whose config lists its layer.
    Artifact,
    /// A wasm layer beside a root filesystem.
    Mixed,
}

impl Form {
    /// An image `name` with `program`; `mark` is in its config, so that other tests' images have another one.
    fn image(self, name: &str, program: &[u8], mark: &str) -> Image {
        match self {
            Form::Layer => Image::with_wasm_layers(name, &[("app.wasm", program)]),
            Form::Artifact => Image::artifact(name, program),
            // Of a platform that containerd 2.x unpacks when it pulls by default.
            Form::Mixed => Image::without_diff_ids(name)
                .platform("linux", "amd64")
                .entrypoint(&["app.wasm"])
                .files(&[("/probe.wasm", &Probe::P1.bytes())])
                .layer(WASM, Some("app.wasm"), program),
        }
        .config("Labels", json!({"mark": mark}))
    }

    /// The image that is asked for, and another one with its config.
    fn pair(self, mark: &str) -> [Image; 2] {
        let own = self.image("own", &exits(OWN), mark);
        let other = self.image("other", &exits(OTHER), mark).with_config_of(&own);
        assert_eq!(own.id(), other.id());
        [own, other]
    }
}

/// Whether this containerd refuses images with wasm layers by itself, as 1.6 does.
#[track_caller]
fn containerd_refuses_wasm_layers(node: &Node) -> bool {
    let refuses = node.version == Version::V1_6;
    if refuses {
        let image = Form::Layer.image("refused", &exits(OWN), "refused");
        node.import(&image);
        node.run(&image)
            .fail()
            .expect_refusal(&["mismatched image rootfs and manifest layers"]);
    }
    refuses
}

/// How a start went.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Exited(i32),
    Refused(String),
}

impl Outcome {
    fn refused(finished: &Finished) -> Outcome {
        Outcome::Refused(finished.stderr.clone())
    }

    /// Fails the test when another program ran than the one that was asked for.
    #[track_caller]
    fn expect_own_or_refused(&self, what: &str) {
        assert!(
            matches!(self, Outcome::Exited(OWN) | Outcome::Refused(_)),
            "{what}: another image's program ran: {self:?}"
        );
    }

    #[track_caller]
    fn expect_refusal(&self, what: &str, words: &[&str]) {
        let Outcome::Refused(message) = self else {
            panic!("{what} was to be refused: {self:?}");
        };
        for word in words {
            assert!(message.contains(word), "{what}: {word:?} is not in {message}");
        }
    }
}

/// A node with a registry and one pod in which containers are created.
struct Cluster<'a> {
    node: &'a Node,
    registry: Registry,
    pod: Pod<'a>,
}

impl<'a> Cluster<'a> {
    fn new(node: &'a Node) -> Cluster<'a> {
        Cluster {
            node,
            registry: Registry::start(node),
            pod: Pod::start(node, PID_OF_CONTAINER),
        }
    }

    /// Pushes an image as `name` and pulls it; returns the name with its tag.
    #[track_caller]
    fn pull(&self, image: &Image, name: &str) -> String {
        let pulled = self.registry.push(self.node, image, name);
        crictl(self.node, &["pull", &pulled]).ok();
        pulled
    }

    /// Removes an image's tag and digest from the node, and what only they lead to.
    fn remove(&self, tag: &str, digest: &str) {
        for name in [tag, &by_digest(tag, digest)] {
            self.node.ctr(&["--namespace", "k8s.io", "image", "rm", "--sync", name]);
        }
    }

    /// Creates a container, or says why it cannot be.
    fn create(&self, name: &str, image: &Value) -> Result<String, Outcome> {
        let created = self
            .pod
            .create(name, "", &["app.wasm"], |config| config["image"] = image.clone());
        match created.code {
            Some(0) => Ok(created.stdout.trim().to_owned()),
            _ => Err(Outcome::refused(&created)),
        }
    }

    /// Starts a container, waits for its end and removes it.
    fn finish(&self, created: Result<String, Outcome>) -> Outcome {
        let id = match created {
            Ok(id) => id,
            Err(outcome) => return outcome,
        };
        let started = crictl(self.node, &["start", &id]);
        let outcome = match started.code {
            Some(0) => Outcome::Exited(i32::try_from(exit_code(self.node, &id)).unwrap()),
            _ => Outcome::refused(&started),
        };
        crictl(self.node, &["rm", "--force", &id]);
        outcome
    }

    fn run(&self, name: &str, image: &Value) -> Outcome {
        self.finish(self.create(name, image))
    }
}

fn by_digest(tag: &str, digest: &str) -> String {
    let (repository, _) = tag.rsplit_once(':').unwrap();
    format!("{repository}@{digest}")
}

/// The ways to ask for an image: by tag, by digest, and as the kubelet does, by id with either name.
fn ways(tag: &str, image: &Image) -> [(&'static str, Value); 5] {
    let (id, digest) = (image.id(), by_digest(tag, &image.digest()));
    [
        ("tag", json!({"image": tag})),
        ("digest", json!({"image": digest})),
        ("id and tag", json!({"image": id, "user_specified_image": tag})),
        ("id and digest", json!({"image": id, "user_specified_image": digest})),
        ("id", json!({"image": id})),
    ]
}

/// Whether containerd keeps the name with the container, and not the id alone.
fn is_recorded(node: &Node, way: &str) -> bool {
    way != "id" && (node.version == Version::V2_4 || !way.starts_with("id"))
}

/// All orders of 0 to 3.
fn orders() -> impl Iterator<Item = [usize; 4]> {
    let all = (0..256).map(|number| [number % 4, number / 4 % 4, number / 16 % 4, number / 64]);
    all.filter(|order| (0..4).all(|step| order.contains(&step)))
}

on_every_containerd! {
    fn a_pods_container_runs_the_image_that_was_asked_for_and_not_another_one_with_its_config(node) {
        prepare(node);
        if containerd_refuses_wasm_layers(node) {
            return;
        }
        let cluster = Cluster::new(node);
        for form in [Form::Layer, Form::Artifact, Form::Mixed] {
            let mark = format!("{form:?}").to_lowercase();
            let [own, other] = form.pair(&mark);
            // Its name sorts before the other one, by which the CRI plugin calls both.
            let own_tag = cluster.pull(&own, &format!("m/own-{mark}"));
            for (way, image) in ways(&own_tag, &own) {
                assert_eq!(cluster.run("alone", &image), Outcome::Exited(OWN), "{form:?} by {way}, alone on the node");
            }
            let other_tag = cluster.pull(&other, &format!("a/other-{mark}"));
            for (way, image) in ways(&own_tag, &own) {
                let outcome = cluster.run("own", &image);
                if form == Form::Artifact || is_recorded(node, way) {
                    assert_eq!(outcome, Outcome::Exited(OWN), "{form:?} by {way}");
                } else {
                    outcome.expect_refusal(way, &["nothing that containerd records tells them apart", "layerDigests"]);
                }
            }
            // Whoever asks for the other one gets that.
            assert_eq!(cluster.run("other", &json!({"image": other_tag})), Outcome::Exited(OTHER), "{form:?}");
        }
        cluster.pod.end();
    }

    fn a_pods_container_runs_its_own_program_in_every_order_of_pull_and_removal_or_is_refused(node) {
        prepare(node);
        if containerd_refuses_wasm_layers(node) {
            return;
        }
        let cluster = Cluster::new(node);
        // What was not pulled cannot be removed.
        let place = |order: &[usize; 4], step| order.iter().position(|other| *other == step);
        for (number, order) in orders().filter(|order| place(order, 1) < place(order, 3)).enumerate() {
            let [own, other] = Form::Layer.pair(&format!("order{number}"));
            // By its name the other one comes first or last.
            let (own_name, other_name) = (format!("m/own{number}"), format!("{}/other{number}", ["a", "z"][number % 2]));
            let own_tag = cluster.pull(&own, &own_name);
            let (mut created, mut other_tag) = (Vec::new(), None);
            for step in order {
                match step {
                    0 => created = ways(&own_tag, &own).into_iter().enumerate()
                        .map(|(way, (words, image))| (words, cluster.create(&format!("c{way}"), &image))).collect(),
                    1 => other_tag = Some(cluster.pull(&other, &other_name)),
                    2 => cluster.remove(&own_tag, &own.digest()),
                    _ => if let Some(tag) = &other_tag {
                        cluster.remove(tag, &other.digest());
                    },
                }
            }
            for (way, container) in created {
                let what = format!("by {way}, 0 create, 1 pull another, 2 remove its own, 3 remove the other: {order:?}");
                cluster.finish(container).expect_own_or_refused(&what);
            }
            for (tag, image) in [(Some(own_tag), &own), (other_tag, &other)] {
                if let Some(tag) = tag {
                    cluster.remove(&tag, &image.digest());
                }
            }
            node.ctr(&["--namespace", "k8s.io", "image", "rm", "--sync", &own.id()]);
        }
        cluster.pod.end();
    }

    fn a_pods_container_whose_tag_has_moved_runs_its_own_program_or_is_refused(node) {
        prepare(node);
        if containerd_refuses_wasm_layers(node) {
            return;
        }
        let cluster = Cluster::new(node);
        for form in [Form::Layer, Form::Mixed] {
            let name = format!("m/moved-{form:?}").to_lowercase();
            let [own, _] = form.pair(&name);
            let later = form.image("own", &exits(LATER), &name).with_config_of(&own);
            let tag = cluster.pull(&own, &name);
            let created: Vec<_> = ways(&tag, &own).into_iter().enumerate()
                .map(|(number, (way, image))| (way, cluster.create(&format!("c{number}"), &image))).collect();
            assert_eq!(cluster.pull(&later, &name), tag);
            for (way, container) in created {
                let outcome = cluster.finish(container);
                match way {
                    "digest" => assert_eq!(outcome, Outcome::Exited(OWN), "{form:?}"),
                    _ => outcome.expect_own_or_refused(&format!("{form:?} by {way}")),
                }
            }
            // Whoever asks for the tag from now on means the later one.
            assert_eq!(cluster.run("later", &json!({"image": tag})), Outcome::Exited(LATER), "{form:?}");
        }
        cluster.pod.end();
    }

    fn an_exec_in_a_pod_runs_a_layer_of_the_image_that_was_asked_for(node) {
        prepare(node);
        if containerd_refuses_wasm_layers(node) {
            return;
        }
        let cluster = Cluster::new(node);
        let [own, other] = Form::Mixed.pair("exec");
        let own_tag = cluster.pull(&own, "m/exec");
        let created = cluster.pod.create("main", &own_tag, &["/probe.wasm", "idle"], |_| {}).ok();
        let id = created.stdout.trim();
        crictl(node, &["start", id]).ok();
        let run = || crictl(node, &["exec", "--sync", id, "app.wasm"]);
        run().expect_error(&[&format!("exited with {OWN}")]);
        let other_tag = cluster.pull(&other, "a/exec");
        run().expect_error(&[&format!("exited with {OWN}")]);
        cluster.remove(&own_tag, &own.digest());
        let after = run();
        assert!(!after.stderr.contains(&format!("exited with {OTHER}")), "{after}");
        cluster.remove(&other_tag, &other.digest());
        cluster.pod.end();
    }

    fn a_program_of_the_root_filesystem_runs_whatever_layers_another_image_of_its_config_has(node) {
        prepare(node);
        let cluster = Cluster::new(node);
        let wasm = Image::with_files("own", &[("/app.wasm", &exits(OWN))]);
        let native = Image::busybox();
        for (name, image, command) in [("wasm", wasm, "/app.wasm"), ("native", native, "/bin/false")] {
            let image = image.symlink("/bin/false", "busybox");
            let other = image.clone().layer(WASM, Some("app.wasm"), &exits(OTHER)).with_config_of(&image);
            let tag = cluster.pull(&image, &format!("m/root-{name}"));
            // containerd 1.6 refuses its wasm layer, which it has fetched by then.
            let pulled = cluster.registry.push(node, &other, &format!("a/root-{name}"));
            crictl(node, &["pull", &pulled]);
            for (number, (way, image)) in ways(&tag, &image).into_iter().enumerate() {
                let id = cluster
                    .pod
                    .create(&format!("{name}{number}"), "", &[command], |config| config["image"] = image.clone())
                    .ok();
                let expected = if name == "native" { 1 } else { OWN };
                assert_eq!(cluster.finish(Ok(id.stdout.trim().to_owned())), Outcome::Exited(expected), "{name} by {way}");
            }
        }
        cluster.pod.end();
    }

    fn a_container_of_ctr_runs_its_own_program_in_every_order_of_import_tag_and_removal_or_is_refused(node) {
        if containerd_refuses_wasm_layers(node) {
            return;
        }
        // `ctr container create` knows no other platform than the node's.
        let on_node = |image: Image| image.platform("linux", "amd64");
        for form in [Form::Layer, Form::Mixed] {
            // What another image does is the same for both.
            let chosen = orders().filter(|order| form == Form::Layer || order[0] == 1);
            for (number, order) in chosen.enumerate() {
                let mark = format!("{form:?}{number}").to_lowercase();
                let [own, other] = form.pair(&mark).map(on_node);
                let other = other.with_config_of(&own);
                let later = form.image("own", &exits(LATER), &mark).with_config_of(&own);
                node.import(&own);
                let create = || {
                    let options = node.options();
                    node.ctr(&[
                        "container", "create", "--runtime", "io.containerd.wasi.v1",
                        "--runtime-config-path", options.to_str().unwrap(), &own.name, &mark, "app.wasm",
                    ])
                };
                let mut created = None;
                for step in order {
                    match step {
                        0 => created = Some(create()),
                        1 => node.import(&other),
                        2 => node.import(&later),
                        _ => drop(node.ctr(&["image", "rm", "--sync", &own.name])),
                    }
                }
                let what = format!("{form:?}: 0 create, 1 import another, 2 import a later one, 3 remove the name: {order:?}");
                let created = created.unwrap();
                let (before, after) = order.split_at(order.iter().position(|step| *step == 0).unwrap());
                let changes_name = |step: &&usize| **step == 2 || **step == 3;
                let meant = match before.iter().rfind(changes_name) {
                    Some(3) => None,
                    Some(_) => Some(LATER),
                    None => Some(OWN),
                };
                assert_eq!(created.code == Some(0), meant.is_some(), "{what}: {created}");
                if let Some(program) = meant {
                    let started = node.ctr(&["task", "start", &mark]);
                    let outcome = match started.code {
                        Some(code @ (OWN | OTHER | LATER)) => Outcome::Exited(code),
                        _ => Outcome::refused(&started),
                    };
                    match after.iter().any(|step| changes_name(&step)) {
                        true => outcome.expect_refusal(&what, &[&own.name]),
                        false => assert_eq!(outcome, Outcome::Exited(program), "{what}"),
                    }
                    node.ctr(&["task", "delete", &mark]);
                    node.ctr(&["container", "delete", &mark]).ok();
                }
                for image in [&own, &other] {
                    node.ctr(&["image", "rm", "--sync", &image.name]);
                }
            }
        }
    }

    fn a_platforms_manifest_of_an_index_is_not_taken_for_that_of_another(node) {
        if containerd_refuses_wasm_layers(node) {
            return;
        }
        let index = |name: &str, images: &[Image]| {
            let archive = node.folder.join("index.tar");
            Image::write_index(&format!("kubewasi.test/{name}:latest"), images, &archive).unwrap();
            let mut args = vec!["image", "import", "--all-platforms", "--no-unpack"];
            if node.version >= Version::V2_4 {
                args.push("--local");
            }
            args.push(archive.to_str().unwrap());
            node.ctr(&args).ok();
        };
        let tar = |os: &str, architecture: &str| Image::with_files("index", &[("/probe.wasm", &Probe::P1.bytes())]).platform(os, architecture);
        let layer = |code, os: &str, architecture: &str| Image::with_wasm_layers("index", &[("app.wasm", &exits(code))]).platform(os, architecture);
        let run = |image: &Image, arg: &str| node.run(image).args(&[arg]);

        // A container of the root filesystem has no wasm layer.
        index("index", &[tar("linux", "amd64"), layer(OTHER, "wasi", "wasm")]);
        run(&tar("linux", "amd64"), "app.wasm").fail().expect_refusal(&["executable file not found in $PATH"]);
        run(&layer(OTHER, "wasi", "wasm"), "app.wasm").finish().expect_code(OTHER);
        index("index", &[layer(OTHER, "linux", "amd64"), tar("linux", "arm64")]);
        run(&tar("linux", "arm64"), "app.wasm").fail().expect_refusal(&["executable file not found in $PATH"]);
        // Nothing tells these apart.
        index("index", &[layer(OWN, "linux", "amd64"), layer(OTHER, "wasi", "wasm"), layer(LATER, "linux", "arm64")]);
        for image in [layer(OWN, "linux", "amd64"), layer(OTHER, "wasi", "wasm"), layer(LATER, "linux", "arm64")] {
            run(&image, "app.wasm").fail().expect_refusal(&["nothing that containerd records tells them apart"]);
        }
        // These mean the same.
        index("index", &[layer(OWN, "linux", "amd64"), layer(OWN, "wasi", "wasm"), layer(OWN, "linux", "arm64")]);
        run(&layer(OWN, "wasi", "wasm"), "app.wasm").finish().expect_code(OWN);
    }

    fn a_container_keeps_the_image_that_it_was_created_from_for_later_processes(node) {
        let image = Image::with_files("kept", &[("/probe.wasm", &Probe::P1.bytes())]);
        node.import(&image);
        let (id, _) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        // A later image of its name has a wasm layer, which this container never had.
        let later = image.clone().layer(WASM, Some("app.wasm"), &exits(LATER)).with_config_of(&image);
        node.import(&later);
        let refused = exec(node, &id, &["app.wasm"]);
        assert!(![Some(0), Some(LATER)].contains(&refused.code), "{refused}");
        refused.expect_error(&["has changed since the container was created"]);
        node.remove(&id);
    }
}
