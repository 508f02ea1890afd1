//! kubectl exec, attach, cp and port-forward on wasm pods.

use std::process::Stdio;

use anyhow::{Context, Result};
use kubewasi_e2e::forward::Forward;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::workload;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

/// A guest that waits, in an image with native tools beside the wasm, and a native container that serves a page.
const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: waiting
spec:
  runtimeClassName: wasi
  terminationGracePeriodSeconds: 1
  containers:
    - name: guest
      image: $IMAGES/mixed:e2e
      imagePullPolicy: IfNotPresent
      args: [idle]
    - name: page
      image: $IMAGES/busybox:e2e
      imagePullPolicy: IfNotPresent
      command: [sh, -c, "echo forwarded > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"]
    - name: echo
      image: $IMAGES/mixed:e2e
      imagePullPolicy: IfNotPresent
      args: [cat]
      stdin: true
"#;

#[tokio::test]
async fn exec_runs_wasm_and_native_programs_beside_a_guest() -> Result<()> {
    Namespace::with("exec", async |namespace| {
        namespace.create_from(PODS).await?;
        workload::ready(namespace, "waiting").await?;

        let wasm = [
            "exec",
            "waiting",
            "--container",
            "guest",
            "--",
            "/probe01.wasm",
            "say",
            "from wasm",
        ];
        assert_eq!(namespace.kubectl(&wasm).await?, "from wasm\n");
        let native = [
            "exec",
            "waiting",
            "--container",
            "guest",
            "--",
            "sh",
            "-c",
            "echo from $0",
            "native",
        ];
        assert_eq!(namespace.kubectl(&native).await?, "from native\n");
        let piped = [
            "exec",
            "--stdin",
            "waiting",
            "--container",
            "guest",
            "--",
            "/probe02.wasm",
            "cat",
        ];
        assert_eq!(namespace.kubectl_with_input(&piped, "through\n").await?, "through\n");

        let failing = [
            "exec",
            "waiting",
            "--container",
            "guest",
            "--",
            "/probe02.wasm",
            "exit-with-code",
            "7",
        ];
        let status = namespace
            .cluster
            .kubectl(&namespace.arguments(&failing))
            .status()
            .await?;
        assert_eq!(status.code(), Some(7));

        let missing = ["exec", "waiting", "--container", "guest", "--", "nowhere"];
        let error = format!(
            "{:#}",
            namespace
                .kubectl(&missing)
                .await
                .err()
                .context("nowhere was executed")?
        );
        assert!(error.contains("nowhere"), "{error}");
        Ok(())
    })
    .await
}

/// A terminal of 30 rows, as its person has one: script(1) makes it, and hands on what is typed and seen.
fn in_terminal(namespace: &Namespace, arguments: &[&str]) -> Command {
    let kubectl = namespace.cluster.kubectl(&namespace.arguments(arguments));
    let kubectl = kubectl.as_std();
    let words = std::iter::once(kubectl.get_program()).chain(kubectl.get_args());
    let words: Vec<String> = words.map(|word| format!("'{}'", word.display())).collect();
    let command = format!("stty rows 30 columns 100; exec {}", words.join(" "));
    let mut script = Command::new("script");
    script
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .env("KUBECONFIG", namespace.cluster.kubeconfig())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    script
}

