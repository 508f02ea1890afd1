//! Hosts and images that cannot be worked with: each is told of with its reason, nothing is touched, and nothing else on the
//! node suffers.

use anyhow::{Context, Result, ensure};
use kubewasi_e2e::namespace::{Namespace, images};
use kubewasi_e2e::node::{Node, difference};
use kubewasi_e2e::release;
use kubewasi_e2e::runtime::{self, SECOND};
use serde_json::json;

use crate::idle::{Idle, start_idle_on};

/// How a host is made bad, and good again.
struct Case {
    reason: &'static str,
    said: &'static str,
    /// Of the host.
    spoil: &'static str,
    mend: &'static str,
    /// The shim's image, in the folder of the tests' images.
    shim: &'static str,
}

/// The way back for what changes containerd's configuration.
const PUT_BACK: &str = "cd /etc/containerd; mv .e2e config.toml; rm -rf odd";

const CASES: &[Case] = &[
    Case {
        reason: "ConfigUnparsable",
        said: "config.toml does not parse",
        spoil: "cd /etc/containerd; cp -a config.toml .e2e; echo '[[[' >>config.toml",
        mend: PUT_BACK,
        shim: "shim-next",
    },
    Case {
        reason: "HandlerTaken",
        said: "\"wasi-second\" is in /etc/containerd/config.toml already, and is not ours",
        spoil: r#"cd /etc/containerd; cp -a config.toml .e2e
            plugin=io.containerd.cri.v1.runtime; grep -q '^version *= *2' config.toml && plugin=io.containerd.grpc.v1.cri
            echo "[plugins.\"$plugin\".containerd.runtimes.wasi-second]" >>config.toml
            echo 'runtime_type = "io.containerd.runc.v2"' >>config.toml"#,
        mend: PUT_BACK,
        shim: "shim-next",
    },
    Case {
        reason: "ConfigImports",
        said: "format version 9",
        spoil: r#"cd /etc/containerd; cp -a config.toml .e2e; mkdir odd; echo 'version = 9' >odd/one.toml
            { echo 'imports = ["/etc/containerd/odd/*.toml"]'; grep -v '^imports = ' .e2e; } >config.toml"#,
        mend: PUT_BACK,
        shim: "shim-next",
    },
    Case {
        reason: "ConfigImports",
        said: "/etc/containerd/nowhere.toml",
        spoil: r#"cd /etc/containerd; cp -a config.toml .e2e
            { echo 'imports = ["/etc/containerd/nowhere.toml"]'; grep -v '^imports = ' .e2e; } >config.toml"#,
        mend: PUT_BACK,
        shim: "shim-next",
    },
    Case {
        reason: "ReadOnly",
        said: "/etc/containerd is on a read-only file system",
        spoil: "mount --bind /etc/containerd /etc/containerd; mount -o remount,bind,ro /etc/containerd",
        mend: "umount /etc/containerd",
        shim: "shim-next",
    },
    Case {
        reason: "RestartEndsPods",
        said: "KillMode=control-group",
        spoil: r"mkdir -p /run/systemd/system/containerd.service.d; cd /run/systemd/system/containerd.service.d
            printf '[Service]\nKillMode=control-group\n' >90-e2e.conf; systemctl daemon-reload",
        mend: "rm /run/systemd/system/containerd.service.d/90-e2e.conf; systemctl daemon-reload",
        shim: "shim-next",
    },
    Case {
        reason: "BadShimImage",
        said: "has no /containerd-shim-wasi-v1",
        spoil: "true",
        mend: "true",
        shim: "busybox",
    },
    Case {
        reason: "BadShimImage",
        said: "is for arm64, this node is amd64",
        spoil: "true",
        mend: "true",
        shim: "alien",
    },
];

