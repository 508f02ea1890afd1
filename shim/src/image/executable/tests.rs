use std::fs;

use super::*;
use crate::image::{Content, Volume};

const WASM: &[u8] = b"\0asm\x01\0\0\0";

/// A container with files in its image and in its live root, and a containerd that is not there.
struct Container {
    folder: tempfile::TempDir,
    images: Images,
    volumes: Arc<Vec<Volume>>,
}

impl Container {
    fn new(files: &[(&str, &[u8])]) -> Container {
        let folder = tempfile::tempdir().unwrap();
        for name in ["image", "live"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        for (path, bytes) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let images = Images::new(folder.path().join("no-containerd.sock"));
        Container {
            folder,
            images,
            volumes: Arc::default(),
        }
    }

    async fn executable(&self, entry: &str) -> Result<Executable, ImageError> {
        let request = Request {
            namespace: "default",
            id: "c1",
            args: &[entry.to_owned()],
            cwd: "/",
            path: Some("/bin"),
            rootfs: &[],
            root: &self.folder.path().join("image"),
            volumes: &self.volumes,
            image: None,
        };
        let live = self.folder.path().join("live");
        self.images.executable(request, &live, "app.wasm").await
    }

    async fn refusal(&self, entry: &str) -> String {
        self.executable(entry).await.unwrap_err().to_string()
    }
}

#[tokio::test]
async fn wasm_binaries_and_scripts_are_told_apart_by_their_first_bytes() {
    let container = Container::new(&[
        ("image/bin/tool", WASM),
        ("image/bin/sh", b"\x7fELF\x02"),
        ("image/bin/script.wasm", b"#!/bin/sh"),
    ]);
    let found = container.executable("tool#run").await.unwrap();
    assert!(matches!(found, Executable::Wasm(wasm) if wasm.export.as_deref() == Some("run")));
    for (entry, path) in [("sh", "/bin/sh"), ("/bin/script.wasm", "/bin/script.wasm")] {
        let found = container.executable(entry).await.unwrap();
        assert!(
            matches!(found, Executable::Native(found) if found == Path::new(path)),
            "{entry}"
        );
    }
}

#[tokio::test]
async fn what_the_image_lacks_is_looked_for_in_volumes() {
    let container = Container::new(&[("live/volume/new.wasm", WASM)]);
    let found = container.executable("/volume/new.wasm").await.unwrap();
    assert!(matches!(found, Executable::Wasm(_)));
}

#[tokio::test]
async fn what_is_mounted_over_the_images_files_is_seen_in_the_container_alone() {
    let mut container = Container::new(&[("image/v/tool", WASM), ("live/v/tool", b"\x7fELF\x02")]);
    assert!(matches!(
        container.executable("/v/tool").await.unwrap(),
        Executable::Wasm(_)
    ));
    for content in [
        Content::Empty,
        Content::Unknown,
        Content::Bind {
            source: "/nowhere".into(),
            recursive: true,
        },
    ] {
        let destination = "/v".into();
        container.volumes = Arc::new(vec![Volume { destination, content }]);
        let found = container.executable("/v/tool").await.unwrap();
        assert!(matches!(found, Executable::Native(_)), "{:?}", container.volumes);
    }
}

#[tokio::test]
async fn a_file_that_is_no_program_is_refused_with_its_first_bytes() {
    let container = Container::new(&[("image/text", b"hello"), ("image/empty", b"")]);
    assert_eq!(
        container.refusal("/text").await,
        "/text cannot be executed: it begins with \"hello\", neither wasm nor a native binary nor a script with #!"
    );
    assert!(
        container
            .refusal("/empty")
            .await
            .starts_with("/empty: the file is empty")
    );
}

#[tokio::test]
async fn a_containerd_that_cannot_be_asked_is_not_taken_for_an_image_without_wasm() {
    let refused = Container::new(&[]).refusal("sh").await;
    assert!(refused.contains("connecting to containerd at"), "{refused}");
}

#[test]
fn what_can_be_executed_is_offered_by_name() {
    let layer = layers::WasmLayer {
        digest: super::super::Digest::of(WASM),
        size: 8,
        title: Some("tool.wasm".to_owned()),
    };
    assert_eq!(offered("app.wasm", &[]), "the container's own entry point \"app.wasm\"");
    let offered = offered("app.wasm", &[layer]);
    assert!(
        offered.contains("\"app.wasm\"") && offered.contains("tool.wasm (sha256:"),
        "{offered}"
    );
}
