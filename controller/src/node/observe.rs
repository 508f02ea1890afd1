//! What a plan is made of: the host as it is, looked at and refused where it has to be.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;

use crate::api::wasm_node::{Step, Wish, WishedState};

use super::config::{self, Edit, Handler};
use super::host::{Containerd, Host, HostError, mounted};
use super::journal::{self, Kept, RecordError};
use super::layout::Layout;
use super::plan::{Observed, Planned, plan};
use super::refusal::Refusal;
use super::restart;
use super::shim::{self, Staged};

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Host(HostError),
}

impl From<HostError> for ObserveError {
    fn from(error: HostError) -> ObserveError {
        match error {
            HostError::Refused(refusal) => ObserveError::Refused(refusal),
            error => ObserveError::Host(error),
        }
    }
}

/// Plans as [`observe`] does, and refuses a plan whose restart of containerd would do harm.
///
/// # Errors
///
/// A refusal as well when the plan itself would be a good one.
pub async fn permissible(
    host: &Host,
    containerd: &Containerd,
    layout: &Layout,
    staging: &Path,
    wish: &Wish,
) -> Result<Planned, ObserveError> {
    let planned = observe(host, containerd, layout, staging, wish)?;
    if planned.has(Step::RestartContainerd) {
        restart::refuse(host, containerd).await?;
    }
    Ok(planned)
}

/// Plans for `wish` on a host with this containerd; `staging` has the shim.
///
/// # Errors
///
/// A refusal when the host, or the shim image, is not one that can be worked with: nothing was touched.
pub fn observe(
    host: &Host,
    containerd: &Containerd,
    layout: &Layout,
    staging: &Path,
    wish: &Wish,
) -> Result<Planned, ObserveError> {
    let handler = Handler {
        runtime: layout.runtime().to_owned(),
        name: wish.handler.clone(),
        shim: layout.stable(),
    };
    let installs = wish.state == WishedState::Installed;
    let leads_here = containerd.health.leads_to(&wish.handler, &layout.stable());
    if !installs {
        let edit = uninstall_edit(containerd, layout, &handler)?;
        return Ok(plan(
            wish,
            Observed {
                staged: String::new(),
                has_staged: false,
                current: shim::current(layout),
                options: None,
                edit,
                // A handler of that name which is not ours is none of our business.
                listed: leads_here,
                has_folder: layout.folder().exists(),
                cache: cache(layout),
            },
        ));
    }
    let edit = install_edit(host, containerd, &handler)?;
    wish.options
        .check()
        .map_err(|error| Refusal::options(error.to_string()))?;
    let staged = Staged::look(staging).map_err(|error| Refusal::shim(error.to_string()))?;
    let binary = layout.version(&staged.digest).join(super::layout::SHIM);
    Ok(plan(
        wish,
        Observed {
            has_staged: shim::digest_of(&binary).as_ref() == Some(&staged.digest),
            current: shim::current(layout),
            options: shim::options(layout, &staged.digest),
            staged: staged.digest,
            edit,
            listed: leads_here,
            has_folder: layout.folder().exists(),
            cache: None,
        },
    ))
}

/// The edit that installs the handler, on a host that nothing speaks against.
pub fn install_edit(host: &Host, containerd: &Containerd, handler: &Handler) -> Result<Option<Edit>, Refusal> {
    refuse(host, containerd)?;
    let edit = config::install(&containerd.shape, handler)?;
    if let Some(edit) = &edit {
        writable(host, containerd, edit)?;
    }
    Ok(edit)
}

/// Refuses a containerd whose restart would do harm, or that is in trouble already, and a host where no program can live.
fn refuse(host: &Host, containerd: &Containerd) -> Result<(), Refusal> {
    restart::keeps_shims(&containerd.unit)?;
    if !containerd.health.runtime_ready {
        return Err(Refusal::not_ready());
    }
    let programs = Path::new("/opt");
    match mounted(&host.root, programs) {
        Ok(flags) if flags.contains(StatVfsMountFlags::RDONLY) => Err(Refusal::read_only(programs)),
        Ok(flags) if flags.contains(StatVfsMountFlags::NOEXEC) => Err(Refusal::no_exec(programs)),
        // What is not there is made; what cannot be looked at fails when it is written.
        _ => Ok(()),
    }
}

/// Refuses an edit of a file that cannot be changed.
fn writable(host: &Host, containerd: &Containerd, edit: &Edit) -> Result<(), Refusal> {
    let folder = edit.file.parent().unwrap_or(Path::new("/"));
    let root = host.processes.join(containerd.pid.to_string()).join("root");
    match mounted(&root, folder) {
        Ok(flags) if flags.contains(StatVfsMountFlags::RDONLY) => Err(Refusal::read_only(folder)),
        _ => Ok(()),
    }
}

/// The edit that removes the handler. While the file is the one that we wrote, it is the exact file of before.
fn uninstall_edit(containerd: &Containerd, layout: &Layout, handler: &Handler) -> Result<Option<Edit>, ObserveError> {
    let edit = config::uninstall(&containerd.shape, handler).map_err(Refusal::from)?;
    let kept: Option<Kept> = journal::read(&layout.kept())?;
    Ok(edit.map(|edit| restore(edit, kept)))
}

fn restore(mut edit: Edit, kept: Option<Kept>) -> Edit {
    let Some(kept) = kept else { return edit };
    let now = edit.old.as_ref().map(|text| shim::digest(text.as_bytes()));
    if kept.file.as_ref() == Some(&edit.file) && kept.written.is_some() && kept.written == now {
        edit.new = kept.old;
    }
    edit
}

/// The folder of artifacts, when no other runtime of the host is left to use it.
fn cache(layout: &Layout) -> Option<PathBuf> {
    let runtimes = fs::read_dir(layout.base()).into_iter().flatten().flatten();
    let others = runtimes.filter(|entry| entry.path().is_dir() && entry.path() != layout.folder());
    if others.count() > 0 {
        return None;
    }
    let text = shim::current(layout).and_then(|digest| shim::options(layout, &digest));
    let options = kubewasi_options::parse(&text?).ok()?;
    Some(options.cache_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_before_comes_back_only_over_the_one_that_we_wrote() {
        let edit = |now: &str| Edit {
            file: "/c".into(),
            old: Some(now.into()),
            new: Some("edited".into()),
        };
        let kept = || {
            Some(Kept {
                wish: String::new(),
                file: Some("/c".into()),
                written: Some(shim::digest(b"ours")),
                old: Some("before".into()),
            })
        };
        assert_eq!(restore(edit("ours"), kept()).new.as_deref(), Some("before"));
        assert_eq!(restore(edit("ours, and more"), kept()).new.as_deref(), Some("edited"));
        assert_eq!(restore(edit("ours"), None).new.as_deref(), Some("edited"));
    }

    #[test]
    fn artifacts_are_removed_with_the_last_runtime_only() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path(), "one");
        assert_eq!(cache(&layout), None);
        let digest = shim::digest(b"shim");
        fs::create_dir_all(layout.version(&digest)).unwrap();
        fs::write(layout.version(&digest).join(super::super::layout::SHIM), "shim").unwrap();
        fs::write(layout.options(&digest), "cache_dir = '/var/cache/x'").unwrap();
        shim::switch(&layout, &digest).unwrap();
        assert_eq!(cache(&layout), Some("/var/cache/x".into()));
        fs::create_dir(folder.path().join("two")).unwrap();
        assert_eq!(cache(&layout), None);
    }
}
