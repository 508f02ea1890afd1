//! What the controller is started with.

use clap::Args;

/// How the controller's own objects look.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// The namespace of the agents, the lease and the controller.
    #[arg(long, env = "KUBEWASI_NAMESPACE", default_value = "kubewasi")]
    pub namespace: String,
    /// The image of the node agent.
    #[arg(long, env = "KUBEWASI_AGENT_IMAGE")]
    pub agent_image: String,
    /// When the agent's image is pulled: Always, IfNotPresent or Never.
    #[arg(long, env = "KUBEWASI_AGENT_PULL_POLICY", default_value = "IfNotPresent")]
    pub agent_pull_policy: String,
    /// Secrets to pull the agent's image with.
    #[arg(long, env = "KUBEWASI_AGENT_PULL_SECRETS", value_delimiter = ',')]
    pub agent_pull_secrets: Vec<String>,
    /// The ServiceAccount of the agents.
    #[arg(long, env = "KUBEWASI_AGENT_SERVICE_ACCOUNT", default_value = "kubewasi-agent")]
    pub agent_service_account: String,
}
