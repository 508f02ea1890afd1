//! Pods of wasm and native containers in any mix: what the kubelet makes of sidecars, init and debug containers.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::command::eventually;
use crate::containerd::Node;
use crate::cri::{crictl, exit_code, give_networks, prepare};
use crate::guests::Probe;
use crate::image_builder::Image;
use crate::pod::{PID_OF_CONTAINER, PID_OF_POD, PID_OF_TARGET, Pod, pid, pid_namespace, volume};

/// The names of a wasm and a native image that pods can use.
fn images(node: &mut Node) -> (String, String) {
    prepare(node);
    let (wasm, native) = (
        Image::with_files("mixed", &[("/probe.wasm", &Probe::P1.bytes())]),
        Image::busybox(),
    );
    node.import_into(&wasm, "k8s.io").ok();
    node.import_into(&native, "k8s.io").ok();
    (wasm.name, native.name)
}

/// A folder that containers share.
fn shared(node: &Node) -> PathBuf {
    let folder = node.folder.join("shared");
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Waits until the log of a container holds `words`.
#[track_caller]
fn says(pod: &Pod<'_>, name: &str, words: &str) {
    eventually(&format!("{name} says {words:?}"), Duration::from_secs(20), || {
        pod.log(name).contains(words).then_some(())
    });
}

/// A free port that no client is ever given: one that connects to a port nobody listens at yet, and is given that port
/// itself, is connected to itself.
pub fn port_to_listen_at() -> u16 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let first_of_clients: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
    // Tests that run side by side try different ones.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = first_of_clients / 2 + std::process::id() as u16 % 4000;
    loop {
        let port = start + NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(port < first_of_clients, "no port is free");
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}

on_every_containerd! {
    fn a_native_sidecar_and_a_wasm_main_container_share_a_volume(node) {
        let (wasm, native) = images(node);
        let folder = shared(node);
        let pod = Pod::start(node, PID_OF_CONTAINER);
        let script = "echo from native > /data/native; until grep wasm /data/wasm 2>/dev/null; do sleep 0.05; done; sleep 60";
        let sidecar = pod.run("sidecar", &native, &["sh", "-c", script], |config| volume(config, &folder, "/data"));
        eventually("the sidecar has written", Duration::from_secs(10), || folder.join("native").exists().then_some(()));
        let read = pod.run("read", &wasm, &["/probe.wasm", "read", "/data/native"], |config| volume(config, &folder, "/data"));
        assert_eq!(exit_code(node, &read), 0);
        says(&pod, "read", "from native");
        let main = pod.run("main", &wasm, &["/probe.wasm", "write", "/data/wasm", "from wasm"],
            |config| volume(config, &folder, "/data"));
        assert_eq!(exit_code(node, &main), 0);
        says(&pod, "sidecar", "from wasm");
        crictl(node, &["stop", "--timeout", "1", &sidecar]).ok();
        assert_eq!(exit_code(node, &sidecar), 137, "as pid 1 a shell ignores SIGTERM");
        pod.end();
    }

    fn init_containers_of_both_kinds_run_in_order_before_a_native_main_container_with_a_wasm_sidecar(node) {
        let (wasm, native) = images(node);
        let folder = shared(node);
        let pod = Pod::start(node, PID_OF_CONTAINER);
        let first = pod.run("init-1", &native, &["sh", "-c", "echo one > /data/order"], |config| volume(config, &folder, "/data"));
        assert_eq!(exit_code(node, &first), 0);
        let second = pod.run("init-2", &wasm, &["/probe.wasm", "write", "/data/second", "two"], |config| volume(config, &folder, "/data"));
        assert_eq!(exit_code(node, &second), 0);
        // A restartable init container: it stays while the main one runs.
        let sidecar = pod.run("sidecar", &wasm, &["/probe.wasm", "idle"], |_| ());
        let main = pod.run("main", &native, &["cat", "/data/order", "/data/second"], |config| volume(config, &folder, "/data"));
        assert_eq!(exit_code(node, &main), 0);
        says(&pod, "main", "one");
        says(&pod, "main", "two");
        crictl(node, &["stop", "--timeout", "5", &sidecar]).ok();
        assert_eq!(exit_code(node, &sidecar), 143);
        pod.end();
    }

    fn a_program_that_an_init_container_left_in_a_volume_is_run(node) {
        let (_, native) = images(node);
        let folder = shared(node);
        let pod = Pod::start(node, PID_OF_CONTAINER);
        let copy = "cat /bin/busybox > /tools/busybox; /bin/busybox chmod 755 /tools/busybox";
        let init = pod.run("init", &native, &["sh", "-c", copy], |config| volume(config, &folder, "/tools"));
        assert_eq!(exit_code(node, &init), 0);
        let main = pod.run("main", &native, &["/tools/busybox", "echo", "from the volume"], |config| volume(config, &folder, "/tools"));
        assert_eq!(exit_code(node, &main), 0);
        says(&pod, "main", "from the volume");
        pod.end();
    }

    fn a_native_proxy_and_its_client_meet_in_the_pods_network_beside_a_wasm_container(node) {
        let (wasm, native) = images(node);
        let folder = shared(node);
        let pod = Pod::start(node, PID_OF_CONTAINER);
        let port = port_to_listen_at();
        let serve = format!("until grep -q wasm /data/answer 2>/dev/null; do sleep 0.05; done; nc -l -p {port} < /data/answer");
        let proxy = pod.run("proxy", &native, &["sh", "-c", &serve], |config| volume(config, &folder, "/data"));
        let main = pod.run("main", &wasm, &["/probe.wasm", "write", "/data/answer", "written by wasm"],
            |config| volume(config, &folder, "/data"));
        assert_eq!(exit_code(node, &main), 0);
        let ask = format!("until nc 127.0.0.1 {port} < /dev/null; do sleep 0.05; done");
        let client = pod.run("client", &native, &["sh", "-c", &ask], |_| ());
        assert_eq!(exit_code(node, &client), 0);
        says(&pod, "client", "written by wasm");
        crictl(node, &["stop", "--timeout", "0", &proxy]).ok();
        pod.end();
    }

    fn in_a_shared_pid_namespace_a_native_container_sees_a_guest_and_cannot_reach_into_it(node) {
        let (wasm, native) = images(node);
        let pod = Pod::start(node, PID_OF_POD);
        let guest = pod.run("guest", &wasm, &["/probe.wasm", "idle"], |config| pid_namespace(config, PID_OF_POD, ""));
        says(&pod, "guest", "idle");
        let script = "for at in /proc/[0-9]*; do \
                        test -e $at/status && grep -q '^Name:.wasi' $at/status || continue; \
                        echo guest ${at#/proc/}; \
                        for file in mem maps environ fd/0; do \
                          if (: < $at/$file) 2> /dev/null; then echo REACHED $at/$file; fi; \
                        done; \
                        if ls $at/root/ > /dev/null 2>&1; then echo REACHED $at/root; fi; \
                      done; \
                      (: < /proc/self/mem) && echo can reach itself";
        let native = pod.run("native", &native, &["sh", "-c", script], |config| pid_namespace(config, PID_OF_POD, ""));
        assert_eq!(exit_code(node, &native), 0);
        says(&pod, "native", "can reach itself");
        let log = pod.log("native");
        // The holder is pid 1 of the namespace, and like a guest.
        assert!(log.matches(" guest ").count() >= 2, "{log}");
        assert!(!log.contains("REACHED"), "{log}");
        crictl(node, &["stop", "--timeout", "5", &guest]).ok();
        pod.end();
    }

    fn a_debug_container_joins_the_pid_namespace_of_a_guest(node) {
        let (wasm, native) = images(node);
        let pod = Pod::start(node, PID_OF_CONTAINER);
        let guest = pod.run("guest", &wasm, &["/probe.wasm", "idle"], |_| ());
        says(&pod, "guest", "idle");
        let debug = pod.run("debug", &native, &["sh", "-c", "grep ^Name: /proc/1/status; kill -TERM 1; sleep 60"],
            |config| pid_namespace(config, PID_OF_TARGET, &guest));
        says(&pod, "debug", "Name:\twasi");
        assert_eq!(exit_code(node, &guest), 143);
        // Its namespace ended with pid 1, the guest.
        assert_eq!(exit_code(node, &debug), 137);
        pod.end();
    }

    fn a_native_container_in_a_shared_pid_namespace_leaves_no_process_behind(node) {
        let (_, native) = images(node);
        let pod = Pod::start(node, PID_OF_POD);
        let script = "sleep 1000 & echo left $!; exit 3";
        let main = pod.run("main", &native, &["sh", "-c", script], |config| pid_namespace(config, PID_OF_POD, ""));
        assert_eq!(exit_code(node, &main), 3);
        says(&pod, "main", "left");
        let other = pod.run("other", &native, &["ps"], |config| pid_namespace(config, PID_OF_POD, ""));
        assert_eq!(exit_code(node, &other), 0);
        assert!(!pod.log("other").contains("sleep 1000"), "{}", pod.log("other"));
        pod.end();
    }

    fn an_oom_kill_of_a_native_container_is_the_reason(node) {
        let (_, native) = images(node);
        let pod = Pod::start(node, PID_OF_CONTAINER);
        let id = pod.run("main", &native, &["tail", "/dev/zero"],
            |config| config["linux"]["resources"] = json!({"memory_limit_in_bytes": 32 << 20}));
        assert_eq!(exit_code(node, &id), 137);
        eventually("the reason is OOMKilled", Duration::from_secs(5), || {
            crictl(node, &["inspect", &id]).ok().stdout.contains("\"OOMKilled\"").then_some(())
        });
        pod.end();
    }

    fn exec_stats_and_new_limits_reach_a_native_container_of_a_wasi_pod(node) {
        let (_, native) = images(node);
        let pod = Pod::start(node, PID_OF_CONTAINER);
        let id = pod.run("main", &native, &["sleep", "1000"],
            |config| config["linux"]["resources"] = json!({"memory_limit_in_bytes": 64 << 20}));
        let said = crictl(node, &["exec", "--sync", &id, "sh", "-c", "echo out; echo err >&2"]).ok();
        assert!(said.stdout.contains("out") && said.stdout.contains("err"), "{said}");
        crictl(node, &["exec", "--sync", &id, "sh", "-c", "exit 5"]).expect_refusal(&["exited with 5"]);
        crictl(node, &["exec", "--sync", &id, "/no/such"]).expect_refusal(&["/no/such", "no such file"]);
        let stats = crictl(node, &["stats", "--output", "json", "--id", &id]).ok().stdout;
        assert!(stats.contains("workingSetBytes"), "{stats}");
        let main = pid(node, &id);
        let limit = || crate::control::limit(main, "memory", "memory.limit_in_bytes", "memory.max");
        assert_eq!(limit(), (64 << 20).to_string());
        crictl(node, &["update", "--memory", &(128 << 20).to_string(), &id]).ok();
        assert_eq!(limit(), (128 << 20).to_string());
        pod.end();
    }
}

on_newest_containerd! {
    fn a_pod_with_users_of_its_own_has_them_in_its_native_containers_too(node) {
        give_networks(node);
        let (wasm, native) = images(node);
        let users = |config: &mut Value| {
            let mapping = json!([{"container_id": 0, "host_id": 300_000, "length": 65_536}]);
            let options = &mut config["linux"]["security_context"]["namespace_options"];
            options["userns_options"] = json!({"mode": 0, "uids": mapping, "gids": mapping});
            // Kubernetes has no such pods in the node's network.
            options["network"] = 0.into();
        };
        let pod = Pod::start_edited(node, "wasi-without-options", users);
        let main = pod.run("main", &native, &["sleep", "1000"], users);
        let guest = pod.run("guest", &wasm, &["/probe.wasm", "idle"], users);
        let of = |id: &str| fs::read_link(format!("/proc/{}/ns/user", pid(node, id))).unwrap();
        assert_eq!(of(&main), of(&guest));
        assert_ne!(of(&main), fs::read_link("/proc/self/ns/user").unwrap());
        assert_eq!(crate::sandbox::status(pid(node, &main), "Uid"), "300000 300000 300000 300000");
        // The image's files are root's, and this root is the container's.
        let program = fs::metadata(format!("/proc/{}/root/bin/busybox", pid(node, &main))).unwrap();
        assert_eq!((program.uid(), program.gid()), (300_000, 300_000));
        let said = crictl(node, &["exec", "--sync", &main, "sh", "-c", "id -u; echo mine > /bin/new && cat /bin/new"]).ok();
        assert_eq!(said.stdout.trim(), "0\nmine");
        pod.end();
    }
}
