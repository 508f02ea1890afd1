//! `kubewasi-node check`: what the agent would refuse on this host, and why; nothing is changed.

use std::fmt::Write;

use jiff::Timestamp;

use super::changes::Changes;
use super::config::Handler;
use super::host::{Containerd, Host};
use super::layout::Layout;
use super::observe::{ObserveError, install_change, overwritten};
use super::plan::Planned;
use super::refusal::Refusal;
use super::restart;

/// What was found, for people.
pub struct Findings {
    pub text: String,
    /// Whether the agent would work here.
    pub is_good: bool,
}

/// The note about a containerd that pulls images by its default.
const PULLS_BY_TRANSFER: &str = "by the transfer service: an image for wasi/wasm alone is not unpacked, and its containers \
    fail with `parent snapshot ... does not exist`; publish an index with linux/amd64 and linux/arm64, or set \
    spec.installation.imagePull of the WasmRuntime to Local (docs/images.md)";

/// Looks at `host` as the agent of `layout`'s runtime would, for `handler`.
pub async fn check(host: &Host, layout: &Layout, handler: &str, pod_uid: Option<&str>) -> Findings {
    match host.containerd(pod_uid).await {
        Err(error) => refused(String::new(), &error.refusal()),
        Ok(containerd) => examine(host, &containerd, layout, handler).await,
    }
}

/// The same for the containerd that was found.
pub async fn examine(host: &Host, containerd: &Containerd, layout: &Layout, handler: &str) -> Findings {
    let mut text = String::new();
    describe(&mut text, containerd);
    match verdict(host, containerd, layout, handler, &mut text).await {
        Err(error) => refused(text, &error.refusal()),
        Ok(()) => {
            line(&mut text, "verdict", "ok: nothing would be refused");
            Findings { text, is_good: true }
        }
    }
}

/// What the agent would refuse, if anything; `text` gets what it would change.
async fn verdict(
    host: &Host,
    containerd: &Containerd,
    layout: &Layout,
    handler: &str,
    text: &mut String,
) -> Result<(), ObserveError> {
    let handler = Handler {
        runtime: layout.runtime().to_owned(),
        name: handler.to_owned(),
        shim: layout.stable(),
        // The WasmRuntime decides how CRI pulls, and is unknown here: what the agent has written stays.
        local_pull: containerd.configuration.writes_local_pull(layout.runtime()),
    };
    let change = install_change(host, containerd, layout, &handler).await?;
    match &change {
        None => line(text, "configuration", "has the handler"),
        Some(change) => {
            for edit in &change.edits {
                line(text, "would change", &edit.file.display().to_string());
            }
        }
    }
    if matches!(containerd.configuration.leaves_wasi_packed().await, Ok(true)) {
        line(text, "image pulls", PULLS_BY_TRANSFER);
    }
    let is_listed = containerd.health.leads_to(&handler.name, &layout.stable());
    if change.is_none() && is_listed {
        return Ok(());
    }
    let changes = Changes::read(layout)?;
    // A pause is for one desired state, which the record has as a hash of the WasmRuntime's specification, its shim image
    // and options included. None of these is known here, so it is taken to be the same as in the last changes: the agent of
    // a WasmRuntime that was edited since does not wait.
    if let Some(until) = changes.paused(Timestamp::now()) {
        return Err(overwritten(host, containerd, &changes, change.as_ref(), until).into());
    }
    Ok(restart::refuse(host, containerd).await?)
}

/// A plan as text, with the lines of configuration that it adds and removes.
pub fn describe_plan(planned: &Planned) -> String {
    let mut text = String::new();
    line(&mut text, "plan", &planned.plan.hash);
    let steps: Vec<String> = planned.plan.steps.iter().map(|step| format!("{step:?}")).collect();
    line(
        &mut text,
        "steps",
        if steps.is_empty() {
            "none: the host is as wished".to_owned()
        } else {
            steps.join(", ")
        }
        .as_str(),
    );
    for edit in planned.change.iter().flat_map(|change| &change.edits) {
        line(&mut text, "file", &edit.file.display().to_string());
        let (old, new) = (
            edit.old.as_deref().unwrap_or_default(),
            edit.new.as_deref().unwrap_or_default(),
        );
        for (sign, these, those) in [("-", old, new), ("+", new, old)] {
            for changed in these.lines().filter(|line| !those.lines().any(|other| other == *line)) {
                let _ = writeln!(text, "  {sign} {changed}");
            }
        }
    }
    text
}

fn describe(text: &mut String, containerd: &Containerd) {
    let Containerd {
        health,
        unit,
        configuration,
        ..
    } = containerd;
    let files = configuration.files.loaded();
    let handlers: Vec<&str> = health.handlers.keys().map(String::as_str).collect();
    line(
        text,
        "containerd",
        &format!(
            "{} at {}, pid {}",
            health.release,
            containerd.socket.display(),
            containerd.pid
        ),
    );
    line(text, "program", &containerd.binary.display().to_string());
    line(text, "unit", &format!("{}, KillMode={}", unit.name, unit.kill_mode));
    line(
        text,
        "configuration",
        &format!("{}, version {}", files[0].path.display(), files[0].version()),
    );
    for file in &files[1..] {
        line(text, "imports", &file.path.display().to_string());
    }
    line(
        text,
        "handlers",
        &format!("{}; the default is {}", handlers.join(", "), health.default_runtime),
    );
}

fn refused(mut text: String, refusal: &Refusal) -> Findings {
    line(
        &mut text,
        "verdict",
        &format!("refused, {}: {}", refusal.reason, refusal.message),
    );
    Findings { text, is_good: false }
}

fn line(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "{name:<14} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::wasm_node::{Plan, Step};
    use crate::node::config::{Change, Edit, Ours};

    #[test]
    fn a_plan_is_described_with_the_lines_that_it_changes() {
        let planned = Planned {
            plan: Plan {
                hash: "abc".into(),
                steps: vec![Step::WriteConfig, Step::RestartContainerd],
            },
            wish: "w".into(),
            handler: "wasi".into(),
            installs: true,
            shim: "s".into(),
            options: String::new(),
            change: Some(Change {
                edits: vec![Edit {
                    file: "/etc/containerd/config.toml".into(),
                    old: Some("version = 2\n".into()),
                    new: Some("version = 2\n[ours]\n".into()),
                }],
                ours: Ours::new(&Handler::example()),
                is_seen: true,
            }),
            cache: None,
            number: 0,
        };
        let text = describe_plan(&planned);
        assert!(text.contains("WriteConfig, RestartContainerd"), "{text}");
        assert!(text.ends_with("  + [ours]\n") && !text.contains("version"), "{text}");
    }
}
