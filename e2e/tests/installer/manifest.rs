//! Installing and removing without helm, as docs/control-plane.md says it.

use anyhow::Result;
use kubewasi_e2e::cluster::Cluster;
use kubewasi_e2e::namespace::{Namespace, images};
use kubewasi_e2e::node::Node;
use kubewasi_e2e::{release, runtime};

use crate::idle::start_idle;
use crate::uninstall::{are_as_before, files};

/// What it defines, which `helm uninstall` leaves.
const DEFINITIONS: [&str; 2] = ["crd/wasmruntimes.kubewasi.dev", "crd/wasmnodes.kubewasi.dev"];

#[tokio::test]
async fn the_manifest_applied_twice_installs_and_its_deletion_leaves_nothing() -> Result<()> {
    Namespace::with("manifest", async |namespace| {
        let cluster = &namespace.cluster;
        release::absent(cluster).await?;
        let gone = [&["delete", "--ignore-not-found"], DEFINITIONS.as_slice()].concat();
        cluster.output_of_kubectl(&gone).await?;
        let nodes = Node::all(namespace).await?;
        let (before, labels) = (files(&nodes).await?, runtime::labels_and_taints(cluster).await?);
        let manifest = manifest()?;

        let apply = ["apply", "--server-side", "--filename", "-"];
        // kubectl looks for a kind that it does not know once more, when the definition may be served already.
        if let Err(error) = cluster.kubectl_with_input(&apply, &manifest).await {
            let error = format!("{error:#}");
            assert!(error.contains("no matches for kind \"WasmRuntime\""), "{error}");
        }
        let defined = ["wait", "--for=condition=Established"];
        cluster
            .output_of_kubectl(&[defined.as_slice(), &DEFINITIONS].concat())
            .await?;
        let again = [apply.as_slice(), &["--force-conflicts"]].concat();
        cluster.kubectl_with_input(&again, &manifest).await?;
        runtime::settled(cluster, release::RUNTIME).await?;
        start_idle(namespace, "first", release::RUNTIME).await?;
        namespace.kubectl(&["delete", "pod", "first"]).await?;

        cluster.output_of_kubectl(&["delete", "wasmruntimes", "--all"]).await?;
        let delete = ["delete", "--ignore-not-found", "--filename", "-"];
        cluster.kubectl_with_input(&delete, &manifest).await?;
        are_as_before(&nodes, &before).await?;
        assert_eq!(runtime::labels_and_taints(cluster).await?, labels);
        assert_eq!(left(cluster).await?, Vec::<String>::new());
        Ok(())
    })
    .await
}

/// The manifest, with the images that the cluster has.
fn manifest() -> Result<String> {
    let manifest = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/install.yaml"))?;
    let manifest = manifest.replace("ghcr.io/kubewasi", &images());
    Ok(manifest.replace(concat!(":", env!("CARGO_PKG_VERSION")), ":e2e"))
}

/// Names of what is there of everything that the manifest and the controller make and no namespace holds.
async fn left(cluster: &Cluster) -> Result<Vec<String>> {
    let kinds = "namespace,crd,clusterrole,clusterrolebinding,validatingadmissionpolicy,validatingadmissionpolicybinding,\
                 runtimeclass";
    let listed = cluster.output_of_kubectl(&["get", kinds, "--output", "name"]).await?;
    let is_ours = |name: &&str| name.contains("kubewasi") || name.ends_with(&format!("/{}", release::RUNTIME));
    Ok(listed.lines().filter(is_ours).map(str::to_owned).collect())
}
