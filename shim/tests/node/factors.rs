//! Of the twelve factors (docs/twelve-factors.md) those that no other file shows.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use crate::container::{Run, root_folder, spec};
use crate::guests::Probe;

on_newest_containerd! {
    fn a_mounted_config_map_is_files_and_its_update_is_seen(node) {
        // As the kubelet writes one (pkg/volume/util/atomic_writer.go): a new folder, and one link that is renamed.
        let volume = node.folder.join("config");
        let write = |folder: &str, value: &str| {
            fs::create_dir_all(volume.join(folder)).unwrap();
            fs::write(volume.join(folder).join("greeting"), value).unwrap();
            symlink(folder, volume.join("..data_tmp")).unwrap();
            fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
        };
        write("..2026_01", "hello\n");
        symlink("..data/greeting", volume.join("greeting")).unwrap();
        for world in Probe::WASM {
            let root = root_folder(node, &[("probe.wasm", &world.bytes())]);
            let mut spec = spec(node, &root, &["/probe.wasm", "read", "/etc/config/greeting"]);
            let mount = json!({"destination": "/etc/config", "type": "bind", "source": volume, "options": ["rbind", "ro"]});
            spec["mounts"].as_array_mut().unwrap().push(mount);
            let read = || Run::of_spec(node, &spec).finish().ok().stdout;
            assert_eq!(read(), "hello\n", "{world:?}");
            write("..2026_02", "goodbye\n");
            assert_eq!(read(), "goodbye\n", "{world:?}");
            write("..2026_01", "hello\n");
        }
    }

    fn guests_of_one_image_share_nothing_that_they_write_in_memory(node) {
        let root = root_folder(node, &[("probe.wasm", &Probe::P2.bytes())]);
        let spec = spec(node, &root, &["/probe.wasm", "keyvalue"]);
        // The second would find the first one's count.
        for _ in 0..2 {
            assert!(Run::of_spec(node, &spec).finish().ok().stdout.contains("\n7\n"));
        }
    }
}
