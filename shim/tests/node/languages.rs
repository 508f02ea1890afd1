//! What people write in each language runs from the image that its recipe builds, as its manifest says (`examples/`).

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::containerd::Node;
use crate::cri::{self, crictl, exit_code};
use crate::image_builder::Image;
use crate::manifest::{Manifest, import_example};
use crate::pod::{PID_OF_CONTAINER, Pod};

/// How long a program may take for what it does within moments, on a machine that has more to do.
pub const MOMENTS: Duration = Duration::from_secs(30);

/// Gets a node ready for the examples.
pub fn prepare(node: &mut Node) {
    cri::prepare(node);
}

/// Runs the container `name` of an example to its end in a pod of its own, and returns its exit code and its log.
#[track_caller]
fn finish(node: &Node, manifest: &Manifest, name: &str, edit: impl FnOnce(&mut Value)) -> (i64, String) {
    let pod = Pod::start(node, PID_OF_CONTAINER);
    let id = manifest.run(&pod, name, edit);
    let code = exit_code(node, &id);
    let log = pod.log(name);
    pod.end();
    (code, log)
}

/// The environment of a container gets one more variable, or another value of one that it has.
pub fn set(config: &mut Value, key: &str, value: &str) {
    let variables = config["envs"].as_array_mut().unwrap();
    variables.retain(|variable| variable["key"] != key);
    variables.push(serde_json::json!({"key": key, "value": value}));
}

/// Puts a job into the worker's queue.
fn submit(queue: &Path, name: &str, seconds: f64) {
    fs::create_dir_all(queue.join("new")).unwrap();
    let job = serde_json::json!({"lines": [[2, 150], [1, 99]], "seconds": seconds});
    fs::write(queue.join(name), job.to_string()).unwrap();
    // Whole or not at all, as any producer does it.
    fs::rename(queue.join(name), queue.join("new").join(name)).unwrap();
}

/// Waits until the log of a container holds `words`.
#[track_caller]
pub fn says(pod: &Pod<'_>, name: &str, words: &str) {
    let since = Instant::now();
    while !pod.log(name).contains(words) {
        assert!(
            since.elapsed() < MOMENTS,
            "{name} does not say {words:?}: {}",
            pod.log(name)
        );
        thread::sleep(Duration::from_millis(20));
    }
}

on_every_containerd! {
    fn a_job_in_rust_says_hello(node) {
        prepare(node);
        import_example(node, &["hello"]);
        let (code, log) = finish(node, &Manifest::of(node, "hello"), "hello", |_| ());
        assert_eq!(code, 0, "{log}");
        assert!(log.contains("Hello, Kubernetes, from wasm32"), "{log}");
    }

    fn a_job_in_the_text_format_says_hello(node) {
        prepare(node);
        import_example(node, &["wat-hello"]);
        let (code, log) = finish(node, &Manifest::of(node, "wat-hello"), "hello", |_| ());
        assert_eq!(code, 0, "{log}");
        assert!(log.contains("Hello from WAT"), "{log}");
    }

    fn an_init_container_in_c_writes_the_configuration_of_a_native_server(node) {
        prepare(node);
        import_example(node, &["c-render"]);
        node.import_into(&Image::busybox(), "k8s.io").ok();
        let manifest = Manifest::of(node, "c-render");
        let pod = Pod::start(node, PID_OF_CONTAINER);
        let init = manifest.run(&pod, "render", |_| ());
        assert_eq!(exit_code(node, &init), 0, "{}", pod.log("render"));
        let server = manifest.run(&pod, "server", |config| config["image"]["image"] = Image::busybox().name.into());
        says(&pod, "server", "listen=8080");
        says(&pod, "server", "upstream-token=not-so-secret");
        crictl(node, &["stop", "--timeout", "0", &server]).ok();
        pod.end();
    }

    fn a_template_that_asks_for_what_is_not_set_leaves_no_configuration(node) {
        prepare(node);
        import_example(node, &["c-render"]);
        let manifest = Manifest::of(node, "c-render");
        let unset = |config: &mut Value| config["envs"] = serde_json::json!([{"key": "PORT", "value": "1"}]);
        let (code, log) = finish(node, &manifest, "render", unset);
        assert_eq!(code, 1, "{log}");
        assert!(log.contains("TOKEN, which is not set"), "{log}");
        assert_eq!(fs::read_dir(manifest.volume("conf")).unwrap().count(), 0);
    }

    fn a_job_in_cpp_counts_the_words_of_a_config_map(node) {
        prepare(node);
        import_example(node, &["cpp-wordcount"]);
        let (code, log) = finish(node, &Manifest::of(node, "cpp-wordcount"), "wordcount", |_| ());
        assert_eq!(code, 0, "{log}");
        let counts: Vec<&str> = log.lines().map(|line| line.split(" F ").last().unwrap()).collect();
        assert_eq!(counts, ["4 a", "4 rose", "3 is"], "{log}");
    }

    fn a_cron_job_in_go_adds_up_the_orders_on_a_volume(node) {
        prepare(node);
        import_example(node, &["go-report"]);
        let manifest = Manifest::of(node, "go-report");
        let data = manifest.volume("orders");
        fs::create_dir(data.join("orders")).unwrap();
        for (day, orders, total) in [("monday", "ada,150\ngrace,99\n", 150), ("tuesday", "ada,1\n", 151)] {
            fs::write(data.join("orders").join(format!("{day}.csv")), orders).unwrap();
            let (code, log) = finish(node, &manifest, "report", |_| ());
            assert_eq!(code, 0, "{log}");
            let report: Value = serde_json::from_slice(&fs::read(data.join("report.json")).unwrap()).unwrap();
            assert_eq!(report["totals"]["ada"], total, "{report}");
            assert_eq!(report["totals"]["grace"], 99, "{report}");
        }
        fs::write(data.join("orders/wrong.csv"), "ada,much\n").unwrap();
        let (code, log) = finish(node, &manifest, "report", |_| ());
        assert_eq!(code, 1, "{log}");
        assert!(log.contains("wrong.csv: row 1") && log.contains("\"much\""), "{log}");
    }
}

