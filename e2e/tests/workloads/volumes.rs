//! ConfigMaps, Secrets, projected tokens and shared folders, as files of a guest.

use anyhow::Result;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::workload;

#[tokio::test]
async fn a_guest_reads_config_map_secret_and_its_own_token() -> Result<()> {
    Namespace::with("volumes", async |namespace| {
        namespace
            .create_from(
                r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: green}
---
apiVersion: v1
kind: Secret
metadata: {name: password}
stringData: {word: sesame}
---
apiVersion: v1
kind: Pod
metadata:
  name: reader
spec:
  runtimeClassName: wasi
  restartPolicy: Never
  volumes:
    - {name: settings, configMap: {name: settings}}
    - {name: password, secret: {secretName: password}}
    - name: token
      projected: {sources: [{serviceAccountToken: {path: token, audience: tests}}]}
  containers:
    - name: settings
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: [read, /etc/settings/colour]
      volumeMounts: [{name: settings, mountPath: /etc/settings}]
    - name: password
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: [read, /etc/password/word]
      volumeMounts: [{name: password, mountPath: /etc/password}]
    - name: token
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: [read, /var/run/token/token]
      volumeMounts: [{name: token, mountPath: /var/run/token}]
    - name: environment
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: [env]
      envFrom: [{configMapRef: {name: settings}}]
      env: [{name: WORD, valueFrom: {secretKeyRef: {name: password, key: word}}}]
"#,
            )
            .await?;
        workload::phase(namespace, "reader", "Succeeded").await?;
        assert_eq!(workload::logs(namespace, "reader", "settings").await?, "green");
        assert_eq!(workload::logs(namespace, "reader", "password").await?, "sesame");
        // A JSON web token: three parts, the first a JSON object in base64.
        let token = workload::logs(namespace, "reader", "token").await?;
        assert!(token.starts_with("ey") && token.matches('.').count() == 2, "{token}");
        let environment = workload::logs(namespace, "reader", "environment").await?;
        assert!(
            environment.contains("colour=green\n") && environment.contains("WORD=sesame\n"),
            "{environment}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_guest_and_a_native_container_share_a_folder() -> Result<()> {
    Namespace::with("shared", async |namespace| {
        namespace
            .create_from(
                r#"
apiVersion: v1
kind: Pod
metadata:
  name: pair
spec:
  runtimeClassName: wasi
  restartPolicy: Never
  volumes:
    - {name: shared, emptyDir: {}}
  containers:
    - name: guest
      image: $IMAGES/tools:e2e
      imagePullPolicy: IfNotPresent
      command: [sh, -c, "touch /shared/held; touch /shared/from-wasm; while [ -f /shared/held ]; do sleep 1; done; echo seen"]
      volumeMounts: [{name: shared, mountPath: /shared}]
    - name: native
      image: $IMAGES/busybox:e2e
      imagePullPolicy: IfNotPresent
      command: [sh, -c, "until [ -e /shared/from-wasm ]; do sleep 1; done; rm /shared/held; echo seen"]
      volumeMounts: [{name: shared, mountPath: /shared}]
"#,
            )
            .await?;
        workload::phase(namespace, "pair", "Succeeded").await?;
        assert_eq!(workload::logs(namespace, "pair", "guest").await?, "seen\n");
        assert_eq!(workload::logs(namespace, "pair", "native").await?, "seen\n");
        Ok(())
    })
    .await
}

/// A read-only mount is the kernel's to keep. WASI has no word of its own for what the kernel says then.
#[tokio::test]
async fn a_read_only_mount_refuses_what_a_guest_writes() -> Result<()> {
    Namespace::with("read-only", async |namespace| {
        namespace
            .create_from(
                r#"
apiVersion: v1
kind: Pod
metadata:
  name: writer
spec:
  runtimeClassName: wasi
  restartPolicy: Never
  volumes:
    - {name: shared, emptyDir: {}}
  containers:
    - name: guest
      image: $IMAGES/probe:e2e
      imagePullPolicy: IfNotPresent
      args: [write, /shared/file, text]
      volumeMounts: [{name: shared, mountPath: /shared, readOnly: true}]
"#,
            )
            .await?;
        workload::phase(namespace, "writer", "Failed").await?;
        let said = workload::logs(namespace, "writer", "guest").await?;
        assert!(said.starts_with("probe write: I/O error"), "{said}");
        Ok(())
    })
    .await
}
