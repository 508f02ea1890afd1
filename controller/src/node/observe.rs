//! What a plan is made of: the host as it is, looked at and refused where it has to be.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::api::wasm_node::{Step, Wish, WishedState};
use crate::api::wasm_runtime::ImagePull;

use super::changes::Changes;
use super::config::{Change, Edit, Handler};
use super::configuration::ConfigurationError;
use super::dumper::DumpError;
use super::host::{Containerd, Host, HostError};
use super::journal::{self, RecordError, Written};
use super::layout::Layout;
use super::plan::{Observed, Planned, plan};
use super::refusal::Refusal;
use super::restart;
use super::shim::{self, Staged};
use super::write_access;

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

impl ObserveError {
    /// The refusal to report if the host stays like this.
    pub fn refusal(&self) -> Refusal {
        match self {
            ObserveError::Refused(refusal) => refusal.clone(),
            ObserveError::Record(error) => Refusal::record(error),
            ObserveError::Host(error) => error.refusal(),
        }
    }
}

impl From<HostError> for ObserveError {
    fn from(error: HostError) -> ObserveError {
        match error {
            HostError::Refused(refusal) => ObserveError::Refused(refusal),
            error => ObserveError::Host(error),
        }
    }
}

impl From<ConfigurationError> for ObserveError {
    fn from(error: ConfigurationError) -> ObserveError {
        match error {
            ConfigurationError::Refused(refusal) => ObserveError::Refused(refusal.into()),
            ConfigurationError::Dump(error @ (DumpError::Rejected(_) | DumpError::Output(_) | DumpError::Load(_))) => {
                ObserveError::Refused(Refusal::dump(&error))
            }
            ConfigurationError::Dump(error) => ObserveError::Host(error.into()),
            ConfigurationError::Load(error) => ObserveError::Refused(Refusal::load(error, Path::new("containerd"))),
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
    let planned = observe(host, containerd, layout, staging, wish).await?;
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
pub async fn observe(
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
        local_pull: wish.image_pull == ImagePull::Local,
    };
    let installs = wish.state == WishedState::Installed;
    let leads_here = containerd.health.leads_to(&wish.handler, &layout.stable());
    if !installs {
        let change = uninstall_change(host, containerd, layout, &handler).await?;
        return Ok(plan(
            wish,
            Observed {
                staged: String::new(),
                has_staged: false,
                current: shim::current(layout),
                options: None,
                change,
                // A handler of that name which is not ours is none of our business.
                listed: leads_here,
                has_folder: layout.folder().exists(),
                cache: cache(layout),
            },
        ));
    }
    let change = install_change(host, containerd, layout, &handler).await?;
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
            change,
            listed: leads_here,
            has_folder: layout.folder().exists(),
            cache: None,
        },
    ))
}

/// The change that installs the handler, on a host where nothing prevents that.
///
/// # Errors
///
/// A refusal with what is in the way, or that containerd could not be asked.
pub async fn install_change(
    host: &Host,
    containerd: &Containerd,
    layout: &Layout,
    handler: &Handler,
) -> Result<Option<Change>, ObserveError> {
    restart::keeps_shims(&containerd.unit)?;
    if !containerd.health.runtime_ready {
        return Err(Refusal::not_ready().into());
    }
    write_access::refuse_programs(&host.root, layout)?;
    all_visible(host, containerd)?;
    let change = containerd.configuration.install(handler).await?;
    for edit in change.iter().flat_map(|change| &change.edits) {
        writable(host, containerd, edit)?;
    }
    Ok(change)
}

/// Refuses a host whose containerd reads other files than the host has at these paths.
fn all_visible(host: &Host, containerd: &Containerd) -> Result<(), Refusal> {
    let loaded = containerd.configuration.files.loaded();
    loaded.iter().try_for_each(|file| visible(host, containerd, &file.path))
}

fn visible(host: &Host, containerd: &Containerd, file: &Path) -> Result<(), Refusal> {
    let root = host.processes.join(containerd.pid.to_string()).join("root");
    write_access::refuse_hidden(&host.root, &root, file)
}

/// Refuses an edit of a file that cannot be replaced, or that containerd does not see.
fn writable(host: &Host, containerd: &Containerd, edit: &Edit) -> Result<(), Refusal> {
    write_access::refuse_edit(&host.root, edit)?;
    visible(host, containerd, &edit.file)
}

/// The refusal `until` then, where each change is reverted: in the first file of `change`, or in containerd's list of
/// handlers.
pub fn overwritten(
    host: &Host,
    containerd: &Containerd,
    changes: &Changes,
    change: Option<&Change>,
    until: Timestamp,
) -> Refusal {
    let edit = change.and_then(|change| change.edits.first());
    let file = edit.map_or(containerd.configuration.root(), |edit| &edit.file);
    let signature = write_access::signature(&host.root, file);
    Refusal::overwritten(file, changes.row, signature, until)
}

/// The change that removes the handler from wherever it was written.
///
/// # Errors
///
/// As [`install_change`].
async fn uninstall_change(
    host: &Host,
    containerd: &Containerd,
    layout: &Layout,
    handler: &Handler,
) -> Result<Option<Change>, ObserveError> {
    all_visible(host, containerd)?;
    let written: Written = journal::read(&layout.written())?.unwrap_or_default();
    let recorded: Vec<PathBuf> = written.files.into_iter().collect();
    let change = containerd.configuration.uninstall(handler, &recorded).await?;
    for edit in change.iter().flat_map(|change| &change.edits) {
        writable(host, containerd, edit)?;
    }
    Ok(change)
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
