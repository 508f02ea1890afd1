//! The shim's server as tests look at it: its status and its processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::command::run;
use crate::containerd::{Node, shim_under_test};
use crate::machine;

/// The pids of processes that run `command` of the shim for this node: `serve`, `launch`.
pub fn pids_of(node: &Node, command: &str) -> Vec<i32> {
    machine::running(&node.namespace, command)
}

/// The folders of this node's servers, of one that was killed too.
pub fn folders(node: &Node) -> Vec<PathBuf> {
    let all = fs::read_dir("/run/kubewasi").into_iter().flatten().flatten();
    let settings = |folder: &Path| fs::read_to_string(folder.join("server.json"));
    all.map(|entry| entry.path())
        .filter(|folder| settings(folder).is_ok_and(|settings| settings.contains(&node.namespace)))
        .collect()
}

/// The one server of this node.
#[track_caller]
pub fn pid(node: &Node) -> i32 {
    match pids_of(node, "serve")[..] {
        [pid] => pid,
        ref other => panic!("there had to be one server, not {other:?}"),
    }
}

/// The server's status, counters of containers, compilations and reads, as `containerd-shim-wasi-v1 status` prints it.
#[track_caller]
pub fn status(node: &Node) -> Value {
    let server = pid(node);
    let lines = run(Command::new(shim_under_test()).arg("status")).ok().stdout;
    lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .find(|status| status["pid"] == server)
        .unwrap_or_else(|| panic!("no status of the server {server} in:\n{lines}"))
}

/// A number of the status, by its path: `artifacts.compiled`.
#[track_caller]
pub fn count(status: &Value, path: &str) -> u64 {
    let found = path.split('.').try_fold(status, |value, key| value.get(key));
    found
        .and_then(Value::as_u64)
        .unwrap_or_else(|| panic!("no number {path} in {status}"))
}

/// The one launcher of this node: of all that were forked from it and look like it, the one that is nobody's guest.
#[track_caller]
pub fn launcher(node: &Node) -> i32 {
    let guests: Vec<i32> = node
        .ctr(&["task", "ls"])
        .ok()
        .stdout
        .lines()
        .filter_map(second_number)
        .collect();
    let mut launchers = pids_of(node, "launch");
    launchers.retain(|pid| !guests.contains(pid));
    match launchers[..] {
        [pid] => pid,
        ref other => panic!("there had to be one launcher, not {other:?}"),
    }
}

fn second_number(line: &str) -> Option<i32> {
    line.split_whitespace().nth(1)?.parse().ok()
}

/// How many file descriptors a process holds.
pub fn open_files(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}
