//! The environment of a process: what runc makes of the same spec is what a guest sees, in every world.

use serde_json::{Value, json};

use crate::container::{Run, root_folder, spec};
use crate::containerd::Node;
use crate::cri::{crictl, prepare};
use crate::exec::{exec, exec_command};
use crate::guests::Probe;
use crate::image_builder::Image;
use crate::pod::{PID_OF_CONTAINER, Pod};

const PROBES: [(&str, Probe); 4] = [
    ("/probe01.wasm", Probe::P1),
    ("/probe02.wasm", Probe::P2),
    ("/probe03.wasm", Probe::P3),
    ("/bin/probe", Probe::Native),
];

/// A spec with every probe in its root filesystem, and `passwd` where there is one.
fn probes(node: &Node, passwd: Option<&str>, user: u32, env: &Value) -> Value {
    let programs: Vec<_> = PROBES.iter().map(|(path, probe)| (*path, probe.bytes())).collect();
    let mut files: Vec<(&str, &[u8])> = programs.iter().map(|(path, bytes)| (*path, bytes.as_slice())).collect();
    files.extend(passwd.map(|text| ("/etc/passwd", text.as_bytes())));
    let root = root_folder(node, &files);
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(root.join("bin/probe"), executable).unwrap();
    let mut spec = spec(node, &root, &[]);
    spec["process"]["env"] = env.clone();
    spec["process"]["user"] = json!({"uid": user, "gid": user});
    spec["linux"]["cgroupsPath"] = format!("/{}/environment", node.namespace).into();
    spec
}

/// The lines of an environment in order of their names, without what only guests get.
fn sorted(output: &str) -> Vec<String> {
    let mut lines: Vec<String> = output.lines().map(str::to_owned).collect();
    lines.retain(|line| !line.starts_with("PWD="));
    lines.sort_unstable();
    lines
}

/// Runs `program env` of `spec`.
#[track_caller]
fn environment(node: &Node, spec: &Value, program: &str, runtime: &str) -> Vec<String> {
    let mut spec = spec.clone();
    spec["process"]["args"] = json!([program, "env"]);
    sorted(&Run::of_spec(node, &spec).runtime(runtime).finish().ok().stdout)
}

/// Every probe sees what the native one sees by runc, which is `expected`.
#[track_caller]
fn expect(node: &Node, spec: &Value, expected: &[&str]) {
    assert_eq!(
        environment(node, spec, "/bin/probe", "io.containerd.runc.v2"),
        expected,
        "by runc"
    );
    for (program, _) in PROBES {
        assert_eq!(
            environment(node, spec, program, "io.containerd.wasi.v1"),
            expected,
            "{program}"
        );
    }
}