#[tokio::test]
async fn a_wasm_program_is_executed_in_a_terminal() -> Result<()> {
    Namespace::with("terminal", async |namespace| {
        namespace.create_from(PODS).await?;
        workload::ready(namespace, "waiting").await?;
        let exec = ["exec", "--stdin", "--tty", "waiting", "--container", "guest", "--"];
        let is_terminal = [&exec[..], &["/probe02.wasm", "isatty"]].concat();
        let mut person = in_terminal(namespace, &is_terminal).spawn()?;
        // Somebody sits there until the end.
        let _types = person.stdin.take();
        let seen = person.wait_with_output().await?;
        assert_eq!(String::from_utf8_lossy(&seen.stdout).trim(), "true true true");

        // What is typed is shown by the terminal and then read by the program; ^D is the end of what it reads.
        let cat = [&exec[..], &["/probe02.wasm", "cat"]].concat();
        let mut person = in_terminal(namespace, &cat).spawn()?;
        let mut types = person.stdin.take().context("no stdin")?;
        let mut sees = BufReader::new(person.stdout.take().context("no stdout")?).lines();
        types.write_all(b"typed\n").await?;
        for _ in ["shown", "written"] {
            assert_eq!(sees.next_line().await?.as_deref().map(str::trim), Some("typed"));
        }
        types.write_all(b"\x04").await?;
        assert!(person.wait().await?.success());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_native_shell_beside_a_guest_has_a_terminal_of_its_person_s_size() -> Result<()> {
    Namespace::with("shell", async |namespace| {
        namespace.create_from(PODS).await?;
        workload::ready(namespace, "waiting").await?;
        // kubectl tells the size a moment after the start.
        let script = "for second in $(seq 60); do [ \"$(stty size)\" = \"30 100\" ] && exit 3; sleep 1; done";
        let exec = [
            "exec",
            "--stdin",
            "--tty",
            "waiting",
            "--container",
            "guest",
            "--",
            "sh",
            "-c",
            script,
        ];
        let mut person = in_terminal(namespace, &exec).spawn()?;
        let _types = person.stdin.take();
        let status = person.wait().await?;
        assert_eq!(status.code(), Some(3), "the shell never saw 30 rows and 100 columns");
        Ok(())
    })
    .await
}

/// kubectl cp runs tar in the container.
#[tokio::test]
async fn a_container_of_wasm_alone_says_what_copying_lacks() -> Result<()> {
    Namespace::with("no-tar", async |namespace| {
        namespace
            .create_from(
                r#"
apiVersion: v1
kind: Pod
metadata:
  name: bare
spec:
  runtimeClassName: wasi
  terminationGracePeriodSeconds: 1
  containers:
    - {name: guest, image: "$IMAGES/probe:e2e", imagePullPolicy: IfNotPresent, args: [idle]}
"#,
            )
            .await?;
        workload::ready(namespace, "bare").await?;
        let to = std::env::temp_dir().join(&namespace.name).display().to_string();
        let refused = namespace.kubectl(&["cp", "bare:/probe02.wasm", &to]).await.err();
        let refused = format!("{:#}", refused.context("it was copied without tar")?);
        assert!(refused.contains("tar"), "{refused}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn files_are_copied_to_and_from_a_container_with_native_tools() -> Result<()> {
    Namespace::with("cp", async |namespace| {
        namespace.create_from(PODS).await?;
        workload::ready(namespace, "waiting").await?;
        let folder = std::env::temp_dir().join(&namespace.name);
        std::fs::create_dir(&folder)?;
        let [there, back] = ["there", "back"].map(|name| folder.join(name).display().to_string());
        std::fs::write(&there, "copied\n")?;
        let copied = async {
            let to = ["cp", &there, "waiting:/tmp/copied", "--container", "guest"];
            namespace.kubectl(&to).await?;
            let read = [
                "exec",
                "waiting",
                "--container",
                "guest",
                "--",
                "/probe02.wasm",
                "read",
                "/tmp/copied",
            ];
            assert_eq!(namespace.kubectl(&read).await?, "copied\n");
            let from = ["cp", "waiting:/tmp/copied", &back, "--container", "guest"];
            namespace.kubectl(&from).await?;
            Ok(std::fs::read_to_string(&back)?)
        }
        .await;
        std::fs::remove_dir_all(&folder)?;
        assert_eq!(
            copied.map_err(|error: anyhow::Error| format!("{error:#}")),
            Ok("copied\n".into())
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn attach_reaches_the_streams_of_a_guest() -> Result<()> {
    Namespace::with("attach", async |namespace| {
        namespace.create_from(PODS).await?;
        workload::ready(namespace, "waiting").await?;
        let attach = ["attach", "--quiet", "--stdin", "waiting", "--container", "echo"];
        let mut kubectl = namespace
            .cluster
            .kubectl(&namespace.arguments(&attach))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut input = kubectl.stdin.take().context("no stdin")?;
        let mut output = BufReader::new(kubectl.stdout.take().context("no stdout")?).lines();
        input.write_all(b"attached\n").await?;
        assert_eq!(output.next_line().await?.as_deref(), Some("attached"));
        kubectl.kill().await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_port_of_a_wasm_pod_is_forwarded() -> Result<()> {
    Namespace::with("forward", async |namespace| {
        namespace.create_from(PODS).await?;
        workload::ready(namespace, "waiting").await?;
        let page = Forward::to(namespace, "waiting", 8080).await?;
        let mut connection = page.connect().await?;
        connection.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await?;
        assert!(answer.ends_with("forwarded\n"), "{answer}");
        Ok(())
    })
    .await
}