#[tokio::test]
#[ignore = "minutes long: part of make e2e-full"]
async fn a_host_or_image_that_is_no_good_is_told_of_and_nothing_is_touched() -> Result<()> {
    Namespace::with("refusals", async |namespace| {
        let cluster = &namespace.cluster;
        release::ready(cluster, json!({})).await?;
        let node = Node::first(namespace).await?;
        let idle = Idle::everywhere(namespace, release::RUNTIME).await?;
        let (files, containerd) = (node.files_at_rest().await?, node.containerd().await?);
        for case in CASES {
            node.run(case.spoil).await?;
            let refused = refused(namespace, &node, case).await;
            let deleted = runtime::delete(cluster, SECOND).await;
            node.run(case.mend).await?;
            refused.with_context(|| case.said)?;
            deleted.with_context(|| case.said)?;
        }
        let left = difference(&files, &node.files().await?);
        ensure!(left.is_empty(), "{}: {left:#?}", node.name);
        ensure!(
            node.containerd().await? == containerd,
            "containerd of {} was restarted",
            node.name
        );
        idle.live_on(namespace).await?;
        runtime::settled(cluster, release::RUNTIME).await.map(drop)
    })
    .await
}

async fn refused(namespace: &Namespace, node: &Node<'_>, case: &Case) -> Result<()> {
    let cluster = &namespace.cluster;
    let files = node.files().await?;
    let spec = json!({
        "nodeSelector": {"kubernetes.io/hostname": node.name},
        "shim": {"image": format!("{}/{}:e2e", images(), case.shim)},
    });
    runtime::apply_second(cluster, spec).await?;
    let message = runtime::needs_attention(cluster, SECOND, &node.name, case.reason).await?;
    eprintln!("{}: {message}", case.reason);
    ensure!(message.contains(case.said), "{message}");
    let touched = difference(&files, &node.files().await?);
    ensure!(touched.is_empty(), "{}: {touched:#?}", case.reason);
    let labelled = runtime::ready_nodes(cluster, SECOND).await?;
    ensure!(labelled.is_empty(), "labelled without a proof: {labelled:?}");
    // Whoever was there stays there.
    ensure!(
        runtime::ready_nodes(cluster, release::RUNTIME)
            .await?
            .contains(&node.name)
    );
    Ok(())
}

#[tokio::test]
#[ignore = "minutes long: part of make e2e-full"]
async fn a_full_disk_fails_the_plan_with_what_to_mend_and_room_lets_it_go_on() -> Result<()> {
    Namespace::with("full-disk", async |namespace| {
        let cluster = &namespace.cluster;
        release::ready(cluster, json!({})).await?;
        let node = Node::first(namespace).await?;
        let files = node.files_at_rest().await?;
        let here = json!({"nodeSelector": {"kubernetes.io/hostname": node.name}});
        // No room for the shim; and none for anything at all, not even for the journal.
        for (room, wanted) in [("size=1m", "containerd-shim-wasi-v1"), ("nr_inodes=1", "journal.json")] {
            node.run(&format!(
                "mkdir /opt/kubewasi/second; mount -t tmpfs -o {room} e2e /opt/kubewasi/second"
            ))
            .await?;
            let failed = async {
                runtime::apply_second(cluster, here.clone()).await?;
                let message = runtime::needs_attention(cluster, SECOND, &node.name, "Failed").await?;
                eprintln!("{room}: {message}");
                for said in ["StageShim, rolled back", wanted, "make room there"] {
                    ensure!(message.contains(said), "{message}");
                }
                ensure!(runtime::ready_nodes(cluster, SECOND).await?.is_empty());
                Ok(())
            }
            .await;
            node.run("umount /opt/kubewasi/second").await?;
            failed?;
            runtime::retry(cluster, SECOND).await?;
            runtime::settled(cluster, SECOND).await?;
            start_idle_on(namespace, &node.name, "guest", SECOND).await?;
            namespace.kubectl(&["delete", "pod", "guest"]).await?;
            runtime::delete(cluster, SECOND).await?;
            let left = difference(&files, &node.files().await?);
            ensure!(left.is_empty(), "{}: {left:#?}", node.name);
        }
        Ok(())
    })
    .await
}
