use std::fs;
use std::path::Path;

use super::*;
use crate::image::{Content, Counters, Mount, Volume};

const WASM: &[u8] = b"\0asm\x01\0\0\0";

/// A node with one image layer and a containerd that is not there.
struct Node {
    folder: tempfile::TempDir,
    images: Images,
}

impl Node {
    fn new() -> Node {
        let folder = tempfile::tempdir().expect("temp folder");
        for name in ["upper", "lower", "cache"] {
            fs::create_dir(folder.path().join(name)).expect("folder");
        }
        let images = Node::images(folder.path());
        Node { folder, images }
    }

    fn images(folder: &Path) -> Images {
        Images::new(folder.join("no-containerd.sock")).remember_in(&folder.join("cache"))
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().expect("parent")).expect("folders");
        fs::write(path, bytes).expect("write");
    }

    async fn resolve(&self, entry: &str) -> Result<Program, ImageError> {
        self.resolve_with(&[entry], Vec::new()).await
    }

    async fn resolve_with(&self, args: &[&str], volumes: Vec<Volume>) -> Result<Program, ImageError> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let layer = |name| self.folder.path().join(name).display().to_string();
        let options = vec![
            format!("upperdir={}", layer("upper")),
            format!("lowerdir={}", layer("lower")),
        ];
        let mount = Mount {
            kind: "overlay".to_owned(),
            source: "overlay".to_owned(),
            options,
        };
        self.images
            .resolve(Request {
                namespace: "default",
                id: "c1",
                args: &args,
                cwd: "/srv",
                path: Some("/bin:/usr/bin"),
                rootfs: &[mount],
                root: Path::new("/nowhere"),
                volumes: &Arc::new(volumes),
                image: None,
            })
            .await
    }

    async fn wasm(&self, entry: &str) -> Wasm {
        match self.resolve(entry).await.expect("resolved") {
            Program::Wasm(wasm) => wasm,
            Program::Native => panic!("{entry} is native"),
        }
    }

    async fn error(&self, entry: &str) -> String {
        self.resolve(entry).await.map(|_| ()).expect_err("an error").to_string()
    }
}

#[tokio::test]
async fn a_wasm_file_of_the_root_filesystem_is_found_without_asking_containerd() {
    let node = Node::new();
    node.write("lower/srv/app.wasm", WASM);
    node.write("lower/bin/tool", WASM);
    for entry in ["app.wasm", "./app.wasm", "/srv/app.wasm", "tool"] {
        let wasm = node.wasm(entry).await;
        assert_eq!((wasm.digest, wasm.export), (Digest::of(WASM), None), "{entry}");
        assert!(matches!(wasm.source, Source::File(_)), "{entry}");
    }
}

#[tokio::test]
async fn a_lower_file_is_read_once_also_over_a_restart() {
    let mut node = Node::new();
    node.write("lower/app.wasm", WASM);
    let once = Counters {
        files_read: 1,
        bytes_read: WASM.len() as u64,
        ..Counters::default()
    };
    node.wasm("/app.wasm").await;
    node.wasm("/app.wasm").await;
    assert_eq!(node.images.counters(), once);
    node.images = Node::images(node.folder.path());
    assert_eq!(node.wasm("/app.wasm").await.digest, Digest::of(WASM));
    assert_eq!(node.images.counters(), Counters::default());
}

#[tokio::test]
async fn a_writable_file_is_copied_and_read_each_time() {
    let node = Node::new();
    node.write("upper/app.wasm", WASM);
    let wasm = node.wasm("/app.wasm").await;
    assert!(matches!(wasm.source, Source::Copy(_)));
    node.write("upper/app.wasm", b"\0asm\x0d\0\x01\0");
    let mut bytes = [0; 8];
    let copy = File::from(node.images.open(&wasm).await.expect("open"));
    copy.read_exact_at(&mut bytes, 0).expect("read");
    assert_eq!(bytes, WASM, "the copy does not change with the file");
    assert_ne!(node.wasm("/app.wasm").await.digest, wasm.digest);
    assert_eq!(node.images.counters().files_read, 2);
}

