//! Answers on the control socket: reserve, delete, status.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::sleep;

use super::containers::RESERVATION;
use super::service::{self, Node};
use crate::bootstrap::control::{Exit, Reply, Request};
use crate::bootstrap::delete::nanoseconds;
use crate::bootstrap::remains;

/// The longest request: two names and a path.
const LINE_MAX: u64 = 64 << 10;

/// Answers whoever connects, one request each.
pub async fn accept(listener: UnixListener, node: Arc<Node>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let node = node.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, &node).await {
                        tracing::warn!(%error, "a control request was not answered");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, say: whoever waits is not helped by a busy loop.
                tracing::error!(%error, "cannot accept control requests");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, node: &Arc<Node>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(LINE_MAX)).read_line(&mut line).await?;
    if line.is_empty() {
        // It only looked whether somebody listens.
        return Ok(());
    }
    let reply = match serde_json::from_str(&line) {
        // In a task of its own, so that a panic is this request's error.
        Ok(request) => {
            let node = node.clone();
            let answered = tokio::spawn(async move { answer(&node, request).await }).await;
            answered.unwrap_or_else(|panic| Reply::Failed {
                error: panic.to_string(),
            })
        }
        Err(error) => Reply::Failed {
            error: format!("not a request this build knows: {error}"),
        },
    };
    let mut line = serde_json::to_vec(&reply)?;
    line.push(b'\n');
    write.write_all(&line).await
}

async fn answer(node: &Arc<Node>, request: Request) -> Reply {
    match request {
        Request::Reserve { namespace, id, bundle } => {
            let key = (namespace, id);
            if !node.containers.reserve(key.clone(), Instant::now() + RESERVATION) {
                return Reply::Failed {
                    error: "it is shutting down".to_owned(),
                };
            }
            match node.sockets.open(&key.0, node).await {
                Ok(address) => {
                    node.sinks.open(key, &bundle);
                    Reply::Reserved { address }
                }
                Err(error) => Reply::Failed {
                    error: error.to_string(),
                },
            }
        }
        Request::Delete { namespace, id, bundle } => match service::force_delete(node, &(namespace, id)).await {
            Ok(Some((pid, exit))) => Reply::Deleted {
                exit: Some(Exit {
                    pid,
                    code: exit.code,
                    at: nanoseconds(exit.at),
                }),
            },
            // Not known here: deleted already, or never created. What is left of it goes all the same.
            Ok(None) => match tokio::task::spawn_blocking(move || remains::clean(&bundle)).await {
                Ok(Ok(hooks)) => {
                    if let Some(hooks) = hooks {
                        node.launcher.poststop(hooks, std::future::ready(())).await;
                    }
                    Reply::Deleted { exit: None }
                }
                Ok(Err(error)) => Reply::Failed {
                    error: error.to_string(),
                },
                Err(panic) => Reply::Failed {
                    error: panic.to_string(),
                },
            },
            Err(error) => Reply::Failed {
                error: error.to_string(),
            },
        },
        Request::Status => Reply::Status(status(node)),
    }
}

fn status(node: &Node) -> serde_json::Value {
    let (containers, reserved) = node.containers.count();
    json!({
        "pid": std::process::id(),
        "version": env!("CARGO_PKG_VERSION"),
        "containers": containers,
        "reserved": reserved,
        "requests": node.requests.load(Ordering::Relaxed),
        "artifacts": node.artifacts.counters(),
        "images": node.images.counters(),
        "metrics": node.metrics.socket(),
        "launchers": node.launcher.starts(),
        "events_dropped": node.events.dropped(),
        "log_lines_dropped": node.sinks.dropped(),
    })
}
