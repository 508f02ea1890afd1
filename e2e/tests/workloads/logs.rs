//! kubectl logs on a guest that still writes.

use std::process::Stdio;

use anyhow::{Context, Result};
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::workload;
use tokio::io::{AsyncBufReadExt, BufReader};

#[tokio::test]
async fn logs_are_followed_while_a_guest_writes_and_end_with_it() -> Result<()> {
    Namespace::with("logs", async |namespace| {
        namespace
            .create_from(
                r#"
apiVersion: v1
kind: Pod
metadata:
  name: writing
spec:
  runtimeClassName: wasi
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  volumes:
    - {name: work, emptyDir: {}}
  containers:
    - name: guest
      image: $IMAGES/tools:e2e
      imagePullPolicy: IfNotPresent
      command: [sh, -c, "touch /work/held; echo first; while [ -f /work/held ]; do sleep 1; done; echo last"]
      volumeMounts: [{name: work, mountPath: /work}]
    - name: native
      image: $IMAGES/busybox:e2e
      imagePullPolicy: IfNotPresent
      command: [sleep, infinity]
      volumeMounts: [{name: work, mountPath: /work}]
"#,
            )
            .await?;
        workload::ready(namespace, "writing").await?;
        let follow = ["logs", "--follow", "writing", "--container", "guest"];
        let mut kubectl = namespace
            .cluster
            .kubectl(&namespace.arguments(&follow))
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(kubectl.stdout.take().context("no stdout")?).lines();
        assert_eq!(lines.next_line().await?.as_deref(), Some("first"));

        let release = ["exec", "writing", "--container", "native", "--", "rm", "/work/held"];
        namespace.kubectl(&release).await?;
        assert_eq!(lines.next_line().await?.as_deref(), Some("last"));
        // The pod lives on.
        assert_eq!(lines.next_line().await?, None);
        assert!(kubectl.wait().await?.success());
        Ok(())
    })
    .await
}
