//! Where a process of a container looks for what it runs, from the container's spec.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use kubewasi_options::WorldChoice;
use oci_spec::runtime::{Mount, Process, Spec};

use super::error::TaskError;
use super::events::Facts;
use super::service::Node;
use crate::compile::{Artifact, Worlds};
use crate::image::{self, Content, Image, Volume, Wasm};
use crate::sandbox::plan::Role;

/// The places of one container.
pub struct Search<'a> {
    facts: &'a Facts,
    root: PathBuf,
    volumes: Arc<Vec<Volume>>,
    image: Option<&'a Image>,
}

impl<'a> Search<'a> {
    /// Of the container `facts`; `image` is what it was created from, where that is known.
    pub fn new(facts: &'a Facts, spec: &'a Spec, image: Option<&'a Image>) -> Search<'a> {
        let root = spec
            .root()
            .as_ref()
            .map_or(Path::new("rootfs"), |root| root.path().as_path());
        let mounts = spec.mounts().iter().flatten();
        Search {
            facts,
            root: facts.bundle.join(root),
            volumes: Arc::new(mounts.filter_map(|mount| volume(mount, &facts.bundle)).collect()),
            image,
        }
    }

    /// What `process` asks to run; nothing when a spec has none.
    pub fn request<'b>(&'b self, process: Option<&'b Process>) -> image::Request<'b> {
        let env = process.and_then(|process| process.env().as_deref()).unwrap_or_default();
        image::Request {
            namespace: &self.facts.namespace,
            id: &self.facts.id,
            args: process
                .and_then(|process| process.args().as_deref())
                .unwrap_or_default(),
            cwd: process.and_then(|process| process.cwd().to_str()).unwrap_or("/"),
            // As in the process's environment, the last one counts.
            path: env.iter().rev().find_map(|variable| variable.strip_prefix("PATH=")),
            rootfs: &self.facts.rootfs,
            root: &self.root,
            volumes: &self.volumes,
            image: self.image,
        }
    }
}

/// A mount of the spec; `None` for one that shows what the root filesystem has there anyway.
fn volume(mount: &Mount, bundle: &Path) -> Option<Volume> {
    let options = mount.options().as_deref().unwrap_or_default();
    let has = |name: &str| options.iter().any(|option| option == name);
    let kind = mount.typ().as_deref().unwrap_or_default();
    // The type of a bind mount may be anything as long as an option says so (OCI runtime spec, config.md).
    let content = match mount.source() {
        Some(source) if kind == "bind" || has("bind") || has("rbind") => Content::Bind {
            source: bundle.join(source),
            recursive: !has("bind"),
        },
        _ if kind == "tmpfs" && has("tmpcopyup") => return None,
        _ if kind == "tmpfs" => Content::Empty,
        _ => Content::Unknown,
    };
    Some(Volume {
        destination: mount.destination().clone(),
        content,
    })
}

/// The guest that runs `wasm` as `choice` has it, compiled by the deadline.
pub async fn guest(
    node: &Node,
    wasm: Wasm,
    choice: WorldChoice,
    deadline: Option<Instant>,
) -> Result<(Role, Artifact), TaskError> {
    let artifact = node.artifacts.get(&node.images, &wasm, choice, deadline).await?;
    let Worlds { world, other } = artifact.worlds;
    tracing::info!(program = wasm.name, digest = %wasm.digest, ?world, "program found");
    if let Some(other) = other {
        tracing::info!(
            program = wasm.name,
            ?world,
            ?other,
            "the component is a command and a service: a handler makes it a service unless the annotation \
             kubewasi.dev/world is command"
        );
    }
    let role = Role::Guest {
        world,
        export: wasm.export,
    };
    Ok((role, artifact))
}
