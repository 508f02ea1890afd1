//! kubectl exec, attach, cp and port-forward on wasm pods.

use std::process::Stdio;

use anyhow::{Context, Result};
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::workload;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

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
        let forward = ["port-forward", "--address", "127.0.0.1", "waiting", ":8080"];
        let mut kubectl = namespace
            .cluster
            .kubectl(&namespace.arguments(&forward))
            .stdout(Stdio::piped())
            .spawn()?;
        // Forwarding from 127.0.0.1:41234 -> 8080
        let mut lines = BufReader::new(kubectl.stdout.take().context("no stdout")?).lines();
        let line = lines.next_line().await?.context("kubectl port-forward ended")?;
        let address = line.split_whitespace().nth(2).context("no address in kubectl's line")?;
        let mut connection = TcpStream::connect(address).await?;
        connection.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await?;
        assert!(answer.ends_with("forwarded\n"), "{answer}");
        kubectl.kill().await?;
        Ok(())
    })
    .await
}
