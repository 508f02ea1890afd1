//! The task API spoken without containerd between: bundles that containerd would never write, clients that vanish.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use containerd_shim_protos::api::{
    ConnectRequest, CreateTaskRequest, DeleteRequest, KillRequest, PidsRequest, ShutdownRequest, StartRequest,
    StateRequest, WaitRequest,
};
use containerd_shim_protos::{Client, TaskClient, ttrpc};
use ttrpc::context::Context;

use crate::command::{Running, patience, run};
use crate::container::{root_folder, spec};
use crate::containerd::Node;
use crate::guests::Probe;
use crate::server;

/// A bundle folder with `config` as its config.json.
fn bundle(node: &Node, id: &str, config: Option<&[u8]>) -> PathBuf {
    let bundle = node.folder.join("bundles").join(id);
    fs::create_dir_all(bundle.join("rootfs")).unwrap();
    if let Some(config) = config {
        fs::write(bundle.join("config.json"), config).unwrap();
    }
    bundle
}

/// `start` as containerd 1.6 runs it.
pub fn start_command(node: &Node, namespace: &str, id: &str, bundle: &Path) -> Command {
    let mut command = Command::new(node.shim());
    command
        .args(["-namespace", namespace, "-address"])
        .arg(node.socket())
        .args(["-publish-binary", "/usr/bin/containerd", "-id", id, "start"])
        .env("TTRPC_ADDRESS", format!("{}.ttrpc", node.socket().display()))
        .current_dir(bundle);
    command
}

/// A client of the server that `start` answers with.
#[track_caller]
pub fn connect(node: &Node, namespace: &str, id: &str, bundle: &Path) -> TaskClient {
    connect_by(&mut start_command(node, namespace, id, bundle))
}

/// A client of the server that this `start` answers with.
#[track_caller]
pub fn connect_by(start: &mut Command) -> TaskClient {
    let address = run(start).ok().stdout;
    TaskClient::new(Client::connect(address.trim()).unwrap())
}

pub fn context(node: &Node) -> Context {
    let mut context = ttrpc::context::with_timeout((Duration::from_secs(20) * patience()).as_nanos() as i64);
    context.add("containerd-namespace-ttrpc".into(), node.namespace.clone());
    context
}

pub fn create(id: &str, bundle: &Path) -> CreateTaskRequest {
    CreateTaskRequest {
        id: id.into(),
        bundle: bundle.display().to_string(),
        ..Default::default()
    }
}

/// The status code and message of a call that must fail.
#[track_caller]
pub fn refusal<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (ttrpc::Code, String) {
    match result.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => (status.code.enum_value().unwrap(), status.message),
        other => panic!("not a status: {other}"),
    }
}

/// Ends the node's server as an administrator would.
pub fn end_server(node: &Node) {
    let pid = rustix::process::Pid::from_raw(server::pid(node)).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
}

/// A bundle that runs the probe with `args`.
pub fn probe_bundle(node: &Node, id: &str, args: &[&str]) -> PathBuf {
    let root = root_folder(node, &[("probe.wasm", &Probe::P1.bytes())]);
    let spec = spec(node, &root, &[&["/probe.wasm"], args].concat());
    bundle(node, id, Some(&serde_json::to_vec(&spec).unwrap()))
}