on_newest_containerd! {
    fn a_job_in_javascript_merges_letters_from_its_environment(node) {
        prepare(node);
        import_example(node, &["js-merge"]);
        let manifest = Manifest::of(node, "js-merge");
        let (code, log) = finish(node, &manifest, "merge", |_| ());
        assert_eq!(code, 0, "{log}");
        assert!(log.contains("Dear Ada, your order 17 is on its way."), "{log}");
        assert!(log.contains("Dear Grace, your order 18 is on its way."), "{log}");
        let (code, log) = finish(node, &manifest, "merge", |config| set(config, "RECORDS", "[{}]"));
        assert_eq!(code, 1, "{log}");
        assert!(log.contains("record 1 has no name"), "{log}");
    }

    fn a_queue_worker_in_python_finishes_the_job_in_hand_when_its_pod_ends(node) {
        prepare(node);
        import_example(node, &["python-worker"]);
        let manifest = Manifest::of(node, "python-worker");
        let queue = manifest.volume("queue");
        submit(&queue, "first.json", 0.0);
        let pod = Pod::start(node, PID_OF_CONTAINER);
        let id = manifest.run(&pod, "worker", |_| ());
        says(&pod, "worker", "done first.json");
        assert_eq!(fs::read_to_string(queue.join("done/first.json")).unwrap(), r#"{"total": 399}"#);

        submit(&queue, "second.json", 2.0);
        says(&pod, "worker", "taken second.json");
        submit(&queue, "third.json", 0.0);
        // What the kubelet does when a pod is deleted: the hook, then SIGTERM.
        let hook = manifest.pre_stop("worker");
        let hook: Vec<&str> = hook.iter().map(String::as_str).collect();
        crictl(node, &[&["exec", "--sync", &id], hook.as_slice()].concat()).ok();
        assert!(queue.join("done/second.json").exists(), "{}", pod.log("worker"));
        crictl(node, &["stop", "--timeout", "10", &id]).ok();
        assert_eq!(exit_code(node, &id), 143);
        pod.end();
        assert_eq!(fs::read_dir(queue.join("taken")).unwrap().count(), 0);
        assert!(queue.join("new/third.json").exists(), "a worker that stops takes nothing more");
    }

    fn a_queue_worker_in_python_that_was_killed_does_its_job_when_it_starts_again(node) {
        prepare(node);
        import_example(node, &["python-worker"]);
        let manifest = Manifest::of(node, "python-worker");
        let queue = manifest.volume("queue");
        submit(&queue, "long.json", 600.0);
        let pod = Pod::start(node, PID_OF_CONTAINER);
        let id = manifest.run(&pod, "worker", |_| ());
        says(&pod, "worker", "taken long.json");
        crictl(node, &["stop", "--timeout", "0", &id]).ok();
        assert_ne!(exit_code(node, &id), 0);
        crictl(node, &["rm", &id]).ok();

        let taken = queue.join("taken/pod-0.long.json");
        fs::write(&taken, r#"{"lines": [[1, 1]]}"#).unwrap();
        manifest.run(&pod, "worker", |_| ());
        says(&pod, "worker", "put back long.json");
        says(&pod, "worker", "done long.json");
        assert_eq!(fs::read_to_string(queue.join("done/long.json")).unwrap(), r#"{"total": 1}"#);
        assert!(!taken.exists());
        pod.end();
    }
}
