//! The node agent's command line, which is also that of its helper on the host.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use kube::Client;
use kubewasi_controller::node::agent::{Agent, Identity};
use kubewasi_controller::node::check::{check, describe_plan};
use kubewasi_controller::node::copy::copy;
use kubewasi_controller::node::dry_run::dry_run;
use kubewasi_controller::node::helper;
use kubewasi_controller::node::host::Host;
use kubewasi_controller::node::layout::{BASE, Layout};
use kubewasi_controller::node::rights::restrict_to_agent;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// kubewasi's node agent: installs the shim on its node, and proves that it works.
#[derive(Parser)]
#[command(name = "kubewasi-node", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs as the agent of a node, in a pod that shares the host's pids.
    Agent(AgentArguments),
    /// Tells what the agent would refuse on this host, and why; changes nothing.
    Check {
        /// The name of the WasmRuntime.
        #[arg(long, env = "KUBEWASI_RUNTIME", default_value = "default")]
        runtime: String,
        /// The handler's name in containerd's configuration.
        #[arg(long, env = "KUBEWASI_HANDLER", default_value = "wasi")]
        handler: String,
        /// The uid of the pod that this runs in; without it, this runs on the host itself.
        #[arg(long, env = "POD_UID")]
        pod_uid: Option<String>,
    },
    /// Copies a program into a folder: what the agent's init containers do.
    Copy {
        /// Do not fail when the program is missing: the agent reports that.
        #[arg(long)]
        optional: bool,
        from: PathBuf,
        to: PathBuf,
    },
    /// Carries out the order in a runtime's folder: how the agent calls itself on the host.
    Transact { folder: PathBuf },
}

#[derive(Args)]
struct AgentArguments {
    /// The name of the WasmRuntime.
    #[arg(long, env = "KUBEWASI_RUNTIME")]
    runtime: String,
    /// The name of the node.
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// The uid of this pod.
    #[arg(long, env = "POD_UID")]
    pod_uid: String,
    /// The image that the staged shim comes from.
    #[arg(long, env = "KUBEWASI_SHIM_IMAGE")]
    shim_image: String,
    /// The folder that the shim was copied to.
    #[arg(long, default_value = "/staging")]
    staging: PathBuf,
    /// Prints the plan for the present wish, and ends.
    #[arg(long)]
    dry_run: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    match run(Arguments::parse().command).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kubewasi-node: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<ExitCode, Box<dyn Error>> {
    match command {
        Command::Agent(arguments) => agent(arguments).await?,
        Command::Check {
            runtime,
            handler,
            pod_uid,
        } => {
            let host = if pod_uid.is_some() {
                Host::of_pod()
            } else {
                Host::itself()
            };
            restrict_to_agent()?;
            let layout = Layout::new(BASE.as_ref(), &runtime);
            let found = check(&host, &layout, &handler, pod_uid.as_deref()).await;
            print!("{}", found.text);
            if !found.is_good {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Copy { optional, from, to } => copy(&from, &to, optional)?,
        // A result that is recorded is a success, whatever it says: systemd is not to try again.
        Command::Transact { folder } => {
            let ended = helper::run(&folder).await?;
            tracing::info!(?ended, "the order is carried out");
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn agent(arguments: AgentArguments) -> Result<(), Box<dyn Error>> {
    let identity = Identity {
        runtime: arguments.runtime,
        node: arguments.node,
        pod_uid: arguments.pod_uid,
        shim_image: arguments.shim_image,
        staging: arguments.staging,
    };
    let (host, layout) = (Host::of_pod(), Layout::new(BASE.as_ref(), &identity.runtime));
    let client = Client::try_default().await?;
    if arguments.dry_run {
        print!("{}", describe_plan(&dry_run(&identity, &host, &layout, client).await?));
        return Ok(());
    }
    // The first process of a container has no default actions: without this, its end would take the whole grace period.
    let mut term = signal(SignalKind::terminate())?;
    let end = async move {
        term.recv().await;
    };
    Agent::new(identity, host, layout, client.clone())
        .run(client, end)
        .await;
    Ok(())
}
