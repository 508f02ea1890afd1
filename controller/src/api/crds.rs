//! The custom resource definitions, as the API server is to have them.

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::CustomResourceExt;

use super::{WasmNode, WasmRuntime, labels};

/// The number of the schemas below, to be raised with every change of one after a release: a controller never replaces
/// a definition with a higher number by its own.
pub const SCHEMA: u32 = 1;

/// All definitions, with the number of their schema.
pub fn all() -> Vec<CustomResourceDefinition> {
    let mut all = vec![WasmRuntime::crd(), WasmNode::crd()];
    for crd in &mut all {
        for version in &mut crd.spec.versions {
            let schema = version
                .schema
                .as_mut()
                .and_then(|schema| schema.open_api_v3_schema.as_mut());
            schema.into_iter().for_each(say_nothing_of_what_is_so);
        }
        crd.metadata
            .annotations
            .get_or_insert_default()
            .insert(labels::SCHEMA.to_owned(), SCHEMA.to_string());
    }
    all
}

/// Takes out `nullable: false`, which the API server does not keep: helm would see a conflict with the controller, which
/// had applied the same.
fn say_nothing_of_what_is_so(schema: &mut JSONSchemaProps) {
    schema.nullable = schema.nullable.filter(|is_nullable| *is_nullable);
    schema
        .properties
        .iter_mut()
        .flat_map(BTreeMap::values_mut)
        .for_each(say_nothing_of_what_is_so);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        say_nothing_of_what_is_so(items);
    }
}

/// The definitions as YAML, each with the name of the file that the chart keeps it in.
pub fn rendered() -> Result<Vec<(String, String)>, serde_yaml_ng::Error> {
    all()
        .iter()
        .map(|crd| {
            Ok((
                format!("{}.yaml", crd.spec.names.plural),
                serde_yaml_ng::to_string(crd)?,
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_charts_definitions_are_those_of_the_types() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/kubewasi/crds");
        let mut names = Vec::new();
        for (name, yaml) in rendered().unwrap() {
            let kept = std::fs::read_to_string(folder.join(&name)).unwrap_or_default();
            assert!(kept == yaml, "{name} is not what the types say: run hack/generate-crds");
            names.push(name);
        }
        for file in std::fs::read_dir(&folder).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            assert!(names.contains(&name), "{name} is of no type: remove it");
        }
    }

    #[test]
    fn every_definition_is_cluster_scoped_with_a_status_and_the_number_of_its_schema() {
        for crd in all() {
            assert_eq!(crd.spec.scope, "Cluster");
            assert!(crd.spec.versions.iter().all(|version| {
                version
                    .subresources
                    .as_ref()
                    .is_some_and(|subresources| subresources.status.is_some())
            }));
            assert_eq!(crd.metadata.annotations.unwrap()[labels::SCHEMA], SCHEMA.to_string());
        }
    }
}
