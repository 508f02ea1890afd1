//! A helper that died is gone on with from any phase that it has recorded.

use std::fs;

use kubewasi_controller::node::transaction::Progress;

use crate::on_every_containerd;

on_every_containerd! {
    async fn a_helper_that_died_in_any_phase_is_gone_on_with(node) {
        let before = node.config_text();
        for (phase, is_written) in [
            (Progress::Checking, false),
            (Progress::Writing, false),
            (Progress::Writing, true),
            (Progress::Restarting, true),
            (Progress::Verifying, true),
        ] {
            fs::write(node.config(), &before).unwrap();
            node.restart().await.unwrap();
            let order = node.install_order().await;
            if is_written {
                fs::write(node.config(), order.change.as_ref().unwrap().edits[0].new.as_ref().unwrap()).unwrap();
            }
            if phase == Progress::Verifying {
                node.restart().await.unwrap();
            }
            fs::write(node.layout.progress(), serde_json::to_vec(&phase).unwrap()).unwrap();
            assert_eq!(node.transact(&order).await, Progress::Committed, "from {phase:?}, written: {is_written}");
            assert_eq!(node.handlers().await, ["runc", "wasi"]);
        }
    }

    async fn a_helper_that_died_while_it_rolled_back_is_gone_on_with(node) {
        let before = node.config_text();
        let order = node.install_order().await;
        fs::write(node.config(), order.change.as_ref().unwrap().edits[0].new.as_ref().unwrap()).unwrap();
        for _ in 0..2 {
            let phase = Progress::RollingBack("why".into());
            fs::write(node.layout.progress(), serde_json::to_vec(&phase).unwrap()).unwrap();
            let ended = node.transact(&order).await;
            assert_eq!(ended, Progress::RolledBack { reason: "why".into(), unhealthy: None });
            assert_eq!(node.config_text(), before);
        }
    }
}