on_newest_containerd! {
    fn of_variables_with_one_name_every_world_sees_the_last(node) {
        let env = json!(["FROM=image", "LEVEL=info", "HOME=/h", "FROM=pod", "LEVEL=configmap", "LEVEL=debug", "EMPTY=x",
                         "EMPTY=", "EQUAL=a=b"]);
        let spec = probes(node, None, 0, &env);
        expect(node, &spec, &["EMPTY=", "EQUAL=a=b", "FROM=pod", "HOME=/h", "LEVEL=debug"]);
    }

    fn of_two_paths_the_last_one_finds_the_program(node) {
        let mut spec = probes(node, None, 0, &json!(["HOME=/", "PATH=/nowhere", "PATH=/bin:/"]));
        for program in ["probe01.wasm", "probe"] {
            spec["process"]["args"] = json!([program, "say", "found"]);
            assert_eq!(Run::of_spec(node, &spec).finish().ok().stdout, "found\n", "{program}");
        }
    }

    fn home_is_set_where_it_is_not_as_runc_sets_it(node) {
        let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/srv/app:\napp2:x:1000:1000::/second:\n";
        for (passwd, user, env, home) in [
            (Some(passwd), 0, json!(["A=1"]), "HOME=/root"),
            (Some(passwd), 1000, json!(["A=1"]), "HOME=/srv/app"),
            (Some(passwd), 1000, json!(["HOME=", "A=1"]), "HOME=/srv/app"),
            (Some(passwd), 1000, json!(["HOME=/mine", "A=1"]), "HOME=/mine"),
            (Some(passwd), 7, json!(["A=1"]), "HOME=/"),
            (None, 1000, json!(["A=1"]), "HOME=/"),
        ] {
            expect(node, &probes(node, passwd, user, &env), &["A=1", home]);
        }
    }

    fn a_passwd_that_is_no_file_sets_no_home_and_holds_nobody_up(node) {
        let spec = probes(node, Some(""), 0, &json!(["A=1"]));
        let passwd = std::path::Path::new(spec["root"]["path"].as_str().unwrap()).join("etc/passwd");
        std::fs::remove_file(&passwd).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &passwd, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        assert_eq!(environment(node, &spec, "/probe01.wasm", "io.containerd.wasi.v1"), ["A=1", "HOME=/"]);
        std::fs::remove_file(passwd).unwrap();
    }

    fn an_entry_that_is_no_variable_is_refused_as_by_runc(node) {
        for (entry, words) in [("secret", "'='"), ("=secret", "name"), ("A=sec\0ret", "NUL")] {
            let mut spec = probes(node, None, 0, &json!(["A=1", entry]));
            spec["process"]["args"] = json!(["/bin/probe", "env"]);
            Run::of_spec(node, &spec).runtime("io.containerd.runc.v2").fail().expect_refusal(&["variable"]);
            spec["process"]["args"] = json!(["/probe01.wasm", "env"]);
            let refused = Run::of_spec(node, &spec).fail().expect_refusal(&["process.env", "entry 1", words]);
            assert!(!refused.stderr.contains("secret"), "{refused}");
        }
    }

    fn an_exec_gets_the_last_of_each_variable_and_its_users_home(node) {
        let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/srv/app:\n";
        let mut spec = probes(node, Some(passwd), 1000, &json!(["A=1", "A=2"]));
        spec["process"]["args"] = json!(["/probe01.wasm", "idle"]);
        let (id, _) = Run::of_spec(node, &spec).detach();
        for (program, _) in PROBES {
            let said = exec(node, &id, &[program, "env"]).ok().stdout;
            assert_eq!(sorted(&said), ["A=2", "HOME=/srv/app"], "{program}");
            let said = crate::command::run(&mut exec_command(node, &id, &["--user", "0"], &[program, "env"])).ok().stdout;
            assert_eq!(sorted(&said), ["A=2", "HOME=/root"], "{program} as root");
        }
        node.remove(&id);
    }
}

on_every_containerd! {
    fn a_pods_environment_beats_the_images(node) {
        prepare(node);
        let image = Image::with_files("environment", &[("/probe.wasm", &Probe::P1.bytes())])
            .config("Env", json!(["FROM=image", "LEVEL=info", "ONLY=image"]));
        node.import_into(&image, "k8s.io").ok();
        let pod = Pod::start(node, PID_OF_CONTAINER);
        let id = pod.run("app", &image.name, &["/probe.wasm", "env"], |config| {
            config["envs"] = json!([{"key": "FROM", "value": "pod"}, {"key": "LEVEL", "value": "configmap"},
                                    {"key": "LEVEL", "value": "debug"}]);
        });
        crate::command::eventually("the container has ended", std::time::Duration::from_secs(20), || {
            crictl(node, &["inspect", &id]).ok().stdout.contains("CONTAINER_EXITED").then_some(())
        });
        let log = pod.log("app");
        let said: Vec<&str> = log.lines().filter_map(|line| line.split(" stdout F ").nth(1)).collect();
        let of = |name: &str| said.iter().filter(|line| line.starts_with(name)).copied().collect::<Vec<_>>();
        assert_eq!((of("FROM="), of("LEVEL="), of("ONLY=")), (vec!["FROM=pod"], vec!["LEVEL=debug"], vec!["ONLY=image"]));
        pod.end();
    }
}
