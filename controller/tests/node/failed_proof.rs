//! What no module runs with gives way to what was there before.

use std::fs;

use kubewasi_controller::api::wasm_node::Step;
use kubewasi_controller::node::smoke;
use kubewasi_controller::node::transaction::Progress;
use kubewasi_controller::node::work::StepError;
use serde_json::{Value, json};

use crate::containerd::{Node, Version, permitted};
use crate::steps::{plan, step};

/// Takes all steps of the plan for a wish with these options, and says how the last one ended.
async fn options(node: &Node, options: Value) -> Result<(), StepError> {
    let containerd = node.running().await;
    let planned = plan(node, &containerd, json!({"options": options})).await;
    assert_eq!(planned.plan.steps, [Step::WriteOptions, Step::Prove]);
    let journal = permitted(node, planned);
    step(node, &containerd, Step::WriteOptions, &journal).await.unwrap();
    step(node, &containerd, Step::Prove, &journal).await
}

#[tokio::test]
async fn options_that_no_module_runs_with_give_way_to_those_of_before() {
    Node::with(Version::V2_4, async |node: &Node| {
        node.install().await;
        let cache = node.folder.join("cache").display().to_string();
        options(node, json!({"cache_dir": cache, "idle_timeout": 1}))
            .await
            .unwrap();
        let digest = kubewasi_controller::node::shim::current(&node.layout).unwrap();
        let file = node.layout.options(&digest);
        let before = fs::read_to_string(&file).unwrap();
        let kept = fs::read(node.layout.kept()).unwrap();

        let failed = options(node, json!({"log": "shim=loud"})).await.unwrap_err();
        assert!(failed.rolled_back(Step::Prove), "{failed}");
        assert!(
            failed.to_string().ends_with("the options of before are back"),
            "{failed}"
        );
        assert_eq!(fs::read_to_string(&file).unwrap(), before);
        assert_eq!(fs::read(node.layout.kept()).unwrap(), kept);
        smoke::run(&node.socket(), &node.layout, &node.health().await, "wasi")
            .await
            .unwrap();
    })
    .await;
}

/// A folder that somebody chose for the artifacts may have more in it.
#[tokio::test]
async fn an_uninstallation_removes_artifacts_and_nothing_else_of_their_folder() {
    Node::with(Version::V2_4, async |node: &Node| {
        node.install().await;
        let cache = node.folder.join("cache");
        options(
            node,
            json!({"cache_dir": cache.display().to_string(), "idle_timeout": 1}),
        )
        .await
        .unwrap();
        assert!(
            fs::read_dir(&cache).unwrap().count() > 1,
            "the module's artifact is there"
        );
        let other = cache.join("photos");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("1.png"), "").unwrap();

        let containerd = node.running().await;
        let planned = plan(node, &containerd, json!({"state": "Removed"})).await;
        let mut order = node.order(planned.change.unwrap(), false).await;
        order.cache = Some(cache.clone());
        assert_eq!(node.transact(&order).await, Progress::Committed);
        let left: Vec<_> = fs::read_dir(&cache)
            .unwrap()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        assert_eq!(left, [other]);
    })
    .await;
}
