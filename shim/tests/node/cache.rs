//! Artifacts: compiled once, read never again, trusted only when they are ours. Shown by counters, not by time.

use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::containerd::Node;
use crate::guests::Probe;
use crate::image_builder::Image;
use crate::server;

const SAY: [&str; 3] = ["/probe.wasm", "say", "hello"];

fn image(name: &str, probe: Probe) -> Image {
    Image::with_files(name, &[("/probe.wasm", &probe.bytes())])
}

/// Compilations, cache hits and whole reads of wasm files since the server started.
#[track_caller]
fn counts(node: &Node) -> [u64; 3] {
    let status = server::status(node);
    ["artifacts.compiled", "artifacts.hits", "images.files_read"].map(|path| server::count(&status, path))
}

/// Ends the server at once, as a crash would, and waits until it is gone.
fn kill_server(node: &Node) {
    kill_process(Pid::from_raw(server::pid(node)).unwrap(), Signal::KILL).unwrap();
    crate::command::eventually("the server is gone", std::time::Duration::from_secs(10), || {
        server::pids_of(node, "serve").is_empty().then_some(())
    });
}

/// The compiled files in the cache.
fn artifacts(node: &Node) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![node.cache()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                open.push(entry.path());
            } else if metadata.len() > 100_000 {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

#[track_caller]
fn say(node: &Node, image: &Image) {
    assert_eq!(node.run(image).args(&SAY).finish().ok().stdout, "hello\n");
}

/// Runs an image, lets `damage` at its artifact, and expects the next server to compile it anew.
fn damaged_is_compiled_again(node: &mut Node, damage: impl FnOnce(&PathBuf)) {
    node.configure("idle_timeout = 2");
    let image = image("damaged", Probe::P2);
    node.import(&image);
    say(node, &image);
    kill_server(node);
    let [artifact] = artifacts(node).try_into().unwrap();
    damage(&artifact);
    say(node, &image);
    assert_eq!(counts(node)[..2], [1, 0], "compiled and hits of the second server");
    kill_server(node);
    say(node, &image);
    assert_eq!(counts(node)[..2], [0, 1], "compiled and hits of the third server");
}

on_every_containerd! {
    fn the_second_start_of_an_image_neither_compiles_nor_reads_it(node) {
        node.configure("idle_timeout = 2");
        for (number, probe) in Probe::WASM.into_iter().enumerate() {
            let image = image(&format!("second{number}"), probe);
            node.import(&image);
            say(node, &image);
            let [compiled, hits, read] = counts(node);
            assert_eq!(compiled, number as u64 + 1, "{probe:?}");
            say(node, &image);
            say(node, &image);
            assert_eq!(counts(node), [compiled, hits + 2, read], "{probe:?}");
        }
    }

    fn a_new_server_neither_compiles_nor_reads_what_an_old_one_knew(node) {
        node.configure("idle_timeout = 2");
        let image = image("new-server", Probe::P2);
        node.import(&image);
        say(node, &image);
        let first = server::pid(node);
        kill_server(node);
        say(node, &image);
        assert_ne!(server::pid(node), first);
        assert_eq!(counts(node), [0, 1, 0]);
    }

    fn starts_at_once_of_a_new_image_compile_it_once(node) {
        node.configure("idle_timeout = 2");
        let image = image("at-once", Probe::P3);
        node.import(&image);
        // Unpacked beforehand, or the clients wait for one another in containerd.
        node.run(&image).runtime("io.containerd.runc.v2").args(&["/none"]).fail();
        let running: Vec<_> = (0..8).map(|_| node.run(&image).args(&SAY).spawn()).collect();
        for run in running {
            assert_eq!(run.wait().ok().stdout, "hello\n");
        }
        assert_eq!(counts(node)[0], 1);
    }

    fn a_truncated_artifact_is_compiled_again(node) {
        damaged_is_compiled_again(node, |path| {
            let length = fs::metadata(path).unwrap().len();
            fs::File::options().write(true).open(path).unwrap().set_len(length / 2).unwrap();
        });
    }

    fn an_altered_artifact_is_compiled_again(node) {
        damaged_is_compiled_again(node, |path| {
            let mut bytes = fs::read(path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(path, bytes).unwrap();
        });
    }

    fn a_foreign_artifact_is_compiled_again(node) {
        damaged_is_compiled_again(node, |path| {
            // A file of the same size that somebody put in its place.
            let length = fs::metadata(path).unwrap().len();
            fs::remove_file(path).unwrap();
            fs::write(path, vec![0x90; length as usize]).unwrap();
        });
    }

    fn an_artifact_of_another_owner_is_compiled_again(node) {
        damaged_is_compiled_again(node, |path| chown(path, Some(1000), Some(1000)).unwrap());
    }

    fn a_full_cache_folder_keeps_no_image_from_running(node) {
        node.configure("idle_timeout = 0");
        fs::create_dir(node.cache()).unwrap();
        mount("kubewasi-full", node.cache(), "tmpfs", MountFlags::empty(), Some(c"size=64k,mode=0700")).unwrap();
        let image = image("full", Probe::P2);
        node.import(&image);
        say(node, &image);
        say(node, &image);
        node.log_line(&["level=warning", "artifact could not be kept", "No space left"]);
        crate::command::eventually("the server has ended", std::time::Duration::from_secs(10), || {
            server::pids_of(node, "serve").is_empty().then_some(())
        });
        unmount(node.cache(), UnmountFlags::empty()).unwrap();
    }

    fn a_read_only_cache_folder_keeps_no_image_from_running(node) {
        node.configure("idle_timeout = 0");
        fs::create_dir(node.cache()).unwrap();
        mount("kubewasi-ro", node.cache(), "tmpfs", MountFlags::RDONLY, Some(c"mode=0700")).unwrap();
        let image = image("read-only", Probe::P2);
        node.import(&image);
        say(node, &image);
        node.log_line(&["level=warning", "artifact could not be kept", "Read-only file system"]);
        crate::command::eventually("the server has ended", std::time::Duration::from_secs(10), || {
            server::pids_of(node, "serve").is_empty().then_some(())
        });
        unmount(node.cache(), UnmountFlags::empty()).unwrap();
    }
}
