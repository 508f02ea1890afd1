//! Whose metrics they are: names that CRI gives, or containerd's id where there is no CRI.

use std::collections::HashMap;

use crate::guest::http::exposition::Labels;

/// What CRI says of a container (containerd, internal/cri/annotations).
const NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
const POD: &str = "io.kubernetes.cri.sandbox-name";
const CONTAINER: &str = "io.kubernetes.cri.container-name";
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";

/// A container, as its metrics name it: one that is made anew in its pod has the same names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    containerd: String,
    namespace: String,
    pod: String,
    container: String,
}

/// A container's name, and the container whose end is the end of its metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub name: Name,
    /// The pod's sandbox, or the container itself when it is in no pod.
    pub sandbox: String,
}

impl Identity {
    /// The container `id` of a containerd namespace, with the annotations of its spec.
    pub fn of(containerd: &str, id: &str, annotations: Option<&HashMap<String, String>>) -> Identity {
        let said = |key| annotations.and_then(|annotations| annotations.get(key)).cloned();
        Identity {
            name: Name {
                containerd: containerd.to_owned(),
                namespace: said(NAMESPACE).unwrap_or_default(),
                pod: said(POD).unwrap_or_default(),
                container: said(CONTAINER).unwrap_or_else(|| id.to_owned()),
            },
            sandbox: said(SANDBOX).unwrap_or_else(|| id.to_owned()),
        }
    }
}

impl Name {
    pub fn labels(&self) -> Labels {
        Labels::default()
            .with("containerd_namespace", &self.containerd)
            .with("namespace", &self.namespace)
            .with("pod", &self.pod)
            .with("container", &self.container)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_has_the_names_of_cri_and_one_without_a_pod_its_id() {
        let said = [
            (NAMESPACE, "shop"),
            (POD, "cart-0"),
            (CONTAINER, "api"),
            (SANDBOX, "5a"),
        ];
        let said = said.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let first = Identity::of("k8s.io", "c1", Some(&said));
        assert_eq!(first, Identity::of("k8s.io", "c2", Some(&said)), "made anew");
        assert_eq!((first.name.pod.as_str(), first.sandbox.as_str()), ("cart-0", "5a"));
        let alone = Identity::of("default", "job", None);
        assert_eq!((alone.name.container.as_str(), alone.sandbox.as_str()), ("job", "job"));
    }
}
