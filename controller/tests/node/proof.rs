//! A proof holds while its facts do.

use std::fs;
use std::time::Duration;

use kubewasi_controller::api::wasm_node::DisproofReason;
use kubewasi_controller::node::evidence::Evidence;
use kubewasi_controller::node::host::Host;
use kubewasi_controller::node::journal::{self, Kept};
use kubewasi_controller::node::layout::SHIM;
use kubewasi_controller::node::proof::Facts;

use crate::containerd::Node;
use crate::on_every_containerd;

/// A start is told to the second, and the kernel's estimate of the boot may drift by one: one after this is another.
const A_START: Duration = Duration::from_secs(4);

async fn facts(node: &Node) -> Facts {
    Facts::look(&Host::itself(), &node.running().await, &node.layout).unwrap()
}

on_every_containerd! {
    async fn a_proof_ends_with_a_restart_and_with_a_change_of_the_configuration_or_of_the_shim(node) {
        let prove = async || facts(node).await.prove("wish".into(), "version".into(), None);
        let proof = prove().await;
        tokio::time::sleep(A_START).await;
        assert!(facts(node).await.hold(&proof));
        node.restart().await.unwrap();
        assert!(!facts(node).await.hold(&proof));

        let proof = prove().await;
        fs::write(node.config(), format!("{}# edited\n", node.config_text())).unwrap();
        assert!(!facts(node).await.hold(&proof));

        let proof = prove().await;
        fs::remove_file(node.layout.stable()).unwrap();
        assert!(!facts(node).await.hold(&proof));
    }

    async fn what_was_installed_is_proven_and_disproven_also_where_its_host_is_refused(node) {
        install(node).await;
        let mut evidence = Evidence::default();
        look(node, &mut evidence).await;
        assert_eq!(evidence.proof.as_ref().unwrap().wish, "installed");

        // Somebody takes our table for a shim that can run the module as well. The containerd that runs has not heard of it.
        let theirs = node.folder.join("theirs").join(SHIM);
        fs::create_dir(theirs.parent().unwrap()).unwrap();
        fs::copy(node.layout.stable(), &theirs).unwrap();
        let stable = node.layout.stable().display().to_string();
        let taken = node.config_text().replace(&stable, &theirs.display().to_string());
        fs::write(node.config(), &taken).unwrap();
        look(node, &mut evidence).await;
        assert!(evidence.proof.is_some() && evidence.disproof.is_none(), "{evidence:?}");

        tokio::time::sleep(A_START).await;
        node.restart().await.unwrap();
        look(node, &mut evidence).await;
        assert_eq!(evidence.proof, None);
        assert_eq!(evidence.disproof.as_ref().unwrap().reason, DisproofReason::HandlerGone);

        fs::write(node.config(), taken.replace(&theirs.display().to_string(), &stable)).unwrap();
        node.restart().await.unwrap();
        look(node, &mut evidence).await;
        assert!(evidence.proof.is_some() && evidence.disproof.is_none(), "{evidence:?}");

        // A shim that does not run is told as often as it does not.
        fs::remove_file(node.layout.stable()).unwrap();
        std::os::unix::fs::symlink("/bin/false", node.layout.stable()).unwrap();
        for times in 1..3 {
            look(node, &mut evidence).await;
            assert_eq!(evidence.proof, None);
            let disproof = evidence.disproof.as_ref().unwrap();
            assert_eq!((disproof.reason, disproof.times), (DisproofReason::SmokeFailed, times));
        }
    }

    async fn a_proof_ends_with_a_restart_also_where_the_configuration_cannot_be_read(node) {
        install(node).await;
        let host = Host { root: node.folder.join("host"), ..Host::itself() };
        let sockets = host.root.join("run/containerd");
        fs::create_dir_all(&sockets).unwrap();
        // Another name of the same socket: a symbolic link would lead nowhere below the host's root.
        let listens = || {
            let _ = fs::remove_file(sockets.join("containerd.sock"));
            fs::hard_link(node.socket(), sockets.join("containerd.sock")).unwrap();
        };
        listens();
        let mut evidence = Evidence::default();
        look(node, &mut evidence).await;

        evidence.review_rest(&host, &node.layout, None).await.unwrap();
        let proof = evidence.proof.clone().unwrap();
        tokio::time::sleep(A_START).await;
        node.restart().await.unwrap();
        listens();
        evidence.review_rest(&host, &node.layout, None).await.unwrap();
        assert_eq!(evidence.proof, None);

        // Nothing is told of a containerd that is just being restarted.
        fs::remove_file(sockets.join("containerd.sock")).unwrap();
        evidence.learn(Some(&proof));
        evidence.review_rest(&host, &node.layout, None).await.unwrap();
        assert!(evidence.proof.is_some());
        fs::remove_file(node.layout.stable()).unwrap();
        evidence.review_rest(&host, &node.layout, None).await.unwrap();
        assert_eq!(evidence.proof, None);
    }
}

/// Installs the handler, as a host has it whose wish was fulfilled.
async fn install(node: &Node) {
    node.install().await;
    let kept = Kept {
        wish: "installed".into(),
    };
    journal::write(&node.layout.kept(), &kept).unwrap();
}

/// What an agent sees that refuses the host.
async fn look(node: &Node, evidence: &mut Evidence) {
    let (host, containerd) = (Host::itself(), node.running().await);
    evidence
        .look(&host, &containerd, &node.layout, "wasi", None)
        .await
        .unwrap();
}
