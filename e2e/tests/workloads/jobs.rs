//! Jobs and CronJobs of wasm pods.

use anyhow::Result;
use k8s_openapi::api::batch::v1::Job;
use kube::api::ListParams;
use kubewasi_e2e::namespace::Namespace;
use kubewasi_e2e::{wait, workload};

#[tokio::test]
async fn a_job_runs_its_completions() -> Result<()> {
    Namespace::with("job", async |namespace| {
        namespace
            .create_from(
                r#"
apiVersion: batch/v1
kind: Job
metadata:
  name: three
spec:
  completions: 3
  parallelism: 2
  completionMode: Indexed
  backoffLimit: 0
  template:
    spec:
      runtimeClassName: wasi
      restartPolicy: Never
      containers:
        - name: guest
          image: $IMAGES/probe:e2e
          imagePullPolicy: IfNotPresent
          args: [say, done]
"#,
            )
            .await?;
        workload::succeeded(namespace, "three", 3).await?;
        assert_eq!(
            namespace.kubectl(&["logs", "--selector", "job-name=three"]).await?,
            "done\ndone\ndone\n"
        );
        Ok(())
    })
    .await
}

/// The Job's own policy reads the guest's exit code.
#[tokio::test]
async fn a_job_fails_by_the_exit_code_of_its_guest() -> Result<()> {
    Namespace::with("failing", async |namespace| {
        namespace
            .create_from(
                r#"
apiVersion: batch/v1
kind: Job
metadata:
  name: broken
spec:
  backoffLimit: 6
  podFailurePolicy:
    rules:
      - action: FailJob
        onExitCodes: {operator: In, values: [7]}
  template:
    spec:
      runtimeClassName: wasi
      restartPolicy: Never
      containers:
        - name: guest
          image: $IMAGES/probe:e2e
          imagePullPolicy: IfNotPresent
          args: [exit-with-code, "7"]
"#,
            )
            .await?;
        let jobs = namespace.api::<Job>();
        let reason = wait::until(
            "the job to fail",
            async || {
                let status = jobs.get("broken").await?.status.unwrap_or_default();
                let mut conditions = status.conditions.unwrap_or_default().into_iter();
                Ok(conditions
                    .find(|condition| condition.type_ == "Failed")
                    .and_then(|condition| condition.reason))
            },
            Option::is_some,
        )
        .await?;
        assert_eq!(reason.as_deref(), Some("PodFailurePolicy"));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_cron_job_starts_jobs_of_wasm_pods() -> Result<()> {
    Namespace::with("cron", async |namespace| {
        namespace
            .create_from(
                r#"
apiVersion: batch/v1
kind: CronJob
metadata:
  name: minutely
spec:
  schedule: "* * * * *"
  jobTemplate:
    spec:
      template:
        spec:
          runtimeClassName: wasi
          restartPolicy: Never
          containers:
            - name: guest
              image: $IMAGES/probe:e2e
              imagePullPolicy: IfNotPresent
              args: [say, tick]
"#,
            )
            .await?;
        let jobs = namespace.api::<Job>();
        wait::until(
            "a job of the schedule to succeed",
            async || Ok(jobs.list(&ListParams::default()).await?.items),
            |jobs| {
                jobs.iter()
                    .any(|job| job.status.as_ref().and_then(|status| status.succeeded) == Some(1))
            },
        )
        .await?;
        Ok(())
    })
    .await
}
