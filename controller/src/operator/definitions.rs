//! The custom resource definitions in the cluster: brought up to this build's, never back.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::runtime::conditions::is_crd_established;
use kube::runtime::wait::await_condition;
use kube::{Api, Client, ResourceExt};

use super::perform::FIELD_MANAGER;
use crate::api::{crds, labels};

/// Why the definitions are not in place.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    #[error("custom resource definition {name}: {source}")]
    Apply { name: String, source: kube::Error },
    #[error("custom resource definition {name} was applied, and is not served: {source}")]
    Serve {
        name: String,
        source: kube::runtime::wait::Error,
    },
}

/// Applies the definitions of this build, except over newer ones, and waits until they are served.
pub async fn apply(client: &Client) -> Result<(), DefinitionError> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in crds::all() {
        let name = crd.name_any();
        let failed = |source| DefinitionError::Apply {
            name: name.clone(),
            source,
        };
        let existing = api.get_opt(&name).await.map_err(failed)?;
        if existing.as_ref().is_some_and(is_newer) {
            tracing::info!(crd = name, "the cluster has a newer definition, which stays");
        } else {
            let apply = PatchParams::apply(FIELD_MANAGER).force();
            api.patch(&name, &apply, &Patch::Apply(&crd)).await.map_err(failed)?;
        }
        await_condition(api.clone(), &name, is_crd_established())
            .await
            .map_err(|source| DefinitionError::Serve {
                name: name.clone(),
                source,
            })?;
    }
    Ok(())
}

fn is_newer(existing: &CustomResourceDefinition) -> bool {
    existing
        .annotations()
        .get(labels::SCHEMA)
        .and_then(|number| number.parse::<u32>().ok())
        .is_some_and(|number| number > crds::SCHEMA)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(number: &str) -> CustomResourceDefinition {
        let mut crd = crds::all().remove(0);
        crd.annotations_mut()
            .insert(labels::SCHEMA.to_owned(), number.to_owned());
        crd
    }

    #[test]
    fn a_definition_with_a_higher_number_is_left_alone() {
        assert!(is_newer(&numbered(&(crds::SCHEMA + 1).to_string())));
    }

    #[test]
    fn a_definition_with_our_number_or_none_is_replaced() {
        assert!(!is_newer(&numbered(&crds::SCHEMA.to_string())));
        assert!(!is_newer(&numbered("new")));
    }
}
