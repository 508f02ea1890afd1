use serde_json::json;

use super::*;

const CONFIG: Digest = Digest([0xab; 32]);

/// The record of a container that the CRI plugin created for `image` and `user`.
fn record(image: &str, user: &str) -> Record {
    let metadata = json!({"Version": "v1", "Metadata": {
        "ID": "c1", "ImageRef": CONFIG, "LogPath": "/log",
        "Config": {"metadata": {"name": "main"}, "image": {"image": image, "user_specified_image": user}},
    }});
    Record::of(container(metadata.to_string().into_bytes()))
}

fn container(metadata: Vec<u8>) -> Container {
    let mut container = Container {
        image: "docker.io/a/first:latest".to_owned(),
        ..Container::default()
    };
    container.extensions.entry(CRI_METADATA.to_owned()).or_default().value = metadata;
    container
}

fn reference(image: &str, user: &str) -> Option<Reference> {
    match record(image, user).client {
        Client::Cri(asked) => {
            assert_eq!(asked.config, CONFIG);
            asked.reference
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_the_kubelet_asks_for_is_the_users_name_and_not_the_first_of_all() {
    let id = CONFIG.to_string();
    let tag = |name: &str| Some(Reference::Tag(name.to_owned()));
    assert_eq!(reference(&id, "app"), tag("docker.io/library/app:latest"));
    assert_eq!(reference(&id, "m/app:1"), tag("docker.io/m/app:1"));
    assert_eq!(
        reference("127.0.0.1:5000/m/app", ""),
        tag("127.0.0.1:5000/m/app:latest")
    );
    assert_eq!(reference("example.com/a:1", "b"), tag("example.com/a:1"));
}

#[test]
fn a_name_with_a_digest_is_that_digest_whatever_its_tag() {
    let digest = Digest([1; 32]).to_string();
    for name in [format!("m/app@{digest}"), format!("m/app:1@{digest}")] {
        let expected = Reference::Digest {
            name: name.clone(),
            digest: digest.clone(),
        };
        assert_eq!(reference(&CONFIG.to_string(), &name), Some(expected));
    }
}

#[test]
fn an_id_alone_names_no_image() {
    let id = CONFIG.to_string();
    for image in [id.as_str(), &id["sha256:".len()..], &id["sha256:".len()..][..12]] {
        assert_eq!(reference(image, ""), None, "{image}");
        assert_eq!(reference(image, &id), None, "{image}");
    }
}

#[test]
fn metadata_of_an_unknown_format_is_not_taken_for_another_client() {
    for metadata in ["", "{}", r#"{"Version":"v9","Metadata":{"ImageRef":"sha512:1"}}"#] {
        let record = Record::of(container(metadata.into()));
        assert!(matches!(record.client, Client::UnknownCri { .. }), "{metadata}");
    }
    assert_eq!(Record::of(Container::default()).client, Client::Other);
}

#[test]
fn a_container_without_a_snapshot_has_none() {
    assert_eq!(Record::of(Container::default()).snapshot, None);
    let mut container = Container {
        snapshotter: "native".to_owned(),
        snapshot_key: "c1".to_owned(),
        ..Container::default()
    };
    let created = container.created_at.get_or_insert_default();
    (created.seconds, created.nanos) = (3, 7);
    let record = Record::of(container);
    assert_eq!(record.snapshot, Some(("native".to_owned(), "c1".to_owned())));
    assert_eq!(record.created, (3, 7));
}
