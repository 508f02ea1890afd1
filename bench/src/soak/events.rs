//! Listens to containerd's events and enters them in the ledger.

use std::sync::Arc;
use std::time::Duration;

use containerd_client::events::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOom, TaskPaused, TaskResumed, TaskStart,
};
use containerd_client::types::Envelope;
use kubewasi_bench::client::Client;
use prost::{DecodeError, Message};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::ledger::{Ledger, Told, process_key};

/// An event of our own: when it comes back, the others come too.
const HEARD: &str = "/soak/heard";

/// Hears all events, again and again when containerd comes back.
pub struct Listener {
    /// How many of our own events were heard.
    heard: watch::Receiver<u64>,
    client: Client,
}

impl Listener {
    pub fn start(client: Client, ledger: Arc<Ledger>) -> Listener {
        let (sender, heard) = watch::channel(0);
        let subscriber = client.clone();
        tokio::spawn(async move {
            loop {
                // An error here is containerd's absence; it is told by whoever waits.
                if let Ok(mut events) = subscriber.subscribe().await {
                    while let Ok(Some(envelope)) = events.message().await {
                        if envelope.topic == HEARD {
                            sender.send_modify(|count| *count += 1);
                        } else if let Err(error) = enter(&ledger, &envelope) {
                            ledger.wrong("event", format!("{} cannot be read: {error}", envelope.topic));
                        }
                    }
                }
                sleep(Duration::from_millis(5)).await;
            }
        });
        Listener { heard, client }
    }

    /// Waits until events of the present containerd are heard.
    pub async fn ready(&self) {
        let mut heard = self.heard.clone();
        let before = *heard.borrow_and_update();
        loop {
            // An error says that containerd is not up yet.
            let _ = self.client.publish(HEARD).await;
            let wait = heard.wait_for(|count| *count > before);
            if timeout(Duration::from_millis(20), wait).await.is_ok() {
                return;
            }
        }
    }
}

fn enter(ledger: &Ledger, envelope: &Envelope) -> Result<(), DecodeError> {
    let value = envelope
        .event
        .as_ref()
        .map(|event| event.value.as_slice())
        .unwrap_or_default();
    let (id, told) = match envelope.topic.as_str() {
        "/tasks/create" => (TaskCreate::decode(value)?.container_id, Told::Create),
        "/tasks/exec-added" => {
            let added = TaskExecAdded::decode(value)?;
            (process_key(&added.container_id, &added.exec_id), Told::Create)
        }
        "/tasks/exec-started" => {
            let started = TaskExecStarted::decode(value)?;
            (process_key(&started.container_id, &started.exec_id), Told::Start)
        }
        "/tasks/start" => (TaskStart::decode(value)?.container_id, Told::Start),
        "/tasks/paused" => (TaskPaused::decode(value)?.container_id, Told::Paused),
        "/tasks/resumed" => (TaskResumed::decode(value)?.container_id, Told::Resumed),
        "/tasks/oom" => (TaskOom::decode(value)?.container_id, Told::OutOfMemory),
        "/tasks/exit" => {
            let exit = TaskExit::decode(value)?;
            // A container's first process has the container's id.
            let process = exit.id != exit.container_id && !exit.id.is_empty();
            let key = if process {
                process_key(&exit.container_id, &exit.id)
            } else {
                exit.container_id
            };
            (key, Told::Exit(exit.exit_status))
        }
        "/tasks/delete" => {
            let delete = TaskDelete::decode(value)?;
            (delete.container_id, Told::Delete(delete.exit_status))
        }
        // Of containers' records and of namespaces.
        _ => return Ok(()),
    };
    ledger.tell(&id, told);
    Ok(())
}
