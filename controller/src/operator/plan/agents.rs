//! The DaemonSet of a runtime's agents, whose pod is spelled out permission by permission.
//!
//! It runs where the controller asks for it by a label, not where the runtime's selector matches: a node that is no
//! longer selected needs its agent to be cleaned, and a node that an older runtime has needs none.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetUpdateStrategy, RollingUpdateDaemonSet};
use k8s_openapi::api::core::v1::{
    AppArmorProfile, Capabilities, ConfigMapProjection, Container, DownwardAPIProjection, DownwardAPIVolumeFile,
    EmptyDirVolumeSource, EnvVar, EnvVarSource, HostPathVolumeSource, KeyToPath, LocalObjectReference,
    ObjectFieldSelector, PodSpec, PodTemplateSpec, ProjectedVolumeSource, ResourceRequirements, SELinuxOptions,
    SeccompProfile, SecurityContext, ServiceAccountTokenProjection, Toleration, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::classes::owner;
use crate::api::labels;
use crate::api::wasm_node::digest;
use crate::operator::view::View;
use crate::operator::write::{Seen, Write};

/// What becomes of the DaemonSet, and the generation of it that is right.
pub fn decide(view: &View) -> (Vec<Write>, Option<i64>) {
    if view.is_deleting() && !view.has_wasm_nodes() {
        let delete = view
            .agents
            .as_ref()
            .map(|agents| Write::DeleteAgents(Seen::of(agents.as_ref())));
        return (delete.into_iter().collect(), None);
    }
    let wanted = daemon_set(view);
    let applied = view.runtime.status.as_ref().and_then(|status| status.agents_generation);
    match &view.agents {
        Some(agents) if agents.annotations().get(labels::APPLIED) == wanted.annotations().get(labels::APPLIED) => {
            let generation = agents.metadata.generation;
            if generation == applied {
                return (Vec::new(), generation);
            }
            // Somebody changed it, or we did and have not written that down: applying again makes both right. Should
            // it change the object, its new generation brings us back here.
            (vec![Write::ApplyAgents(Box::new(wanted))], generation)
        }
        _ => (vec![Write::ApplyAgents(Box::new(wanted))], applied),
    }
}

/// The DaemonSet's name.
pub fn name(runtime: &str) -> String {
    format!("kubewasi-agent-{runtime}")
}

fn daemon_set(view: &View) -> DaemonSet {
    let selector: BTreeMap<String, String> = [
        ("app.kubernetes.io/name".to_owned(), "kubewasi-agent".to_owned()),
        (labels::RUNTIME.to_owned(), view.name()),
    ]
    .into();
    let spec = DaemonSetSpec {
        selector: LabelSelector {
            match_labels: Some(selector.clone()),
            ..LabelSelector::default()
        },
        template: PodTemplateSpec {
            metadata: Some(ObjectMeta {
                labels: Some(selector.clone()),
                ..ObjectMeta::default()
            }),
            spec: Some(pod(view)),
        },
        // A restart of an agent changes nothing on its node, and it is permits that pace a rollout.
        update_strategy: Some(DaemonSetUpdateStrategy {
            type_: Some("RollingUpdate".to_owned()),
            rolling_update: Some(RollingUpdateDaemonSet {
                max_unavailable: Some(IntOrString::String("100%".to_owned())),
                ..RollingUpdateDaemonSet::default()
            }),
        }),
        ..DaemonSetSpec::default()
    };
    let applied = digest(&serde_json::json!([spec, selector]).to_string());
    DaemonSet {
        metadata: ObjectMeta {
            name: Some(name(&view.name())),
            namespace: Some(view.settings.namespace.clone()),
            labels: Some(selector),
            annotations: Some([(labels::APPLIED.to_owned(), applied)].into()),
            owner_references: Some(vec![owner(view)]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

fn pod(view: &View) -> PodSpec {
    let spec = &view.runtime.spec;
    let settings = &view.settings;
    let mut secrets: Vec<LocalObjectReference> = Vec::new();
    let of_agent = settings.agent_pull_secrets.iter();
    for name in of_agent.chain(spec.shim.image_pull_secrets.iter().map(|secret| &secret.name)) {
        // Whoever gives both the same, as the chart does, would have an apply refused: the names are keys.
        if secrets.iter().all(|secret| secret.name != *name) {
            secrets.push(LocalObjectReference { name: name.clone() });
        }
    }
    let mut tolerations = spec.tolerations.clone();
    tolerations.extend(spec.startup_taint.iter().map(|key| Toleration {
        key: Some(key.clone()),
        operator: Some("Exists".to_owned()),
        ..Toleration::default()
    }));
    PodSpec {
        init_containers: Some(vec![tools(view), shim(view)]),
        containers: vec![agent(view)],
        volumes: Some(volumes()),
        node_selector: Some(
            [
                (labels::agent(&view.name()), labels::WANTED.to_owned()),
                ("kubernetes.io/os".to_owned(), "linux".to_owned()),
            ]
            .into(),
        ),
        tolerations: (!tolerations.is_empty()).then_some(tolerations),
        image_pull_secrets: (!secrets.is_empty()).then_some(secrets),
        service_account_name: Some(settings.agent_service_account.clone()),
        // The projected token below is the same one, and named.
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        // /proc of the host tells which process listens on a containerd socket, and what it was started with.
        host_pid: Some(true),
        priority_class_name: Some("system-node-critical".to_owned()),
        termination_grace_period_seconds: Some(5),
        ..PodSpec::default()
    }
}

/// The agent's own binary, which then copies the shim out of an image that has nothing else.
fn tools(view: &View) -> Container {
    Container {
        name: "tools".to_owned(),
        image: Some(view.settings.agent_image.clone()),
        image_pull_policy: Some(view.settings.agent_pull_policy.clone()),
        command: Some(words(["/kubewasi-node", "copy", "/kubewasi-node", "/tools"])),
        volume_mounts: Some(vec![mount("tools", "/tools", false)]),
        resources: Some(resources()),
        security_context: Some(root_alone()),
        ..Container::default()
    }
}

/// The shim's image: the kubelet pulls it, with its mirrors, secrets and architecture. An image without our binary is
/// the agent's to report, so it does not fail here.
fn shim(view: &View) -> Container {
    let shim = &view.runtime.spec.shim;
    Container {
        name: "shim".to_owned(),
        image: Some(shim.image.clone()),
        image_pull_policy: Some(format!("{:?}", shim.image_pull_policy)),
        command: Some(words([
            "/tools/kubewasi-node",
            "copy",
            "--optional",
            "/containerd-shim-wasi-v1",
            "/staging",
        ])),
        volume_mounts: Some(vec![
            mount("tools", "/tools", true),
            mount("staging", "/staging", false),
        ]),
        resources: Some(resources()),
        security_context: Some(root_alone()),
        ..Container::default()
    }
}

fn agent(view: &View) -> Container {
    let value = |name: &str, value: &str| EnvVar {
        name: name.to_owned(),
        value: Some(value.to_owned()),
        value_from: None,
    };
    let field = |name: &str, path: &str| EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: Some("v1".to_owned()),
                field_path: path.to_owned(),
            }),
            ..EnvVarSource::default()
        }),
    };
    Container {
        name: "agent".to_owned(),
        image: Some(view.settings.agent_image.clone()),
        image_pull_policy: Some(view.settings.agent_pull_policy.clone()),
        command: Some(words(["/kubewasi-node", "agent"])),
        env: Some(vec![
            value("KUBEWASI_RUNTIME", &view.name()),
            value("KUBEWASI_HANDLER", &view.runtime.spec.handler),
            value("KUBEWASI_SHIM_IMAGE", &view.runtime.spec.shim.image),
            field("NODE_NAME", "spec.nodeName"),
            field("POD_NAMESPACE", "metadata.namespace"),
            field("POD_UID", "metadata.uid"),
        ]),
        volume_mounts: Some(vec![
            VolumeMount {
                mount_propagation: Some("HostToContainer".to_owned()),
                ..mount("opt", "/opt", false)
            },
            mount("staging", "/staging", true),
            mount("token", "/var/run/secrets/kubernetes.io/serviceaccount", true),
        ]),
        resources: Some(resources()),
        security_context: Some(SecurityContext {
            capabilities: Some(Capabilities {
                drop: Some(words(["ALL"])),
                // To read /proc/PID/root and /proc/PID/exe of containerd.
                add: Some(words(["SYS_PTRACE"])),
            }),
            // Ubuntu's dbus-daemon refuses a confined peer, and so does SELinux without spc_t.
            app_armor_profile: Some(AppArmorProfile {
                type_: "Unconfined".to_owned(),
                localhost_profile: None,
            }),
            se_linux_options: Some(SELinuxOptions {
                type_: Some("spc_t".to_owned()),
                ..SELinuxOptions::default()
            }),
            ..root_alone()
        }),
        ..Container::default()
    }
}

