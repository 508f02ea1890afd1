//! A port of a pod on this machine, by kubectl port-forward.

use std::process::Stdio;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Child;

use crate::namespace::Namespace;

/// kubectl, which forwards until this is dropped.
pub struct Forward {
    /// The address on this machine: `127.0.0.1:41234`.
    pub address: String,
    _kubectl: Child,
}

impl Forward {
    /// Forwards to `port` of a pod; `target` is its name, or what kubectl finds one by: `deployment/web`.
    pub async fn to(namespace: &Namespace, target: &str, port: u16) -> Result<Forward> {
        let port = format!(":{port}");
        let arguments = ["port-forward", "--address", "127.0.0.1", target, &port];
        let mut kubectl = namespace
            .cluster
            .kubectl(&namespace.arguments(&arguments))
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(kubectl.stdout.take().context("kubectl has no stdout")?).lines();
        let line = lines.next_line().await?;
        let line = line.with_context(|| format!("kubectl forwards no port of {target}"))?;
        // Forwarding from 127.0.0.1:41234 -> 8080
        let address = line
            .strip_prefix("Forwarding from ")
            .and_then(|rest| rest.split(' ').next());
        let address = address
            .with_context(|| format!("kubectl says no address: {line}"))?
            .to_owned();
        // It tells of each connection, and would end at the first that nobody hears of.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Forward {
            address,
            _kubectl: kubectl,
        })
    }

    /// A connection to the port.
    pub async fn connect(&self) -> Result<TcpStream> {
        let connected = TcpStream::connect(&self.address).await;
        connected.with_context(|| format!("no connection to {}", self.address))
    }
}
