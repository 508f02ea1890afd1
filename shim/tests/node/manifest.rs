//! The manifests of `examples/`, and what the kubelet makes of their containers: CRI's ContainerConfig.

use std::fs;
use std::path::{Path, PathBuf};

use kubewasi_testbed::script::hack;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::containerd::{Node, Version};
use crate::pod::Pod;

/// The objects of an example's one YAML file.
pub struct Manifest {
    objects: Vec<Value>,
    /// Where its volumes are, a folder each.
    volumes: PathBuf,
}

impl Manifest {
    /// Reads `examples/<example>/*.yaml`, and gives it empty volumes beside what its ConfigMaps and Secrets hold.
    pub fn of(node: &Node, example: &str) -> Manifest {
        let crate_folder = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests");
        let folder = Path::new(&crate_folder).join("../examples").join(example);
        let mut files: Vec<PathBuf> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
        let [file] = files.as_slice() else {
            panic!("{} has not one manifest: {files:?}", folder.display());
        };
        let text = fs::read_to_string(file).unwrap();
        let objects = serde_yaml_ng::Deserializer::from_str(&text)
            .map(|document| Value::deserialize(document).unwrap())
            .collect();
        let manifest = Manifest {
            objects,
            volumes: node.folder.join("volumes"),
        };
        for volume in manifest.pod()["volumes"].as_array().into_iter().flatten() {
            manifest.make_volume(volume);
        }
        manifest
    }

    /// The folder of a volume.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.volumes.join(name)
    }

    /// Starts the container `name` of this manifest's pod in `pod`, as the kubelet would, and returns its id. `edit` changes
    /// its ContainerConfig.
    #[track_caller]
    pub fn run(&self, pod: &Pod<'_>, name: &str, edit: impl FnOnce(&mut Value)) -> String {
        let container = self.container(name);
        pod.run(name, container["image"].as_str().unwrap(), &[], |config| {
            for (field, value) in [("command", &container["command"]), ("args", &container["args"])] {
                if !value.is_null() {
                    config[field] = value.clone();
                }
            }
            config["envs"] = list(&container["env"])
                .iter()
                .map(|variable| self.variable(variable))
                .collect();
            config["mounts"] = list(&container["volumeMounts"])
                .iter()
                .map(|mount| self.mount(mount))
                .collect();
            if let Some(limit) = container["resources"]["limits"]["memory"].as_str() {
                config["linux"]["resources"] = json!({"memory_limit_in_bytes": bytes(limit)});
            }
            edit(config);
        })
    }

    /// The command of a container's preStop hook.
    pub fn pre_stop(&self, name: &str) -> Vec<String> {
        let command = &self.container(name)["lifecycle"]["preStop"]["exec"]["command"];
        serde_json::from_value(command.clone()).unwrap()
    }

    fn pod(&self) -> &Value {
        let of = |object: &'_ Value| match object["kind"].as_str().unwrap() {
            "Pod" => Some("/spec"),
            "Job" | "Deployment" | "StatefulSet" => Some("/spec/template/spec"),
            "CronJob" => Some("/spec/jobTemplate/spec/template/spec"),
            _ => None,
        };
        let pod = self
            .objects
            .iter()
            .find_map(|object| object.pointer(of(object)?))
            .unwrap();
        assert_eq!(pod["runtimeClassName"], "wasi");
        pod
    }

    fn container(&self, name: &str) -> &Value {
        let pod = self.pod();
        let mut all = list(&pod["initContainers"]).iter().chain(list(&pod["containers"]));
        all.find(|container| container["name"] == name).unwrap()
    }

    /// The `data` or `stringData` of a ConfigMap or Secret.
    fn data(&self, kind: &str, name: &Value) -> &serde_json::Map<String, Value> {
        let is = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == *name;
        let object = self
            .objects
            .iter()
            .find(is)
            .unwrap_or_else(|| panic!("no {kind} {name}"));
        let field = if kind == "Secret" { "stringData" } else { "data" };
        object[field].as_object().unwrap()
    }

    fn variable(&self, variable: &Value) -> Value {
        let from = &variable["valueFrom"];
        let value = if let Some(key) = from.get("configMapKeyRef") {
            &self.data("ConfigMap", &key["name"])[key["key"].as_str().unwrap()]
        } else if let Some(key) = from.get("secretKeyRef") {
            &self.data("Secret", &key["name"])[key["key"].as_str().unwrap()]
        } else if let Some(field) = from.get("fieldRef") {
            assert_eq!(field["fieldPath"], "metadata.name");
            &json!("pod-0")
        } else {
            &variable["value"]
        };
        json!({"key": variable["name"], "value": value.as_str().unwrap()})
    }

    fn mount(&self, mount: &Value) -> Value {
        let read_only = mount["readOnly"].as_bool().unwrap_or(false);
        let folder = self.volume(mount["name"].as_str().unwrap());
        json!({"container_path": mount["mountPath"], "host_path": folder, "readonly": read_only})
    }

    fn make_volume(&self, volume: &Value) {
        let folder = self.volume(volume["name"].as_str().unwrap());
        fs::create_dir_all(&folder).unwrap();
        let files = if let Some(map) = volume.get("configMap") {
            self.data("ConfigMap", &map["name"])
        } else if let Some(secret) = volume.get("secret") {
            self.data("Secret", &secret["secretName"])
        } else {
            return;
        };
        for (name, text) in files {
            fs::write(folder.join(name), text.as_str().unwrap()).unwrap();
        }
    }
}

/// Builds an example's image, unless that has been done, and imports it for pods. `build` is what `hack/example` is told.
#[track_caller]
pub fn import_example(node: &Node, build: &[&str]) {
    let archive = hack("example", build).join("image.tar");
    // Unpacked now, as a pull would: containerd 2.x makes no snapshots of an imported image later.
    let mut args = vec!["--namespace", "k8s.io", "image", "import"];
    if node.version >= Version::V2_3 {
        args.push("--local");
    }
    args.push(archive.to_str().unwrap());
    node.ctr(&args).ok();
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A quantity of Kubernetes in mebibytes.
fn bytes(quantity: &str) -> u64 {
    let number = quantity
        .strip_suffix("Mi")
        .unwrap_or_else(|| panic!("{quantity} is not in Mi"));
    number.parse::<u64>().unwrap() << 20
}
