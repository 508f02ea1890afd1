//! Running a process in a guest's container: found, compiled, forked beside the guest and started.

use std::path::{Path, PathBuf};
use std::time::Instant;

use kubewasi_options::WorldChoice;
use oci_spec::runtime::Spec;

use super::create;
use super::error::TaskError;
use super::process::Process;
use super::search::{self, Search};
use super::service::Node;
use crate::compile::Artifact;
use crate::image::{Executable, Image, Request};
use crate::sandbox::exec;
use crate::sandbox::plan::Role;
use crate::sandbox::process::Guest;
use crate::stdio::{self, terminal};
use crate::sys::open_files;

/// Runs `process` in the container of `guest`, whose image is `image` where that is known, and gives it its streams. Compiling is waited
/// for until the deadline.
///
/// # Errors
///
/// What cannot be found, compiled or confined.
pub async fn run(
    node: &Node,
    guest: &Guest,
    process: &Process,
    image: Option<&Image>,
    deadline: Option<Instant>,
) -> Result<(), TaskError> {
    let facts = &process.facts;
    let asked = process.spec.as_ref().ok_or_else(|| facts.unknown())?;
    let spec = create::read(&facts.bundle).await?;
    let search = Search::new(facts, &spec, image);
    let live = PathBuf::from(format!("/proc/{}/root", guest.child().pid()));
    let options = create::options(node, &spec)?;
    let request = search.request(Some(asked));
    let (role, artifact) = program(node, request, &live, &spec, options.world, deadline).await?;
    let confinement = exec::plan(exec::Request {
        id: &facts.id,
        spec: &spec,
        bundle: &facts.bundle,
        process: asked,
        beside: guest.child().pid(),
        terminal: facts.terminal,
        role,
        options,
        open_files: open_files::before(),
    })?;
    let size = terminal::size_of(asked);
    let opened = tokio::select! {
        opened = stdio::open(&facts.streams, facts.terminal, size, node.launcher.children()) => opened?,
        () = process.abandoned() => return Err(TaskError::Discarded { id: facts.name() }),
    };
    let started = node
        .launcher
        .exec(guest, &confinement, opened.stdio, artifact.as_ref())
        .await?;
    started
        .start()
        .map_err(|_| TaskError::DeadAtStart { id: facts.name() })?;
    process.adopt(started.child().clone(), opened.kept, opened.console);
    Ok(())
}

/// What `request` asks for in the container that is reached by `live`, compiled when it is wasm.
async fn program(
    node: &Node,
    request: Request<'_>,
    live: &Path,
    spec: &Spec,
    choice: WorldChoice,
    deadline: Option<Instant>,
) -> Result<(Role, Option<Artifact>), TaskError> {
    let first = spec.process().as_ref();
    let entry_point = first.and_then(|first| first.args().as_ref()?.first());
    let entry_point = entry_point.map(String::as_str).unwrap_or_default();
    match node.images.executable(request, live, entry_point).await? {
        Executable::Wasm(wasm) => {
            let (role, artifact) = search::guest(node, wasm, choice, deadline).await?;
            Ok((role, Some(artifact)))
        }
        Executable::Native(path) => Ok((Role::Native { path }, None)),
    }
}