on_every_containerd! {
    fn a_bundle_without_a_readable_spec_is_refused_by_its_file(node) {
        let good = probe_bundle(node, "good", &["args"]);
        let client = connect(node, &node.namespace, "good", &good);
        let missing = bundle(node, "missing", None);
        let malformed = bundle(node, "malformed", Some(b"{\"ociVersion\": \"1.0.2\", \"process\": [}"));
        let wrong = bundle(node, "wrong", Some(b"{\"ociVersion\": 7}"));
        for (id, bundle, words) in [("missing", &missing, "No such file"), ("malformed", &malformed, "line 1"),
                                    ("wrong", &wrong, "ociVersion")] {
            let (_, message) = refusal(client.create(context(node), &create(id, bundle)));
            let file = bundle.join("config.json").display().to_string();
            assert!(message.contains(&file) && (message.contains(words) || id == "wrong"), "{id}: {message}");
        }
        let gone = node.folder.join("gone");
        let (_, message) = refusal(client.create(context(node), &create("gone", &gone)));
        assert!(message.contains(&gone.display().to_string()), "{message}");
        end_server(node);
    }

    fn an_invalid_filter_in_the_environment_is_warned_of_and_stops_no_container(node) {
        for (id, filter) in [("filter", "not,a=valid[filter"), ("more", "info,=trace"), ("again", "a=b=c")] {
            let bundle = probe_bundle(node, id, &["idle"]);
            // In place of containerd's fifo.
            fs::write(bundle.join("log"), "").unwrap();
            let client = connect_by(start_command(node, &node.namespace, id, &bundle).env("RUST_LOG", filter));
            client.create(context(node), &create(id, &bundle)).unwrap();
            client.start(context(node), &StartRequest { id: id.into(), ..Default::default() }).unwrap();
            let log = fs::read_to_string(bundle.join("log")).unwrap();
            let warned = |line: &str| line.contains("level=warning") && line.contains("RUST_LOG") && line.contains(filter);
            assert!(log.lines().any(warned), "{log}");
            assert!(log.contains("container started"), "at the level that containerd asks for: {log}");
            end_server(node);
            crate::command::eventually("the server has ended", Duration::from_secs(20), || {
                server::pids_of(node, "serve").is_empty().then_some(())
            });
            let mut delete = Command::new(node.shim());
            delete.args(["-namespace", &node.namespace, "-address"]).arg(node.socket()).args(["-id", id, "-bundle"]);
            delete.arg(&bundle).arg("delete").env("RUST_LOG", filter).current_dir(&bundle);
            assert_eq!(run(&mut delete).ok().stderr, "");
        }
    }

    fn calls_out_of_order_get_the_codes_that_containerd_knows(node) {
        let bundle = probe_bundle(node, "order", &["idle"]);
        let client = connect(node, &node.namespace, "order", &bundle);
        let id = || "order".to_owned();
        let state = StateRequest { id: id(), ..Default::default() };
        let start = StartRequest { id: id(), ..Default::default() };
        let delete = DeleteRequest { id: id(), ..Default::default() };
        let kill = |signal| KillRequest { id: id(), signal, ..Default::default() };
        use ttrpc::Code;

        assert_eq!(refusal(client.state(context(node), &state)).0, Code::NOT_FOUND);
        assert_eq!(refusal(client.start(context(node), &start)).0, Code::NOT_FOUND);
        let unknown = ConnectRequest { id: "unknown".into(), ..Default::default() };
        assert_eq!(client.connect(context(node), &unknown).unwrap().task_pid, 0);

        let pid = client.create(context(node), &create("order", &bundle)).unwrap().pid;
        assert_eq!(refusal(client.create(context(node), &create("order", &bundle))).0, Code::ALREADY_EXISTS);
        assert_eq!(client.start(context(node), &start).unwrap().pid, pid);
        assert_eq!(refusal(client.start(context(node), &start)).0, Code::FAILED_PRECONDITION);
        assert_eq!(refusal(client.delete(context(node), &delete)).0, Code::FAILED_PRECONDITION);
        assert_eq!(refusal(client.kill(context(node), &kill(99))).0, Code::INVALID_ARGUMENT);
        let pids = client.pids(context(node), &PidsRequest { id: id(), ..Default::default() }).unwrap();
        assert_eq!(pids.processes.iter().map(|process| process.pid).collect::<Vec<_>>(), [pid]);

        client.kill(context(node), &kill(9)).unwrap();
        let wait = client.wait(context(node), &WaitRequest { id: id(), ..Default::default() }).unwrap();
        assert_eq!(wait.exit_status, 137);
        assert_eq!(refusal(client.kill(context(node), &kill(9))).0, Code::NOT_FOUND);
        let pids = client.pids(context(node), &PidsRequest { id: id(), ..Default::default() }).unwrap();
        assert_eq!(pids.processes.len(), 1, "an exited task lists its process until it is deleted");
        client.shutdown(context(node), &ShutdownRequest { id: id(), ..Default::default() }).unwrap();
        assert_eq!(client.delete(context(node), &delete).unwrap().exit_status, 137);
        assert_eq!(refusal(client.delete(context(node), &delete)).0, Code::NOT_FOUND);
        end_server(node);
    }

    fn namespaces_keep_equal_ids_apart(node) {
        let bundle = probe_bundle(node, "same", &["idle"]);
        let client = connect(node, &node.namespace, "same", &bundle);
        client.create(context(node), &create("same", &bundle)).unwrap();
        let namespace = format!("{}-other", node.namespace);
        let other = connect(node, &namespace, "same", &probe_bundle(node, "same-other", &["idle"]));
        let state = StateRequest { id: "same".into(), ..Default::default() };
        assert_eq!(refusal(other.state(context(node), &state)).0, ttrpc::Code::NOT_FOUND);
        assert_eq!(server::pids_of(node, "serve").len(), 1, "one server has both namespaces");
        client.kill(context(node), &KillRequest { id: "same".into(), signal: 9, ..Default::default() }).unwrap();
        client.wait(context(node), &WaitRequest { id: "same".into(), ..Default::default() }).unwrap();
        client.delete(context(node), &DeleteRequest { id: "same".into(), ..Default::default() }).unwrap();
        end_server(node);
    }

    fn two_hundred_starts_at_once_find_one_server(node) {
        let starts: Vec<_> = (0..200).map(|index| {
            let id = format!("start{index}");
            let bundle = bundle(node, &id, Some(b"{\"ociVersion\": \"1.0.2\"}"));
            Running::start(&mut start_command(node, &node.namespace, &id, &bundle))
        }).collect();
        let answers: std::collections::BTreeSet<_> = starts.into_iter().map(|start| {
            let finished = start.wait().ok();
            assert_eq!(finished.stderr, "");
            finished.stdout
        }).collect();
        assert_eq!(answers.len(), 1, "{answers:?}");
        assert_eq!(server::pids_of(node, "serve").len(), 1);
        end_server(node);
    }
}
