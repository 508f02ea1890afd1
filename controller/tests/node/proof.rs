//! A proof holds while its facts do.

use std::fs;
use std::time::Duration;

use kubewasi_controller::node::host::Host;
use kubewasi_controller::node::proof::Facts;

use crate::containerd::Node;
use crate::on_every_containerd;

async fn facts(node: &Node) -> Facts {
    Facts::look(&Host::itself(), &node.running().await, &node.layout).unwrap()
}

on_every_containerd! {
    async fn a_proof_ends_with_a_restart_and_with_a_change_of_the_configuration_or_of_the_shim(node) {
        let prove = async || facts(node).await.prove("wish".into(), "version".into(), None);
        let proof = prove().await;
        // A start is told to the second, and the kernel's estimate of the boot may drift by one.
        tokio::time::sleep(Duration::from_secs(4)).await;
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
}
