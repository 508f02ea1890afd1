//! Loggers: programs and files of the host that take a process's output, as under containerd's own shim.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use containerd_shim_protos::api::{DeleteRequest, StartRequest, WaitRequest};

use crate::containerd::Node;
use crate::guests::Probe;
use crate::image_builder::Image;
use crate::task_api::{connect, context, create, end_server, probe_bundle, refusal};

const RUNC: &str = "io.containerd.runc.v2";
const WASI: &str = "io.containerd.wasi.v1";

/// An image with both kinds of probes.
fn image(node: &Node) -> Image {
    let image = Image::with_files(
        "loggers",
        &[("/probe.wasm", &Probe::P1.bytes()), ("/probe", &Probe::Native.bytes())],
    );
    node.import(&image);
    image
}

fn program(runtime: &str) -> &'static str {
    if runtime == RUNC { "/probe" } else { "/probe.wasm" }
}

/// A program of the shell for loggers, which writes into the test's folder: what it was told, and what it has read.
fn logger(node: &Node) -> PathBuf {
    let path = node.folder.join("logger");
    let script = format!(
        "#!/bin/sh\n\
         cd {}\n\
         {{ for word; do echo \"argument $word\"; done; env | grep ^CONTAINER_ | sort; }} >\"facts.$CONTAINER_ID\"\n\
         exec 5>&-\n\
         cat <&4 >\"err.$CONTAINER_ID\" &\n\
         exec 4<&-\n\
         cat <&3 >\"out.$CONTAINER_ID\"\n\
         wait\n",
        node.folder.display()
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

fn read(node: &Node, kind: &str, id: &str) -> String {
    fs::read_to_string(node.folder.join(format!("{kind}.{id}"))).unwrap()
}

/// Runs a container with its output going to `uri`, to its end.
#[track_caller]
fn run_to_the_end(node: &Node, image: &Image, runtime: &str, uri: &str, args: &[&str]) -> String {
    let run = node
        .run(image)
        .runtime(runtime)
        .flag(&["--log-uri", uri])
        .args(&[&[program(runtime)], args].concat());
    let id = run.id.clone();
    run.detach_as_it_is();
    node.wait_until(&id, "STOPPED");
    // When that has returned, the logger has written all that it read.
    node.remove(&id);
    id
}

on_every_containerd! {
    fn a_logger_gets_what_containerds_own_shim_would_give_it(node) {
        let image = image(node);
        let uri = format!("binary://{}?path=%2Fvar%2Flog", logger(node).display());
        let [native, wasm, ours] = [(RUNC, RUNC), (WASI, WASI), (WASI, RUNC)].map(|(runtime, probe)| {
            let run = node.run(&image).runtime(runtime).flag(&["--log-uri", &uri]).args(&[program(probe), "say", "out", "err"]);
            let id = run.id.clone();
            run.detach_as_it_is();
            node.wait_until(&id, "STOPPED");
            node.remove(&id);
            ["out", "err", "facts"].map(|kind| read(node, kind, &id).replace(&id, "ID"))
        });
        assert_eq!(native[0], "out\n");
        assert_eq!(native[1], "err\n");
        assert!(native[2].starts_with("argument path\nargument /var/log\n"), "{}", native[2]);
        assert_eq!((&wasm, &ours), (&native, &native));
    }

    fn nothing_of_a_megabyte_is_lost_on_its_way_through_a_logger(node) {
        let image = image(node);
        let uri = format!("binary://{}", logger(node).display());
        let id = run_to_the_end(node, &image, WASI, &uri, &["lines", "65536"]);
        assert_eq!(read(node, "out", &id).len(), 65536 * 16);
    }

    fn execs_have_loggers_of_their_own(node) {
        let image = image(node);
        let uri = format!("binary://{}", logger(node).display());
        let (id, _) = node.run(&image).args(&["/probe.wasm", "idle"]).detach();
        for program in ["/probe.wasm", "/probe"] {
            let exec_id = format!("exec{}", program.replace('/', "-"));
            // Not by `exec_command`: ctr takes no directory for fifos beside a logger.
            let flags = ["task", "exec", "--detach", "--log-uri", &uri, "--exec-id", &exec_id, &id];
            node.ctr(&[&flags[..], &[program, "say", "out", "err"]].concat()).ok();
            crate::command::eventually("the logger has all", std::time::Duration::from_secs(20), || {
                let out = fs::read_to_string(node.folder.join(format!("out.{exec_id}"))).ok()?;
                let err = fs::read_to_string(node.folder.join(format!("err.{exec_id}"))).ok()?;
                (out == "out\n" && err == "err\n").then_some(())
            });
            assert!(read(node, "facts", &exec_id).contains(&format!("CONTAINER_ID={exec_id}\n")));
        }
        node.remove(&id);
    }

    fn a_logger_that_is_not_there_or_does_not_report_is_named(node) {
        let image = image(node);
        let silent = node.folder.join("silent");
        fs::write(&silent, "#!/bin/sh\nexit 1\n").unwrap();
        fs::set_permissions(&silent, PermissionsExt::from_mode(0o755)).unwrap();
        for (uri, path) in [("binary:///nowhere/logger".to_owned(), "/nowhere/logger"),
                            (format!("binary-v2://{}", silent.display()), silent.to_str().unwrap())] {
            for runtime in [WASI, RUNC] {
                if runtime == RUNC && uri.starts_with("binary-v2") { continue }
                let run = node.run(&image).runtime(runtime).flag(&["--log-uri", &uri]).args(&[program(runtime), "say", "out"]);
                let id = run.id.clone();
                let failed = run.try_detach();
                assert_ne!(failed.code, Some(0), "{failed}");
                if runtime == WASI { failed.expect_error(&[path]); }
                node.ctr(&["container", "delete", &id]);
            }
        }
    }

    fn a_file_takes_both_outputs_and_is_appended_to(node) {
        let image = image(node);
        let path = node.folder.join("logs/a b.log");
        let uri = format!("file://{}?max=3", path.display().to_string().replace(' ', "%20"));
        let output = |runtime| {
            run_to_the_end(node, &image, runtime, &uri, &["say", "out", "err"]);
            fs::read_to_string(&path).unwrap()
        };
        // runc's shim closes the file while it may still copy stderr ("error copying stderr"): its line is lost now and then.
        let before = output(RUNC);
        assert!(before.lines().all(|line| ["err", "out"].contains(&line)), "{before}");
        let after = output(WASI);
        let mut added: Vec<&str> = after.strip_prefix(&before).unwrap().lines().collect();
        added.sort_unstable();
        assert_eq!(added, ["err", "out"]);
    }
}

on_newest_containerd! {
    fn a_terminals_output_goes_to_a_logger(node) {
        let bundle = probe_bundle(node, "terminal", &["say", "shown"]);
        let client = connect(node, &node.namespace, "terminal", &bundle);
        let id = || "terminal".to_owned();
        let mut request = create("terminal", &bundle);
        request.terminal = true;
        request.stdout = format!("binary://{}", logger(node).display());
        let mut of_stderr = create("stderr", &probe_bundle(node, "stderr", &["say", "shown"]));
        of_stderr.stderr = request.stdout.clone();
        let (_, message) = refusal(client.create(context(node), &of_stderr));
        assert!(message.contains("stderr") && message.contains("stdout"), "{message}");
        client.create(context(node), &request).unwrap();
        client.start(context(node), &StartRequest { id: id(), ..Default::default() }).unwrap();
        client.wait(context(node), &WaitRequest { id: id(), ..Default::default() }).unwrap();
        client.delete(context(node), &DeleteRequest { id: id(), ..Default::default() }).unwrap();
        assert_eq!(read(node, "out", "terminal"), "shown\r\n");
        end_server(node);
    }
}