/// Root and nothing else: the folders of an emptyDir are root's, the system bus and /proc/1/root want the host's.
fn root_alone() -> SecurityContext {
    SecurityContext {
        run_as_user: Some(0),
        run_as_group: Some(0),
        privileged: Some(false),
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities {
            drop: Some(words(["ALL"])),
            add: None,
        }),
        seccomp_profile: Some(runtime_default()),
        ..SecurityContext::default()
    }
}

fn runtime_default() -> SeccompProfile {
    SeccompProfile {
        type_: "RuntimeDefault".to_owned(),
        localhost_profile: None,
    }
}

fn resources() -> ResourceRequirements {
    let quantity = |name: &str, amount: &str| (name.to_owned(), Quantity(amount.to_owned()));
    ResourceRequirements {
        requests: Some([quantity("cpu", "10m"), quantity("memory", "32Mi")].into()),
        // Copying a shim of some 30 MB fills the page cache, which is charged and given back.
        limits: Some([quantity("memory", "128Mi")].into()),
        ..ResourceRequirements::default()
    }
}

fn volumes() -> Vec<Volume> {
    let empty = |name: &str| Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Volume::default()
    };
    vec![
        Volume {
            name: "opt".to_owned(),
            // Everything of ours is below /opt/kubewasi; a host that is refused gets not even an empty folder.
            host_path: Some(HostPathVolumeSource {
                path: "/opt".to_owned(),
                type_: Some("Directory".to_owned()),
            }),
            ..Volume::default()
        },
        empty("tools"),
        empty("staging"),
        Volume {
            name: "token".to_owned(),
            projected: Some(ProjectedVolumeSource {
                default_mode: None,
                sources: Some(token()),
            }),
            ..Volume::default()
        },
    ]
}

fn token() -> Vec<VolumeProjection> {
    vec![
        VolumeProjection {
            service_account_token: Some(ServiceAccountTokenProjection {
                audience: None,
                expiration_seconds: Some(3600),
                path: "token".to_owned(),
            }),
            ..VolumeProjection::default()
        },
        VolumeProjection {
            config_map: Some(ConfigMapProjection {
                name: "kube-root-ca.crt".to_owned(),
                items: Some(vec![KeyToPath {
                    key: "ca.crt".to_owned(),
                    path: "ca.crt".to_owned(),
                    mode: None,
                }]),
                optional: None,
            }),
            ..VolumeProjection::default()
        },
        VolumeProjection {
            downward_api: Some(DownwardAPIProjection {
                items: Some(vec![DownwardAPIVolumeFile {
                    path: "namespace".to_owned(),
                    field_ref: Some(ObjectFieldSelector {
                        api_version: Some("v1".to_owned()),
                        field_path: "metadata.namespace".to_owned(),
                    }),
                    ..DownwardAPIVolumeFile::default()
                }]),
            }),
            ..VolumeProjection::default()
        },
    ]
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(read_only),
        ..VolumeMount::default()
    }
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}
