//! A node as administrators have them: `containerd config default`, and a table for our handler.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::containerd::{Node, Version};
use crate::cri::PAUSE;
use crate::image_builder::Image;

/// The key by which CRI pulls images itself, from containerd 2.1 on.
pub const LOCAL_PULL: (&str, &str) = ("use_local_image_pull", "true");

/// Starts the daemon again with its default configuration, in which only those keys differ that keep the node apart from the
/// machine, what a machine without CAP_SYS_RESOURCE or a way to the internet needs, and `more`.
#[track_caller]
pub fn configure(node: &mut Node, more: &[(&str, &str)]) {
    let config = config(node, more);
    node.replace_config(config);
    let pause = Image::with_files("pause", &[("/pause", b"never executed")]);
    node.import_into(&pause, "k8s.io").ok();
}

fn config(node: &Node, more: &[(&str, &str)]) -> String {
    let folder = node.folder.display();
    let mut keys = format!(
        "root \"{folder}/root\"\n\
         state \"{folder}/state\"\n\
         imports [\"{folder}/conf.d/*.toml\"]\n\
         grpc.address \"{folder}/containerd.sock\"\n\
         ttrpc.address \"{folder}/containerd.sock.ttrpc\"\n\
         opt.path \"{folder}/opt\"\n\
         cni.conf_dir \"{folder}/cni\"\n\
         restrict_oom_score_adj true\n\
         pinned_images.sandbox|sandbox_image {PAUSE:?}\n"
    );
    if node.version != Version::V1_6 {
        keys.push_str(&format!("nri.v1.nri.socket_path \"{folder}/nri.sock\"\n"));
    }
    for (key, value) in more {
        keys.push_str(&format!("{key} {value}\n"));
    }
    let (_, plugin) = node.version.format();
    let handler = format!("plugins.\"{plugin}\".containerd.runtimes.wasi");
    format!(
        "{}\n[{handler}]\nruntime_type = \"io.containerd.wasi.v1\"\n",
        stock(node, &keys)
    )
}

/// What `hack/stock-config` prints for this node's containerd.
#[track_caller]
fn stock(node: &Node, keys: &str) -> String {
    let crate_folder = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests");
    let mut script = Command::new(Path::new(&crate_folder).join("../hack/stock-config"))
        .arg(node.version.folder().join("containerd"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    script.stdin.take().unwrap().write_all(keys.as_bytes()).unwrap();
    let output = script.wait_with_output().unwrap();
    assert!(output.status.success(), "hack/stock-config: {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}
