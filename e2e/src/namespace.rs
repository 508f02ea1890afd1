//! A namespace for one scenario: made before, deleted after, and described when the scenario failed.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use futures_util::FutureExt;
use k8s_openapi::api::core::v1::{Namespace as Object, ServiceAccount};
use kube::api::{Api, DeleteParams, DynamicObject, GroupVersionKind, ObjectMeta, PostParams};
use kube::discovery::{Scope, pinned_kind};
use serde::Deserialize;

use crate::cluster::Cluster;
use crate::wait;

/// What manifests write for the folder of the tests' images.
const IMAGES: &str = "$IMAGES";

/// Where those images are unless E2E_IMAGES says otherwise: the nodes of `hack/kind-cluster` have them under this name.
const LOCAL_IMAGES: &str = "localhost/kubewasi";

/// A scenario's own namespace.
pub struct Namespace {
    pub cluster: Cluster,
    pub name: String,
}

/// The folder of the tests' images.
pub fn images() -> String {
    std::env::var("E2E_IMAGES").unwrap_or_else(|_| LOCAL_IMAGES.into())
}

impl Namespace {
    /// Runs `scenario` in a new namespace, whose name starts with `title`.
    pub async fn with(title: &str, scenario: impl AsyncFnOnce(&Namespace) -> Result<()>) -> Result<()> {
        Namespace::labelled(title, &[], scenario).await
    }

    /// As [`Namespace::with`]; the namespace has `labels`, a level of Pod Security for instance.
    pub async fn labelled(
        title: &str,
        labels: &[(&str, &str)],
        scenario: impl AsyncFnOnce(&Namespace) -> Result<()>,
    ) -> Result<()> {
        let namespace = Namespace::create(Cluster::connect().await?, title, labels).await?;
        let outcome = AssertUnwindSafe(scenario(&namespace)).catch_unwind().await;
        if !matches!(outcome, Ok(Ok(()))) {
            namespace.describe().await;
        }
        let deleted = namespace.delete().await;
        match outcome {
            Ok(result) => result.and(deleted),
            Err(panic) => resume_unwind(panic),
        }
    }

    async fn create(cluster: Cluster, title: &str, labels: &[(&str, &str)]) -> Result<Namespace> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let name = format!("{title}-{:x}", now.as_micros() & 0xff_ffff);
        let labels: BTreeMap<String, String> = labels
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect();
        let object = Object {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(labels),
                ..ObjectMeta::default()
            },
            ..Object::default()
        };
        Api::<Object>::all(cluster.client.clone())
            .create(&PostParams::default(), &object)
            .await
            .with_context(|| format!("creating namespace {name}"))?;
        let namespace = Namespace { cluster, name };
        // Pods are refused until it is there.
        let accounts: Api<ServiceAccount> = namespace.api();
        wait::until(
            "the namespace's default service account",
            async || Ok(accounts.get_opt("default").await?.is_some()),
            |there| *there,
        )
        .await?;
        Ok(namespace)
    }

    /// The objects of one kind in this namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.cluster.client.clone(), &self.name)
    }

    /// kubectl in this namespace.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.output_of_kubectl(&self.arguments(arguments)).await
    }

    /// As [`Namespace::kubectl`], with `input` on its standard input.
    pub async fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        self.cluster.kubectl_with_input(&self.arguments(arguments), input).await
    }

    /// `arguments` for kubectl, with this namespace.
    pub fn arguments<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        [&["--namespace", self.name.as_str()], arguments].concat()
    }

    /// Creates the objects of a manifest; `$IMAGES` in it is the folder of the tests' images.
    pub async fn create_from(&self, manifest: &str) -> Result<()> {
        let manifest = manifest.replace(IMAGES, &images());
        for document in serde_yaml_ng::Deserializer::from_str(&manifest) {
            let object = DynamicObject::deserialize(document).context("a manifest of the scenario is no object")?;
            let types = object.types.clone().context("a manifest of the scenario has no kind")?;
            let (resource, capabilities) =
                pinned_kind(&self.cluster.client, &GroupVersionKind::try_from(&types)?).await?;
            let client = self.cluster.client.clone();
            let api: Api<DynamicObject> = match capabilities.scope {
                Scope::Cluster => Api::all_with(client, &resource),
                Scope::Namespaced => Api::namespaced_with(client, &self.name, &resource),
            };
            api.create(&PostParams::default(), &object).await.with_context(|| {
                let name = object.metadata.name.as_deref().unwrap_or_default();
                format!("creating {} {name}", types.kind)
            })?;
        }
        Ok(())
    }

    /// Prints what somebody would look at who wonders why the scenario failed.
    async fn describe(&self) {
        for arguments in [["describe", "pods"], ["get", "events"]] {
            match self.kubectl(&arguments).await {
                Ok(text) => eprintln!("--- kubectl {}\n{text}", arguments.join(" ")),
                Err(error) => eprintln!("--- {error:#}"),
            }
        }
    }

    /// Deletes it and waits until nothing of it is left: a pod that cannot be deleted fails its scenario.
    async fn delete(&self) -> Result<()> {
        let api: Api<Object> = Api::all(self.cluster.client.clone());
        api.delete(&self.name, &DeleteParams::default()).await?;
        wait::until(
            &format!("namespace {} to be gone", self.name),
            async || Ok(api.get_opt(&self.name).await?.and_then(|namespace| namespace.status)),
            Option::is_none,
        )
        .await?;
        Ok(())
    }
}