#[tokio::test]
async fn an_export_is_split_off_unless_a_file_has_that_name() {
    let node = Node::new();
    node.write("lower/srv/app.wasm", WASM);
    assert_eq!(node.wasm("app.wasm#add").await.export.as_deref(), Some("add"));
    node.write("lower/srv/app.wasm#add", WASM);
    assert_eq!(node.wasm("app.wasm#add").await.export, None);
}

#[tokio::test]
async fn what_is_named_wasm_and_is_not_is_told_with_its_first_bytes() {
    let node = Node::new();
    node.write("lower/empty.wasm", b"");
    node.write("lower/text.wasm", b"hello\n");
    node.write("lower/binary.wasm", b"\x7fELF\x02\x01");
    assert_eq!(
        node.error("/empty.wasm").await,
        "/empty.wasm: the file is empty, not a wasm module or component"
    );
    assert_eq!(
        node.error("/text.wasm").await,
        r#"/text.wasm: not a wasm module or component: it begins with "hello\n", not with \0asm"#
    );
    assert!(
        node.error("/binary.wasm")
            .await
            .contains("it begins with 7f 45 4c 46 02 01, not")
    );
}

#[tokio::test]
async fn folders_and_devices_are_refused_by_name() {
    let node = Node::new();
    node.write("lower/srv/app.wasm/inner", b"");
    assert_eq!(
        node.error("/srv/app.wasm").await,
        "exec: \"/srv/app.wasm\": is a directory: name the file in it"
    );
    assert_eq!(
        node.error("..").await,
        "exec: \"/srv/..\": is a directory: name the file in it"
    );
}

#[tokio::test]
async fn a_containerd_that_cannot_be_asked_is_an_error_and_never_native() {
    let node = Node::new();
    node.write("lower/bin/sh", b"#!/bin/true");
    for entry in ["sh", "missing.wasm"] {
        let message = node.error(entry).await;
        assert!(
            message.contains("connecting to containerd at") && message.contains("no-containerd.sock"),
            "{message}"
        );
    }
}

#[tokio::test]
async fn an_empty_first_argument_is_no_entry_point() {
    assert_eq!(
        Node::new().error("").await,
        "the container has no entry point: set process.args (in Kubernetes, the container's command)"
    );
}

/// A volume of the node's directory `source` at `destination`.
fn bind(node: &Node, source: &str, destination: &str) -> Volume {
    Volume {
        destination: destination.into(),
        content: Content::Bind {
            source: node.folder.path().join(source),
            recursive: true,
        },
    }
}

fn mount(content: Content, destination: &str) -> Volume {
    Volume {
        destination: destination.into(),
        content,
    }
}

#[tokio::test]
async fn a_volume_hides_the_images_program_and_its_own_is_copied() {
    let node = Node::new();
    node.write("lower/v/app.wasm", WASM);
    node.write("lower/app.wasm", WASM);
    let other = b"\0asm\x0d\0\x01\0";
    node.write("volume/app.wasm", other);
    let found = async |path: &str, volumes| match node.resolve_with(&[path], volumes).await.expect("resolved") {
        Program::Wasm(wasm) => wasm,
        Program::Native => panic!("{path} is native"),
    };
    let wasm = found("/v/app.wasm", vec![bind(&node, "volume", "/v")]).await;
    assert_eq!(wasm.digest, Digest::of(other));
    assert!(matches!(wasm.source, Source::Copy(_)));
    let wasm = found("/v/app.wasm", vec![bind(&node, "volume/app.wasm", "/v/app.wasm")]).await;
    assert_eq!(wasm.digest, Digest::of(other), "a volume that is a file");
    let wasm = found("/app.wasm", vec![bind(&node, "volume", "/v")]).await;
    assert!(
        matches!(wasm.source, Source::File(_)),
        "what no volume hides is not copied"
    );
}

#[tokio::test]
async fn what_a_kernel_file_system_may_hold_is_the_native_runtimes() {
    let node = Node::new();
    node.write("lower/proc/app", WASM);
    let proc = || vec![mount(Content::Unknown, "/proc")];
    // containerd, which is not there, says first that the image has no wasm layers.
    let error = node
        .resolve_with(&["/proc/app"], proc())
        .await
        .expect_err("no containerd");
    assert!(error.to_string().contains("connecting to containerd"), "{error}");
}
