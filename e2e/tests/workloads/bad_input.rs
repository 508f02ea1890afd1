//! A pod whose image or spec is wrong says why, where its author looks first: in kubectl describe pod.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::{wait, workload};

/// What a pod adds to the one below that is right, and what its description is to say.
struct Case {
    name: &'static str,
    /// Fields of the container, as YAML.
    container: &'static str,
    /// Annotations of the pod, as YAML.
    annotations: &'static str,
    said: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        name: "empty",
        container: "{command: [/empty.wasm]}",
        annotations: "{}",
        said: &["/empty.wasm", "the file is empty"],
    },
    Case {
        name: "text",
        container: "{command: [/text.wasm]}",
        annotations: "{}",
        said: &["/text.wasm", "not a wasm module", "hello"],
    },
    Case {
        name: "truncated",
        container: "{command: [/half.wasm]}",
        annotations: "{}",
        said: &["/half.wasm", "unexpected end"],
    },
    Case {
        name: "odd-world",
        container: "{command: [/odd-world.wasm]}",
        annotations: "{}",
        said: &["/odd-world.wasm", "acme:job/work", "acme:db/query", "wasi:cli/run"],
    },
    Case {
        name: "unknown-import",
        container: "{command: [/unknown-import.wasm]}",
        annotations: "{}",
        said: &["env", "launch_rocket"],
    },
    Case {
        name: "no-entry-function",
        container: "{command: [/no-entry-function.wasm]}",
        annotations: "{}",
        said: &["_start"],
    },
    Case {
        name: "no-entry-point",
        container: "{}",
        annotations: "{}",
        said: &["no command specified"],
    },
    Case {
        name: "not-found",
        container: "{command: [/nowhere.wasm]}",
        annotations: "{}",
        said: &["/nowhere.wasm", "no such file or directory"],
    },
    Case {
        name: "no-image",
        container: "{command: [/empty.wasm], image: $IMAGES/nothing:e2e, imagePullPolicy: Never}",
        annotations: "{}",
        said: &["ErrImageNeverPull", "nothing:e2e"],
    },
    Case {
        name: "out-of-range",
        container: "{command: [/probe02.wasm, idle], image: $IMAGES/probe:e2e}",
        annotations: r#"{kubewasi.dev/http-port: "70000"}"#,
        said: &["kubewasi.dev/http-port: 70000 is out of range, it must be 0 to 65535"],
    },
    Case {
        name: "handlers-own",
        container: "{command: [/probe02.wasm, idle], image: $IMAGES/probe:e2e}",
        annotations: r#"{kubewasi.dev/cache-dir: /tmp}"#,
        said: &["kubewasi.dev/cache-dir"],
    },
];

fn manifest(case: &Case) -> Result<String> {
    let mut container: serde_yaml_ng::Mapping =
        serde_yaml_ng::from_str("{name: guest, image: $IMAGES/broken:e2e, imagePullPolicy: IfNotPresent}")?;
    container.extend(serde_yaml_ng::from_str::<serde_yaml_ng::Mapping>(case.container)?);
    let container = serde_json::to_string(&container)?;
    Ok(format!(
        r#"
apiVersion: v1
kind: Pod
metadata:
  name: {}
  annotations: {}
spec:
  runtimeClassName: wasi
  restartPolicy: Never
  containers: [{container}]
"#,
        case.name, case.annotations
    ))
}

#[tokio::test]
async fn each_pod_that_cannot_run_is_described_with_its_reason() -> Result<()> {
    Namespace::with("bad-input", async |namespace| {
        for case in CASES {
            namespace.create_from(&manifest(case)?).await?;
        }
        for case in CASES {
            described(namespace, case).await?;
        }
        Ok(())
    })
    .await
}

async fn described(namespace: &Namespace, case: &Case) -> Result<()> {
    wait::until(
        &format!("kubectl describe pod {} to say {:?}", case.name, case.said),
        async || namespace.kubectl(&["describe", "pod", case.name]).await,
        |described| case.said.iter().all(|words| described.contains(words)),
    )
    .await?;
    let pod: Pod = namespace.api().get(case.name).await?;
    let phase = pod
        .status
        .and_then(|status| status.phase)
        .context("a pod has a phase")?;
    assert_ne!(phase, "Succeeded", "pod {}", case.name);
    Ok(())
}

/// Each case is refused by itself: the node goes on.
#[tokio::test]
async fn a_good_pod_runs_on_a_node_that_refused_bad_ones() -> Result<()> {
    Namespace::with("good-after-bad", async |namespace| {
        namespace.create_from(&manifest(&CASES[0])?).await?;
        described(namespace, &CASES[0]).await?;
        namespace
            .create_from(
                r#"
apiVersion: v1
kind: Pod
metadata:
  name: good
spec:
  runtimeClassName: wasi
  restartPolicy: Never
  containers:
    - {name: guest, image: "$IMAGES/probe:e2e", imagePullPolicy: IfNotPresent, args: [say, good]}
"#,
            )
            .await?;
        workload::phase(namespace, "good", "Succeeded").await?;
        assert_eq!(workload::logs(namespace, "good", "guest").await?, "good\n");
        Ok(())
    })
    .await
}
