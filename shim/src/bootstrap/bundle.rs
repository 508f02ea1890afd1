//! What a bundle says of its container before a server knows it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::dialect;

/// The sandbox container of the pod (containerd, internal/cri/annotations).
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

/// Why a bundle's spec cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("cannot read {}: {cause}", path.display())]
    Read { path: PathBuf, cause: io::Error },
    #[error("{} is not an OCI runtime spec: {cause}", path.display())]
    Malformed { path: PathBuf, cause: serde_json::Error },
}

/// The id of the sandbox that the container of `bundle` belongs to, if any; its own for a sandbox.
pub fn sandbox_id(bundle: &Path) -> Result<Option<String>, BundleError> {
    /// Only the annotations: `start` runs for every container.
    #[derive(Deserialize)]
    struct Annotated {
        #[serde(default)]
        annotations: Option<HashMap<String, String>>,
    }
    let path = bundle.join("config.json");
    let file = File::open(&path).map_err(|cause| BundleError::Read {
        path: path.clone(),
        cause,
    })?;
    let spec: Annotated =
        serde_json::from_reader(BufReader::new(file)).map_err(|cause| BundleError::Malformed { path, cause })?;
    Ok(spec
        .annotations
        .and_then(|mut annotations| annotations.remove(SANDBOX_ID)))
}

/// The address of the server that holds the container of `bundle`, as `start` or containerd recorded it.
pub fn address(bundle: &Path) -> Option<String> {
    ["address", "bootstrap.json"]
        .into_iter()
        .find_map(|name| dialect::recorded_address(&fs::read(bundle.join(name)).ok()?))
}

/// The bundle of another container of the same namespace: containerd keeps them side by side. `None` for an id that
/// would lead elsewhere.
pub fn sibling(bundle: &Path, id: &str) -> Option<PathBuf> {
    let plain = !id.is_empty() && id != "." && id != ".." && !id.contains('/');
    plain.then(|| bundle.parent().map(|folder| folder.join(id))).flatten()
}

/// The bundles beside `bundle` whose `sandbox` file names `id`: the pod's containers that containerd never told us of,
/// since it dialled the sandbox's address for them.
pub fn of_sandbox(bundle: &Path, id: &str) -> Vec<PathBuf> {
    let Some(siblings) = bundle.parent().and_then(|folder| fs::read_dir(folder).ok()) else {
        return Vec::new();
    };
    siblings
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path != bundle)
        .filter(|path| fs::read_to_string(path.join("sandbox")).is_ok_and(|sandbox| sandbox.trim() == id))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("kubewasi-bundle-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn the_sandbox_is_read_from_the_annotations() {
        let bundle = scratch("annotations");
        fs::write(
            bundle.join("config.json"),
            r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"s1"}}"#,
        )
        .unwrap();
        assert_eq!(sandbox_id(&bundle).unwrap().as_deref(), Some("s1"));
        fs::write(bundle.join("config.json"), r#"{"ociVersion":"1.1.0"}"#).unwrap();
        assert_eq!(sandbox_id(&bundle).unwrap(), None);
    }

    #[test]
    fn a_missing_or_malformed_spec_is_named() {
        let bundle = scratch("malformed");
        let path = bundle.join("config.json");
        assert_eq!(
            sandbox_id(&bundle).unwrap_err().to_string(),
            format!("cannot read {}: No such file or directory (os error 2)", path.display())
        );
        fs::write(&path, "{\"annotations\": 3}").unwrap();
        let message = sandbox_id(&bundle).unwrap_err().to_string();
        assert!(
            message.starts_with(&format!("{} is not an OCI runtime spec: ", path.display())),
            "{message}"
        );
    }

    #[test]
    fn our_own_address_file_wins_over_containerds() {
        let bundle = scratch("address");
        assert_eq!(address(&bundle), None);
        fs::write(
            bundle.join("bootstrap.json"),
            r#"{"version":3,"address":"unix:///b","protocol":"ttrpc"}"#,
        )
        .unwrap();
        assert_eq!(address(&bundle).as_deref(), Some("unix:///b"));
        fs::write(bundle.join("address"), "unix:///a").unwrap();
        assert_eq!(address(&bundle).as_deref(), Some("unix:///a"));
    }

    #[test]
    fn only_the_sandboxes_own_containers_are_its_siblings() {
        let folder = scratch("siblings");
        for (name, sandbox) in [("s1", None), ("c1", Some("s1")), ("c2", Some("s2")), ("c3", None)] {
            fs::create_dir(folder.join(name)).unwrap();
            if let Some(sandbox) = sandbox {
                fs::write(folder.join(name).join("sandbox"), sandbox).unwrap();
            }
        }
        assert_eq!(of_sandbox(&folder.join("s1"), "s1"), vec![folder.join("c1")]);
    }

    #[test]
    fn an_id_that_leaves_the_folder_has_no_bundle() {
        let bundle = Path::new("/run/b/c1");
        assert_eq!(sibling(bundle, "s1").as_deref(), Some(Path::new("/run/b/s1")));
        for id in ["", ".", "..", "../x", "/etc"] {
            assert_eq!(sibling(bundle, id), None, "{id}");
        }
    }
}
