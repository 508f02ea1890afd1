//! A disk that is full at a step: the step fails with what to mend and leaves nothing behind, what is done already needs no
//! room, and with room it goes on.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use kubewasi_controller::api::wasm_node::{Step, Wish};
use kubewasi_controller::node::host::Host;
use kubewasi_controller::node::journal::Journal;
use kubewasi_controller::node::plan::{Observed, plan};
use kubewasi_controller::node::shim::Staged;
use kubewasi_controller::node::transaction::Progress;
use kubewasi_controller::node::work::Work;
use serde_json::json;

use crate::containerd::{Node, Version, permitted};

/// A file system in memory with so much room, and for some dozen files; it goes with its value.
struct Disk(PathBuf);

impl Disk {
    fn mount(folder: &Path, bytes: u64) -> Disk {
        fs::create_dir_all(folder).unwrap();
        let options = format!("size={bytes},nr_inodes=48");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "disk"]).arg(folder);
        assert!(mount.status().unwrap().success());
        Disk(folder.to_owned())
    }

    /// Leaves no room: neither for a byte nor for the smallest file.
    fn fill(&self) {
        fs::create_dir(self.0.join("full")).unwrap();
        let is_full = |error: std::io::Error| {
            assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
            false
        };
        let mut bytes = File::create(self.0.join("full/bytes")).unwrap();
        for size in [1 << 20, 1 << 10] {
            while bytes.write(&vec![0; size]).map_or_else(is_full, |_| true) {}
        }
        let mut number = 0;
        while File::create(self.0.join(format!("full/{number}"))).map_or_else(is_full, |_| true) {
            number += 1;
        }
    }

    fn free(&self) {
        fs::remove_dir_all(self.0.join("full")).unwrap();
    }

    /// Everything on it but what fills it.
    fn files(&self) -> BTreeSet<PathBuf> {
        below(&self.0)
            .into_iter()
            .filter(|path| !path.starts_with(self.0.join("full")))
            .collect()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A shim's server that is about to end may still run from it.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn below(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(below(&entry.path()));
        }
        found.insert(entry.path());
    }
    found
}

/// The journal of an installation, as the agent makes it on a host that has nothing yet.
async fn journal(node: &Node, staged: &Staged) -> Journal {
    let cache = node.folder.join("cache").display().to_string();
    let wish: Wish = serde_json::from_value(json!({
        "state": "Installed",
        "handler": "wasi",
        "shimImage": "registry/shim:1",
        "options": {"cache_dir": cache, "idle_timeout": 0},
        "containerdRestart": "Rolling",
    }))
    .unwrap();
    let planned = plan(
        &wish,
        Observed {
            staged: staged.digest.clone(),
            has_staged: false,
            current: None,
            options: None,
            change: node.configuration().await.install(&node.handler).await.unwrap(),
            listed: false,
            has_folder: false,
            cache: None,
        },
    );
    permitted(node, planned)
}

#[tokio::test]
async fn every_step_of_an_installation_fails_on_a_full_disk_and_is_done_with_room() {
    Node::with(Version::V2_4, async |node: &Node| {
        let staging = node.folder.join("staging");
        let staged = Staged::look(&staging).unwrap();
        let journal = journal(node, &staged).await;
        let (host, containerd) = (Host::itself(), node.running().await);
        let work = Work {
            host: &host,
            containerd: &containerd,
            layout: &node.layout,
            staging,
        };
        let room = [staged.path.as_path(), &std::env::current_exe().unwrap()];
        let room: u64 = room.iter().map(|path| fs::metadata(path).unwrap().len()).sum();

        // Room for folders and locks, but not for the shim.
        let disk = Disk::mount(node.layout.base(), 1 << 20);
        let error = work.step(Step::StageShim, &journal).await.unwrap_err();
        assert!(error.to_string().contains("make room there"), "{error}");
        let half: Vec<_> = disk.files().into_iter().filter(|path| path.is_file()).collect();
        assert_eq!(half, [node.layout.lock()]);
        drop(disk);

        let disk = Disk::mount(node.layout.base(), room + (16 << 20));
        let steps = [
            Step::StageShim,
            Step::WriteOptions,
            Step::SwitchShim,
            Step::RestartContainerd,
        ];
        for (number, step) in steps.into_iter().enumerate() {
            disk.fill();
            for done in &steps[..number] {
                work.step(*done, &journal).await.unwrap();
            }
            let before = disk.files();
            let error = work.step(step, &journal).await.unwrap_err();
            assert!(error.to_string().contains("make room there"), "{step:?}: {error}");
            assert!(error.rolled_back(step) && !error.waits(), "{step:?}: {error}");
            assert_eq!(disk.files(), before, "{step:?}");
            disk.free();
            // The restart is systemd's.
            if step != Step::RestartContainerd {
                work.step(step, &journal).await.unwrap();
            }
        }
        assert_eq!(node.transact(&node.install_order().await).await, Progress::Committed);

        let containerd = node.running().await;
        let work = Work {
            containerd: &containerd,
            ..work
        };
        disk.fill();
        let error = work.step(Step::Prove, &journal).await.unwrap_err();
        assert!(error.to_string().contains("make room there"), "{error}");
        disk.free();
        work.step(Step::Prove, &journal).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_configuration_on_a_full_disk_is_refused_and_one_that_filled_it_up_is_still_taken_back() {
    Node::with(Version::V2_4, async |node: &Node| {
        // As an administrator links it who keeps it elsewhere.
        let disk = Disk::mount(&node.folder.join("etc"), 1 << 20);
        let (before, file) = (node.config_text(), node.folder.join("etc/config.toml"));
        fs::write(&file, &before).unwrap();
        fs::remove_file(node.config()).unwrap();
        std::os::unix::fs::symlink(&file, node.config()).unwrap();
        let order = node.install_order().await;

        disk.fill();
        let Progress::Refused(reason) = node.transact(&order).await else {
            panic!("not refused")
        };
        assert!(reason.contains("make room there"), "{reason}");
        assert_eq!(node.config_text(), before);
        assert_eq!(disk.files(), [file.clone()].into());
        disk.free();

        fs::write(&file, order.change.as_ref().unwrap().edits[0].new.as_ref().unwrap()).unwrap();
        disk.fill();
        let phase = Progress::RollingBack("why".into());
        fs::write(node.layout.progress(), serde_json::to_vec(&phase).unwrap()).unwrap();
        let ended = node.transact(&order).await;
        assert_eq!(
            ended,
            Progress::RolledBack {
                reason: "why".into(),
                unhealthy: None
            }
        );
        assert_eq!(node.config_text(), before);
        disk.free();
    })
    .await;
}
